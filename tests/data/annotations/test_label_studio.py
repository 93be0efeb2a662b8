"""Label Studio's JSON: brushes, which annotation counts, and how the image is found."""

import base64

import numpy as np
import pytest

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from .exports import HOUSE, SIZE, image, label_studio, percent, result, write

LABELS = LabelSpace(("background", "house"), other_names={"tree": 1, "pond": 1})


def packed(alpha):
    """RGBA values as rle-pack has them: runs with counts of 16 bits, and one row of single values."""
    values = np.repeat(alpha.ravel(), 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    row = SIZE[0] * 4
    bits += f"0{3:02b}{row - 1:016b}" + "".join(f"{value:08b}" for value in values[:row])
    start = row
    while start < len(values):
        end = start + 1
        while end < len(values) and values[end] == values[start]:
            end += 1
        bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[index : index + 8], 2) for index in range(0, len(bits), 8)]


def first(root):
    domain = Domain.from_annotations(root, LABELS, "label_studio")
    return domain.load(domain.ids.index("far away/a"))[1]


def test_a_brush_is_what_it_covers_by_half(tmp_path):
    alpha = np.zeros(SIZE[::-1], np.uint8)
    alpha[0, 3:9], alpha[20:25, 5:30], alpha[25, 5:30], alpha[26, 5:30] = 255, 255, 128, 127
    label_studio(tmp_path, [result("brushlabels", {"format": "rle", "rle": packed(alpha)}, "tree")])
    np.testing.assert_array_equal(first(tmp_path), alpha >= 128)


def test_ellipses_and_turned_rectangles(tmp_path):
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 0}
    label_studio(tmp_path, [result("ellipselabels", ellipse, "pond")])
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    np.testing.assert_array_equal(first(tmp_path), ((x - 20) / 10) ** 2 + ((y - 15) / 6) ** 2 < 1)
    # Turned by a right angle around its upper left corner, (20, 3): 8 wide and 4 high becomes 4 to the left, 8 down.
    turned = {"x": 50, "y": 10, "width": 20, "height": 40 / 3, "rotation": 90}
    label_studio(tmp_path, [result("rectanglelabels", turned, "house")])
    mask = first(tmp_path)
    assert mask[3:11, 16:20].all() and mask.sum() == 32


def test_labels_of_their_own_and_regions_without(tmp_path):
    region = result("polygonlabels", {"points": percent(HOUSE)}, "", id="r1", type="polygon")
    del region["value"]["polygonlabels"]
    named = {"id": "r1", "type": "labels", "value": {"labels": ["house"], "points": percent(HOUSE)}}
    relation = {"type": "relation", "from_id": "r1", "to_id": "r2"}
    label_studio(tmp_path, [region, named | {"original_width": SIZE[0], "original_height": SIZE[1]}, relation])
    assert first(tmp_path)[10:20, 10:30].all()
    label_studio(tmp_path, [region])
    assert not first(tmp_path).any()
    assert detect(tmp_path).problems == [
        "results without a label or an area, left out: 1, such as a polygon of task 0"
    ]


def test_a_region_is_drawn_once(tmp_path):
    """A choice for a region repeats it; a shape drawn in between stays on top."""
    house = result("polygonlabels", {"points": percent(HOUSE)}, "house", id="r1")
    tree = result("rectanglelabels", {"x": 25, "y": 100 / 3, "width": 10, "height": 10}, "sky", id="r2")
    choice = result("choices", {"points": percent(HOUSE)}, "unsure", id="r1")
    label_studio(tmp_path, [house, tree, choice])
    labels = LabelSpace(("background", "house", "sky"))
    mask = Domain.from_annotations(tmp_path, labels).load(0)[1]
    assert (mask[10:13, 10:14] == 2).all() and (mask == 1).sum() == 200 - 12


def test_the_name_of_an_upload_is_the_last_resort(tmp_path):
    file = label_studio(tmp_path)
    tasks = [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/image2"}, "file_upload": "e97d4735-b.png"}]
    write(file, tasks)
    assert Domain.from_annotations(tmp_path, LABELS).ids == ["b"]


def test_which_annotation_counts(tmp_path):
    file = label_studio(tmp_path)
    image(tmp_path / "c.png")
    drawn = [result("polygonlabels", {"points": percent(HOUSE)}, "house")]

    def tasks(*annotations):
        write(file, [{"id": 5, "annotations": list(annotations), "data": {"text": "hello", "picture": "/x/c.png"}}])
        domain = Domain.from_annotations(tmp_path, LABELS)
        return domain.load(domain.ids.index("c"))[1].any() if "c" in domain.ids else None

    assert tasks({"result": [], "ground_truth": True}, {"result": drawn}) == np.False_
    assert (
        "tasks with several annotations, of which the ground truth or the last counts: 1"
        in detect(tmp_path).problems[0]
    )
    assert tasks({"result": []}, {"result": drawn}) == np.True_
    assert tasks({"result": drawn}, {"result": [], "was_cancelled": True}) == np.True_
    with pytest.raises(UserError, match="labels no image"):
        tasks({"result": drawn, "was_cancelled": True})


@pytest.mark.parametrize(
    "path",
    [
        "/data/local-files/?d=set%20one/far%20away/a.png",
        "/data/local-files/?d=set one\\far away\\a.png",
        "s3://bucket/far%20away/a.png",
        "https://host/far%20away/a.png?X-Amz-Signature=1",
        "/tasks/3/presign/?fileuri=" + base64.b64encode(b"s3://bucket/far away/a.png").decode().rstrip("="),
        "/data/upload/12/0a1b2c3d-a.png",
    ],
)
def test_the_image_is_found_by_the_end_of_its_path(path, tmp_path):
    label_studio(tmp_path, paths=(path, "b.png"))
    assert first(tmp_path).any()


def test_the_prefix_of_an_upload_may_be_part_of_the_file(tmp_path):
    label_studio(tmp_path, paths=("/data/upload/12/0a1b2c3d-a.png", "b.png"))
    image(tmp_path / "media" / "upload" / "12" / "0a1b2c3d-a.png")
    assert "media/upload/12/0a1b2c3d-a" in Domain.from_annotations(tmp_path).ids


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"annotations": [', "cannot be read as JSON"),
        ([{"annotation_id": 1, "image": "a.png"}], "is Label Studio's JSON-MIN; choose the format JSON"),
        ([{"id": 1, "annotations": [{"result": []}]}], r"is no export of Label Studio \(KeyError: 'data'"),
        ([{"id": 1, "annotations": [], "data": {"text": "x"}}], "task 1 has no image in its data"),
    ],
)
def test_a_damaged_file_is_one_message(content, problem, tmp_path):
    write(label_studio(tmp_path), content)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path)


def test_turned_images_and_damaged_brushes_are_refused(tmp_path):
    label_studio(tmp_path, [result("polygonlabels", {"points": percent(HOUSE)}, "house", image_rotation=90)])
    with pytest.raises(UserError, match="task 0 was labelled on an image that was turned in Label Studio"):
        Domain.from_annotations(tmp_path)
    for values in (packed(np.zeros((3, 3), np.uint8)), [0, 0]):
        label_studio(tmp_path, [result("brushlabels", {"format": "rle", "rle": values}, "tree")])
        assert "cannot be drawn (brush: " in Domain.from_annotations(tmp_path).check().unfit[0]
