"""Roboflow's folders: COCO files, or masks beside the images."""

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.utils.errors import UserError

from .exports import SIZE, coco, expected, roboflow_masks, write, yolo


def test_coco_files_without_the_class_above_all(tmp_path):
    categories = [
        {"id": 0, "name": "village", "supercategory": "none"},
        {"id": 4, "name": "house", "supercategory": "village"},
        {"id": 9, "name": "tree", "supercategory": "village"},
    ]
    for split in ("train", "valid", "test"):
        coco(tmp_path, split, "_annotations.coco.json", categories=categories)
    found = detect(tmp_path)
    assert (found.format, found.names, found.images) == ("roboflow", ["background", "house", "tree"], 6)
    assert found.splits == ["test", "train", "valid"] and found.problems == []
    for form in ("roboflow", "coco"):
        domain = Domain.from_annotations(tmp_path, format=form, split="valid")
        assert domain.ids == ["valid/b", "valid/a"]
        np.testing.assert_array_equal(domain.load(1)[1], expected())
    # The class above all is one if something is of it.
    row = [{"id": 1, "image_id": 3, "category_id": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]}]
    coco(tmp_path, "train", "_annotations.coco.json", annotations=row, categories=categories)
    assert detect(tmp_path).names == ["background", "house", "tree", "village"]


def test_masks_hold_the_values_of_the_list(tmp_path):
    roboflow_masks(tmp_path)
    mask = next(tmp_path.glob("train/a*_mask.png"))
    Image.fromarray(np.array([0, 7, 3], np.uint8)[expected()]).save(mask)
    for split in ("train", "valid"):
        write(tmp_path / split / "_classes.csv", "Pixel Value, Class\n0, background\n3, tree\n7, house\n")
    domain = Domain.from_annotations(tmp_path, split="train")
    assert domain.labels.names == ("background", "tree", "house")
    np.testing.assert_array_equal(domain.load(0)[1], np.array([0, 2, 1], np.uint8)[expected()])


def test_orphans(tmp_path):
    roboflow_masks(tmp_path)
    next(tmp_path.glob("train/a*_mask.png")).unlink()
    next(path for path in tmp_path.glob("train/b*") if "mask" not in path.name).unlink()
    report = Domain.from_annotations(tmp_path).report
    assert report.images_without_mask == ["train/a_jpg.rf.0a1b"]
    assert report.masks_without_image == ["train/b_jpg.rf.2c3d"]


def test_a_value_that_the_list_lacks_is_found_by_the_check(tmp_path):
    roboflow_masks(tmp_path)
    Image.new("L", SIZE, 9).save(next(tmp_path.glob("train/a*_mask.png")))
    assert "found the ids 9" in Domain.from_annotations(tmp_path).check().outside[0]


def test_other_exports_are_not_this(tmp_path):
    yolo(tmp_path)
    write(tmp_path / "train" / "_classes.csv", "filename, house\na.png, 1\n")
    assert detect(tmp_path).format == "yolo"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Pixel Value, Class\nzero, background\n", "has the line 'zero, background', expected a value and a class"),
        ("Pixel Value, Class\n0\n", "has the line '0'"),
        ("Pixel Value, Class\n0, background\n1, car\n2, tree\n", "has the classes .*car.*but .*train.* has"),
    ],
)
def test_a_damaged_list_is_one_message(text, problem, tmp_path):
    roboflow_masks(tmp_path)
    write(tmp_path / "valid" / "_classes.csv", text)
    with pytest.raises(UserError, match=f"_classes.csv: {problem}"):
        Domain.from_annotations(tmp_path)
