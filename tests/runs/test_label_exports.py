"""Label exports from the recipe to what a trainer reads: as masks on disk are."""

import numpy as np
import pytest

from deft_hf.data.sampling import EvaluationSet
from deft_hf.data.transforms import EvalTransform
from deft_hf.recipe import Recipe
from deft_hf.runs.data import input_folders, load_domains
from deft_hf.runs.provenance import data_lists
from deft_hf.utils.errors import UserError
from tests.data.annotations.exports import coco, expected, yolo

RECIPE = """
model: {checkpoint: embedded}
method: {name: joint}
data:
  root: ROOT
  labels:
    names: [background, built, tree]
    ids: {house: 1}
  source: [{folder: drone, annotations: coco, split: train}]
  validation: [{folder: drone, annotations: coco, split: valid}]
  unseen: [{folder: client, annotations: yolo}, {folder: client, annotations: yolo, corruption: fog, severity: 1}]
  crop_size: [32, 32]
training: {output_dir: out, max_steps: 1}
"""


@pytest.fixture
def path(tmp_path):
    for split in ("train", "valid"):
        coco(tmp_path / "drone", split, "_annotations.coco.json")
    yolo(tmp_path / "client", splits=("train",))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path)))
    return path


def test_domains_of_exports(path, tmp_path, capsys):
    recipe, files = Recipe.load(path), sorted(tmp_path.rglob("*"))
    domains = load_domains(recipe.data)
    assert [domain.ids for domain in domains.source] == [["train/b", "train/a"]]
    assert [domain.ids for domain in domains.validation] == [["valid/b", "valid/a"]]
    assert [domain.name for domain in domains.unseen] == ["client", "client_fog_1"]
    for domain, index in ((domains.source[0], 1), (domains.unseen[0], 0), (domains.unseen[1], 0)):
        np.testing.assert_array_equal(domain.load(index)[1], expected())
        assert domain.labels.names == ("background", "built", "tree")
    assert "built" in capsys.readouterr().out  # the report of the check
    lists = data_lists(unseen=domains.unseen)["unseen"]
    assert lists == data_lists(unseen=load_domains(recipe.data).unseen)["unseen"]
    item = EvaluationSet(domains.unseen[0], EvalTransform(size=None, mean=(0, 0, 0), std=(1, 1, 1)), "stop")[0]
    np.testing.assert_array_equal(item["labels"], expected())
    assert set(input_folders(recipe.data)) == {tmp_path / "drone", tmp_path / "client"}
    assert sorted(tmp_path.rglob("*")) == files  # nothing was written


def test_a_recipe_is_what_it_writes(path, tmp_path):
    again = tmp_path / "again.yaml"
    again.write_text(Recipe.load(path).to_yaml())
    assert Recipe.load(again).data == Recipe.load(path).data


def test_a_share_of_an_export(path):
    split = ["data.source=[{folder: client, annotations: yolo}]", "data.unseen=[]"]
    held_out = ["data.validation=[{folder: client, annotations: yolo, split: 0.5}]"]
    domains = load_domains(Recipe.load(path, [*split, *held_out, "data.check=false"]).data)
    assert (domains.source[0].ids, domains.validation[0].ids) == (["train/images/a"], ["train/images/b"])


def test_other_classes_in_one_word(path):
    recipe = Recipe.load(path, ["data.labels={names: [background, tree], ids: {rest: 255}}", "data.check=false"])
    _, mask = load_domains(recipe.data).source[0].load(1)
    np.testing.assert_array_equal(mask, np.array([0, 255, 1], np.uint8)[expected()])


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.unseen.0.annotations=cocoo", 'found "cocoo", expected one of .*coco.*did you mean coco?'),
        ("data.unseen.0.masks=m", "data.unseen.0.masks: found beside annotations, which knows it"),
        ("data.unseen.0.layout=gtav", "data.unseen.0.annotations: found beside layout"),
        ("data.unseen.0.folder=nowhere", "found no folder"),
        ("data.unseen.0.folder=drone", "found images that drone of source or validation has"),
        (
            "data.unseen=[{folder: drone/valid, images: ., masks: ., name: x}]",
            "data.unseen.0: found images that drone of source or validation has",
        ),
        ("data.labels.ids={house: 7}", "data.labels.ids: house maps to 7, expected a train id in 0..2"),
        ('data.labels.ids={"7": 1}', "data.labels.ids: found the raw id '7', expected a whole number"),
    ],
)
def test_contradictions(path, override, text):
    with pytest.raises(UserError, match=text):
        Recipe.load(path, [override])


def test_names_of_masks_are_refused(path):
    masks = [
        "data.source=[{streets: clear, count: 1}]",
        "data.validation=[]",
        "data.unseen=[{streets: fog, count: 1}]",
    ]
    with pytest.raises(UserError, match="data.labels.ids: found the name house, which only label exports have"):
        Recipe.load(path, masks)


def test_an_unknown_class_is_one_line(path):
    with pytest.raises(UserError, match=r'lacks: house\. Name them there.*ids: \{"house": 255\} ignores'):
        load_domains(Recipe.load(path, ["data.labels.ids={roof: 1}"]).data)
