"""labelme's files: kinds of shapes, where the image is, and what is no area."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from .exports import HOUSE, SIZE, image, labelme, pairs, write


def mask_of(root, *shapes):
    labelme(root, list(shapes))
    return Domain.from_annotations(root, format="labelme").load(0)[1]


def test_kinds_of_shapes(tmp_path):
    small = np.array([[1, 1, 0], [0, 1, 1]], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "PNG")
    drawn = {"label": "tree", "points": [[5, 20], [7, 21]], "shape_type": "mask"}
    circle = {"label": "pond", "points": [[30, 20], [30, 26]], "shape_type": "circle"}
    mask = mask_of(tmp_path, drawn | {"mask": base64.b64encode(stream.getvalue()).decode()}, circle)
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[20:22, 5:8] = small * 2
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    expected[np.hypot(x - 30, y - 20) < 6] = 1
    np.testing.assert_array_equal(mask, expected)


def test_old_files_have_no_kinds(tmp_path):
    mask = mask_of(tmp_path, {"label": "house", "points": pairs(HOUSE)})
    assert mask[10:20, 10:30].all() and mask.sum() == 200


def test_lines_and_points_are_counted_and_left_out(tmp_path):
    lines = [{"label": "a", "points": [[1, 1], [9, 9]], "shape_type": kind} for kind in ("line", "linestrip", "point")]
    labelme(tmp_path, [*lines, {"label": "a", "points": [[1, 1], [9, 9]], "shape_type": "polygon"}])
    assert detect(tmp_path).problems == ["shapes without an area, left out: 4, such as a line in a.json"]
    with pytest.raises(UserError, match="has no shape of any class; give the classes as `labels`"):
        Domain.from_annotations(tmp_path)
    assert not Domain.from_annotations(tmp_path, LabelSpace(("background", "a"))).load(0)[1].any()


def test_ignored_pixels_and_the_order_of_classes(tmp_path):
    write(tmp_path / "labels.txt", "__ignore__\n_background_\ntree\nhouse\n")
    square = {"points": [[0, 0], [4, 4]], "shape_type": "rectangle"}
    mask = mask_of(tmp_path, {"label": "house", "points": pairs(HOUSE)}, {"label": "__ignore__", **square})
    assert (mask[:4, :4] == 255).all() and mask[12, 12] == 2 and mask[25, 25] == 0
    assert detect(tmp_path).names == ["_background_", "tree", "house"]


@pytest.mark.parametrize("path", ["..\\photos\\x.png", "../photos/x.png", "C:\\Users\\me\\photos\\x.png"])
def test_the_image_is_elsewhere(path, tmp_path):
    labelme(tmp_path / "labels")
    (tmp_path / "labels" / "a.png").unlink()
    image(tmp_path / "photos" / "x.png")
    image(tmp_path / "other" / "x.png")
    content = (tmp_path / "labels" / "a.json").read_text().replace('"a.png"', f'"{path}"'.replace("\\", "\\\\"))
    write(tmp_path / "labels" / "a.json", content)
    domain = Domain.from_annotations(tmp_path)
    assert domain.ids == ["photos/x", "labels/b"] and domain.load(0)[1].any()


def test_an_image_that_was_renamed_with_its_file_is_found(tmp_path):
    labelme(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    (tmp_path / "a.json").rename(tmp_path / "c.json")
    assert Domain.from_annotations(tmp_path).ids == ["b", "c"]


def test_files_of_another_kind_are_counted(tmp_path):
    labelme(tmp_path, imageData="aGVsbG8=")
    write(tmp_path / "split.json", {"train": ["a"]})
    found = detect(tmp_path)
    assert found.format == "labelme" and found.problems == [
        f"JSON files of another kind: 1, such as {tmp_path / 'split.json'}"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"shapes": [', r"a.json: cannot be read as JSON"),
        ({"shapes": [{"label": "x"}], "imagePath": "a.png"}, "a.json: is no file of labelme .*points"),
        ({"shapes": {"label": 1}, "imagePath": "a.png"}, "a.json: is no file of labelme"),
        ({"shapes": [{"label": "x", "points": [[1, 2]], "shape_type": "circle"}]}, "a.json: is no file of labelme"),
    ],
)
def test_a_damaged_file_is_one_message(content, problem, tmp_path):
    labelme(tmp_path)
    write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path, format="labelme")


def test_a_damaged_mask_is_found_by_the_check(tmp_path):
    labelme(tmp_path, [{"label": "x", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "aGVsbG8="}])
    report = Domain.from_annotations(tmp_path).check()
    assert "a.json: holds a shape that cannot be drawn (picture: " in report.unfit[0]
