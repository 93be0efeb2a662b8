"""Official trees through a recipe."""

import json

import pytest
import yaml

from deft_hf.recipe import Recipe
from deft_hf.runs.data import input_folders, open_domain
from deft_hf.utils.errors import UserError
from tests.data.test_layouts import CASES, GO, deep, ids, image, plant


def recipe(root, source, labels="cityscapes", **data):
    for kind in ("images", "masks"):
        (root / "town" / kind).mkdir(parents=True, exist_ok=True)
    content = {
        "model": {"checkpoint": "embedded"},
        "data": {"root": str(root), "labels": labels, "source": source, "unseen": [{"folder": "town"}], **data},
        "training": {"output_dir": str(root / "out"), "max_steps": 1},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(content))
    return Recipe.load(root / "recipe.yaml")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout}-{case.classes}-{case.split}")
def test_every_layout_is_an_entry(case, tmp_path):
    plant(case, tmp_path / "tree")
    entry = {"folder": "tree", "layout": case.layout, "split": case.split, "condition": case.condition}
    data = recipe(tmp_path, [{key: value for key, value in entry.items() if value}], labels=case.classes).data
    (source,) = data.source
    assert source.name == ("tree" if case.condition is None else f"tree_{case.condition}")
    domain = open_domain(source, data)
    assert domain.ids == [case.key] and domain.labels.names == data.label_space().names
    assert dict(zip(case.meaning, domain.load(0)[1][0].tolist(), strict=True)) == case.meaning
    there = [folder for folder in input_folders(data) if folder.is_dir()]
    assert any((tmp_path / "tree" / case.image).is_relative_to(folder) for folder in there)


def test_conditions_of_a_tree_are_domains_of_their_own(tmp_path):
    for name in ("fog", "night", "rain", "snow"):
        image(tmp_path / f"ACDC/rgb_anon/{name}/val/{GO}_rgb_anon.png", 2)
        ids(tmp_path / f"ACDC/gt/{name}/val/{GO}_gt_labelIds.png", [7, 26])
    entry = {"folder": "ACDC", "layout": "acdc", "split": "val"}
    apart = [{**entry, "condition": name} for name in ("night", "rain")]
    data = recipe(tmp_path, [{**entry, "condition": "fog"}], unseen=apart).data
    assert [each.name for each in data.unseen] == ["ACDC_night", "ACDC_rain"]
    assert open_domain(data.unseen[0], data).ids == [f"night/{GO}"]
    with pytest.raises(UserError, match="data.unseen.0: found images that ACDC_fog of source or validation has"):
        recipe(tmp_path, [{**entry, "condition": "fog"}], unseen=[{**entry, "name": "all"}])
    with pytest.raises(UserError, match="data.source.0.condition: found sun, expected one of fog, night, rain, snow"):
        recipe(tmp_path, [{**entry, "condition": "sun"}])
    with pytest.raises(UserError, match="data.source.0.condition: found fog without a layout; remove it, or name"):
        recipe(tmp_path, [{"folder": "ACDC", "condition": "fog"}])


def test_a_split_that_is_all_of_a_data_set_shares_images_with_its_parts(tmp_path):
    (tmp_path / "voc").mkdir()
    train, val, both = ({"folder": "voc", "layout": "voc", "split": split} for split in ("train", "val", "trainval"))
    assert recipe(tmp_path, [train], labels="voc", validation=[val]).data.source[0].part == "train"
    for source, scored in ((both, val), (train, both)):
        with pytest.raises(UserError, match="data.validation.0: found images that voc of source has"):
            recipe(tmp_path, [source], labels="voc", validation=[scored])


def test_a_share_of_a_data_set_without_splits_is_held_out(tmp_path):
    for frame in range(10):
        image(tmp_path / f"RGB/{frame}.png", 2)
        deep(tmp_path / f"GT/LABELS/{frame}.png", [3, 8])
    entry = {"folder": ".", "layout": "synthia", "name": "synthia"}
    data = recipe(tmp_path, [entry], validation=[{**entry, "split": 0.2}]).data
    source, validation = (open_domain(entries[0], data) for entries in (data.source, data.validation))
    assert len(source) == 8 and len(validation) == 2 and not {*source.ids} & {*validation.ids}
    with pytest.raises(UserError, match="split: found train, expected a share of the images, or none, of the layout"):
        recipe(tmp_path, [{**entry, "split": "train"}])


def test_classes_that_a_tree_cannot_be_read_as_are_refused(tmp_path):
    (tmp_path / "tree").mkdir()
    entry = {"folder": "tree", "layout": "loveda", "split": "val"}
    wanted = (
        "data.labels: found cityscapes, which masks of loveda cannot be read as, expected one of loveda: data.source.0"
    )
    with pytest.raises(UserError, match=wanted):
        recipe(tmp_path, [entry])
    with pytest.raises(UserError, match="data.labels: found streets, which masks of loveda cannot be read as"):
        recipe(tmp_path, [entry], labels="streets")
    sixteen = {"folder": "tree", "layout": "mapillary", "split": "val", "labels": "mapillary_rein"}
    data = recipe(tmp_path, [sixteen], labels="synthia16").data
    space = data.source[0].label_space(data.labels)
    assert space.names == data.label_space().names and space.ids[44] == space.names.index("pole")
    assert json.dumps(data.source[0].labels) == '"mapillary_rein"'
