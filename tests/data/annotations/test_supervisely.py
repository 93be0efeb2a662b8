"""Supervisely's projects: holes, bitmaps, pixels and places, data sets."""

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.utils.errors import UserError

from .exports import HOUSE, SIZE, image, pairs, supervisely, write


def bitmap(picture, origin=(5, 20)):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    return {"classTitle": "tree", "geometryType": "bitmap", "bitmap": {"data": data, "origin": list(origin)}}


def polygon(exterior, *interior):
    points = {"exterior": pairs(exterior), "interior": [pairs(ring) for ring in interior]}
    return {"classTitle": "house", "geometryType": "polygon", "points": points}


def mask_of(root, *objects):
    supervisely(root, list(objects), sets=("ds0",))
    return Domain.from_annotations(root, format="supervisely").load(0)[1]


def test_holes_are_cut_out(tmp_path):
    mask = mask_of(tmp_path, polygon(HOUSE, [14, 12, 18, 12, 18, 16, 14, 16]))
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[10:20, 10:30] = 1
    expected[12:16, 14:18] = 0
    np.testing.assert_array_equal(mask, expected)


def test_bitmaps_lie_at_their_origin(tmp_path):
    small = np.array([[1, 1, 0], [0, 1, 1]], np.uint8)
    alpha = Image.fromarray(np.dstack([np.full((2, 3, 3), 200, np.uint8), small * 255]))
    bits = Image.fromarray(small * 255).convert("1")
    for picture in (Image.fromarray(small * 255), alpha, bits):
        mask = mask_of(tmp_path, bitmap(picture))
        expected = np.zeros(SIZE[::-1], np.uint8)
        expected[20:22, 5:8] = small * 2
        np.testing.assert_array_equal(mask, expected)
    assert mask_of(tmp_path, bitmap(Image.fromarray(small * 255), (-1, 29)))[29].tolist() == [2] + [0] * 39


def test_whole_numbers_are_centres_of_pixels_and_fractions_are_places(tmp_path):
    triangle = [10, 10, 30, 10, 30, 20]
    whole = mask_of(tmp_path, polygon(triangle))
    places = mask_of(tmp_path, polygon([value + 0.5 for value in triangle]))
    np.testing.assert_array_equal(whole, places)
    box = {"classTitle": "tree", "geometryType": "rectangle", "points": {"exterior": [[3, 4], [9.5, 7.5]]}}
    mask = mask_of(tmp_path, box)
    assert mask[4:7, 3:9].all() and mask.sum() == 2 * 18


def test_data_sets_may_be_nested(tmp_path):
    supervisely(tmp_path, sets=("ds0", "ds0/datasets/far"))
    found = detect(tmp_path)
    assert found.splits == ["ds0", "ds0/datasets/far"]
    domain = Domain.from_annotations(tmp_path, split="ds0/datasets/far")
    assert domain.ids == ["ds0/datasets/far/a", "ds0/datasets/far/b"] and domain.load(0)[1].any()


def test_files_may_be_called_without_the_type(tmp_path):
    supervisely(tmp_path, sets=("ds0",))
    (tmp_path / "ds0" / "ann" / "a.png.json").rename(tmp_path / "ds0" / "ann" / "a.json")
    assert Domain.from_annotations(tmp_path).load(0)[1].any()
    (tmp_path / "ds0" / "img" / "a.png").unlink()
    image(tmp_path / "ds0" / "img" / "c.png")
    report = Domain.from_annotations(tmp_path).report
    assert (report.masks_without_image, report.images_without_mask) == (["ds0/a"], ["ds0/c"])


def test_what_has_no_area_is_counted(tmp_path):
    line = {"classTitle": "tree", "geometryType": "line", "points": {"exterior": [[1, 2], [3, 4], [5, 6]]}}
    assert not mask_of(tmp_path, line, polygon([1, 2, 3, 4])).any()
    assert detect(tmp_path).problems == ["objects without an area, left out: 2, such as a line in a.png.json"]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("meta.json", '{"classes": [', "meta.json: cannot be read as JSON"),
        ("meta.json", {"tags": []}, "meta.json: is no meta.json of Supervisely"),
        ("ds0/ann/a.png.json", "{", "a.png.json: cannot be read as JSON"),
        ("ds0/ann/a.png.json", {"objects": []}, r"a.png.json: is no annotation of Supervisely \(KeyError: 'size'"),
        (
            "ds0/ann/a.png.json",
            {"size": {"height": 30, "width": 40}, "objects": [polygon(HOUSE) | {"classTitle": "car"}]},
            "a.png.json: has an object of the class car, which meta.json lacks",
        ),
    ],
)
def test_a_damaged_file_is_one_message(file, content, problem, tmp_path):
    supervisely(tmp_path, sets=("ds0",))
    write(tmp_path / file, content)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path)


def test_a_damaged_bitmap_is_found_by_the_check(tmp_path):
    damaged = {"classTitle": "tree", "geometryType": "bitmap", "bitmap": {"data": "aGVsbG8=", "origin": [0, 0]}}
    supervisely(tmp_path, [damaged], sets=("ds0",))
    assert (
        "a.png.json: holds a shape that cannot be drawn (picture: "
        in Domain.from_annotations(tmp_path).check().unfit[0]
    )
