"""YOLO segmentation data sets: rows of shares, splits of data.yaml, and what is refused."""

import numpy as np
import pytest

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from .exports import HOUSE, SIZE, expected, image, relative, write, yolo

LABELS = LabelSpace(("background", "house", "tree"))


def row(ring, number=0):
    return f"{number} {' '.join(map(str, relative(ring)))}"


def test_rows_are_drawn_in_the_size_of_the_image(tmp_path):
    yolo(tmp_path)
    image(tmp_path / "val" / "images" / "a.png", (2 * SIZE[0], 2 * SIZE[1]))
    found = detect(tmp_path)
    assert (found.format, found.names, found.splits) == ("yolo", ["background", "house", "tree"], ["train", "val"])
    assert found.images == 4 and found.problems == []
    train = Domain.from_annotations(tmp_path, LABELS, "yolo", split="train")
    assert train.ids == ["train/images/a", "train/images/b"]
    np.testing.assert_array_equal(train.load(0)[1], expected())
    assert not train.load(1)[1].any()  # an empty file
    val = Domain.from_annotations(tmp_path, LABELS, split="val")
    np.testing.assert_array_equal(val.load(0)[1], expected().repeat(2, 0).repeat(2, 1))
    assert val.check().sizes == {SIZE[::-1]: 1, (60, 80): 1}


def test_an_image_without_a_file_is_background_and_counted(tmp_path):
    yolo(tmp_path, splits=("train",))
    (tmp_path / "train" / "labels" / "b.txt").unlink()
    domain = Domain.from_annotations(tmp_path, LABELS)
    assert len(domain) == 2 and not domain.load(1)[1].any()
    assert "images without a file of labels, which are background: 1" in str(domain.check())


def test_layouts_of_data_yaml(tmp_path):
    """The root in `path`, names by id, a list of folders, a list of files, a split that is not there."""
    for split in ("train", "val"):
        image(tmp_path / "images" / split / "far" / "a.png")
        write(tmp_path / "labels" / split / "far" / "a.txt", row(HOUSE))
    text = "path: .\ntrain: [images/train]\nval: val.txt\ntest: images/test\nnames: {0: house}\n"
    write(tmp_path / "coco8.yaml", text)
    write(tmp_path / "val.txt", "./images/val/far/a.png\n")
    found = detect(tmp_path)
    assert found.splits == ["train", "val"] and found.names == ["background", "house"]
    assert found.problems == [f"{tmp_path / 'coco8.yaml'}: split test: found no images at images/test"]
    for split in found.splits:
        domain = Domain.from_annotations(tmp_path, split=split)
        assert domain.ids == [f"images/{split}/far/a"]
        np.testing.assert_array_equal(domain.load(0)[1], house())


def house():
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:20, 10:30] = 1
    return mask


def test_without_data_yaml_names_are_those_of_classes_txt(tmp_path):
    write(tmp_path / "classes.txt", "house\ntree\n")
    image(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", row(HOUSE))
    found = detect(tmp_path)
    assert (found.format, found.names, found.splits) == ("yolo", ["background", "house", "tree"], [])
    np.testing.assert_array_equal(Domain.from_annotations(tmp_path, LABELS).load(0)[1], house())


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["0 0.5 0.5 0.2 0.2"], r"a.txt: row 1 is a box \(5 numbers\), and boxes are no masks"),
        (["", "0 0.1 0.1 0.2 0.2 0.3"], "row 2 is '0 0.1 .*expected a class and the x and y of 3 points"),
        (["tree 0.1 0.1 0.2 0.2 0.3 0.1"], "row 1 is 'tree 0.1"),
        (["0 10 10 30 10 30 20"], "row 1 has 30.0, expected coordinates as shares from 0 to 1"),
        (["2 0.1 0.1 0.2 0.2 0.3 0.1"], "row 1 has the class 2, of which the names are {0: 'house', 1: 'tree'}"),
    ],
)
def test_a_damaged_row_is_one_message(rows, problem, tmp_path):
    yolo(tmp_path, rows=rows)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path, LABELS, "yolo")
    assert len(detect(tmp_path).problems) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("names: [a\ntrain: x", "data.yaml: is no valid YAML"),
        ("names: 3\ntrain: x\n", "names: found 3, expected a list or a mapping"),
        ("names: [a]\nkpt_shape: [3, 2]\ntrain: x\n", "key points"),
        ("names: [a]\ntrain: nowhere\n", "labels no image"),
        ("nc: 2\n", "has no YAML file with names and train, nor classes.txt"),
    ],
)
def test_a_damaged_data_yaml_is_one_message(text, problem, tmp_path):
    write(tmp_path / "data.yaml", text)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path, LABELS, "yolo")
