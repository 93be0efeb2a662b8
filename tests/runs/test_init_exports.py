"""Each format of label exports becomes a recipe that is used as it is written, as tools leave them too."""

import json
import shutil

import numpy as np
import pytest

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.init import init
from deft_hf.runs.train import train
from deft_hf.utils.errors import UserError
from tests.data.annotations import exports

SHORT = ["training.max_steps=1", "training.dataloader_num_workers=0", "method.name=joint"]


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(folder):
    """The recipe that is written, and its data, opened."""
    found = init(folder, model="embedded", progress=False, overwrite=True)
    recipe = Recipe.load(found.recipe)
    check_arguments(recipe)
    return recipe, load_domains(recipe.data), found


@pytest.mark.parametrize("form", exports.EXPORTS)
def test_the_recipe_of_every_format_finds_its_images(form, tmp_path):
    exports.several(form, tmp_path / "job")
    recipe, domains, found = written("job")
    assert recipe.data.source[0].annotations == form and recipe.data.labels["names"][0] == "background"
    assert set(recipe.data.labels["names"]) == {"background", "house", "tree"}
    assert "give the classes their names" not in str(found)
    for domain in (*domains.source, *domains.validation):
        masks = [domain.load(index)[1] for index in range(len(domain))]
        assert {0, 1, 2} <= set(np.unique(masks))


@pytest.mark.usefixtures("unverified")
def test_a_recipe_trains_as_it_is_written(tmp_path):
    exports.several("coco", tmp_path / "job")
    recipe = Recipe.load(init("job", model="embedded", progress=False).recipe, SHORT)
    assert (train(recipe) / "model.safetensors").is_file()


def test_the_masks_that_are_trained_on_are_those_of_the_labels(tmp_path):
    exports.several("yolo", tmp_path / "job")
    _, domains, _ = written("job")
    domain = domains.source[0]
    np.testing.assert_array_equal(domain.load(domain.ids.index("train/images/a2"))[1], exports.expected())


def test_roboflow_writes_coco_files_by_a_name_of_its_own(tmp_path):
    for split in ("train", "valid", "test"):
        exports.coco(tmp_path / "job", split, "_annotations.coco.json")
    recipe, domains, _ = written("job")
    assert {entry.annotations for entry in recipe.data.source} == {"roboflow"}
    assert [len(each[0]) for each in (domains.source, domains.validation, domains.unseen)] == [2, 2, 2]
    shutil.rmtree(tmp_path / "job" / "valid")
    recipe, _, found = written("job")
    assert recipe.data.validation[0].split == "test" and not recipe.data.unseen
    assert "split test: it has none but this to choose on" in found.recipe.read_text("utf-8")


def test_one_split_alone_is_held_out_from(tmp_path):
    exports.several("yolo", tmp_path / "job")
    shutil.rmtree(tmp_path / "job" / "val")
    recipe, domains, _ = written("job")
    assert (recipe.data.source[0].split, recipe.data.validation[0].split) == (0.8, 0.2)
    assert (len(domains.source[0]), len(domains.validation[0])) == (5, 1)


def test_a_split_of_one_class_cannot_be_chosen_on(tmp_path):
    exports.voc(tmp_path / "job")  # whose validation image shows nothing but background
    with pytest.raises(UserError, match="job: has the split train, but none with two classes .* its split val"):
        init("job", model="embedded", progress=False)


@pytest.mark.parametrize("root", ["../datasets/job\n", "/home/jo/job\n", "C:\\data\\job\n"])
def test_paths_of_another_machine_in_data_yaml(tmp_path, root):
    exports.several("yolo", tmp_path / "job" / "shots")
    (tmp_path / "job" / "shots" / "data.yaml").unlink()
    text = f"path: {root}train: {root.strip()}/train/images\nval: val/images\nnames: [house, tree]\n"
    exports.write(tmp_path / "job" / "field.yaml", text)
    _, domains, _ = written("job")
    assert (len(domains.source[0]), len(domains.validation[0])) == (6, 6)


def test_yolo_without_its_yaml_file_is_named(tmp_path):
    exports.yolo(tmp_path / "job")
    (tmp_path / "job" / "data.yaml").unlink()
    with pytest.raises(UserError, match="job/train/labels/a.txt, as YOLO has them, but no YAML file with `names`"):
        init("job", model="embedded", progress=False)


def test_what_label_studio_puts_beside_a_yolo_export(tmp_path):
    exports.several("yolo", tmp_path / "all")
    shutil.move(tmp_path / "all" / "train", tmp_path / "job")
    exports.write(tmp_path / "job" / "classes.txt", "house\ntree\n")
    notes = {"categories": [{"id": 0, "name": "house"}, {"id": 1, "name": "tree"}], "info": {"year": 2024}}
    exports.write(tmp_path / "job" / "notes.json", json.dumps(notes))
    recipe, _, _ = written("job")
    assert recipe.data.source[0].annotations == "yolo"
