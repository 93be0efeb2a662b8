"""CVAT's XML: z order, turned boxes, ellipses, masks, subsets."""

import numpy as np
import pytest

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.utils.errors import UserError

from .exports import CVAT_LABELS, SIZE, cvat, expected, write


def mask_of(root, shapes):
    cvat(root, shapes)
    return Domain.from_annotations(root, format="cvat").load(0)[1]


def test_shapes_lie_by_z_order(tmp_path):
    cvat(tmp_path)
    np.testing.assert_array_equal(Domain.from_annotations(tmp_path).load(0)[1], expected())
    text = (tmp_path / "annotations.xml").read_text().replace('z_order="3"', 'z_order="-1"')
    write(tmp_path / "annotations.xml", text)
    mask = Domain.from_annotations(tmp_path).load(0)[1]
    assert (mask[10:20, 10:30] == 1).all() and mask[5, 24] == 2


def test_a_mask_is_runs_in_its_box(tmp_path):
    """Zeros first, row by row: the box has 2 rows of 3 pixels."""
    box = 'left="4" top="6" width="3" height="2"'
    mask = mask_of(tmp_path, f'<mask label="tree" rle="1, 2, 1, 2" {box} z_order="0"></mask>')
    wanted = np.zeros(SIZE[::-1], np.uint8)
    wanted[6:8, 4:7] = [[0, 2, 2], [0, 2, 2]]
    np.testing.assert_array_equal(mask, wanted)
    mask = mask_of(tmp_path, f'<mask label="house" rle="0, 1, 5" {box} z_order="0"/>')
    assert mask[6, 4] == 1 and mask.sum() == 1


def test_boxes_and_ellipses_are_turned(tmp_path):
    box = '<box label="house" xtl="10" ytl="10" xbr="30" ybr="14" rotation="90" z_order="0"/>'
    mask = mask_of(tmp_path, box)
    assert (mask[2:22, 18:22] == 1).all() and mask.sum() == 80
    ellipse = '<ellipse label="house" cx="20" cy="15" rx="4" ry="12" rotation="90.00" z_order="0"/>'
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    np.testing.assert_array_equal(mask_of(tmp_path, ellipse), ((x - 20) / 12) ** 2 + ((y - 15) / 4) ** 2 < 1)


def test_what_has_no_area_is_counted(tmp_path):
    line = (
        '<polyline label="house" points="1,1;9,9" z_order="0"/><tag label="tree"/><points label="tree" points="1,2"/>'
    )
    assert not mask_of(tmp_path, line).any()
    assert detect(tmp_path).problems == [
        "shapes without an area, left out: 2, such as a polyline of a.png in annotations.xml"
    ]


def test_subsets_are_splits(tmp_path):
    cvat(tmp_path, subset="Train")
    found = detect(tmp_path)
    assert (found.splits, found.images) == (["Train"], 2)
    domain = Domain.from_annotations(tmp_path, split="Train")
    assert domain.ids == ["images/Train/a", "images/Train/b"]
    np.testing.assert_array_equal(domain.load(0)[1], expected())


def test_labels_of_skeletons_are_no_classes(tmp_path):
    cvat(tmp_path, labels=f"{CVAT_LABELS}<label><name>knee</name><parent>body</parent></label>")
    assert detect(tmp_path).names == ["background", "house", "tree"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<annotations><version>", "cannot be read as XML"),
        ("<annotations><track id='0'/></annotations>", "is CVAT for video .*choose the format CVAT for images 1.1"),
        ("<annotations><image id='0'/></annotations>", r"is no file of CVAT for images 1.1 \(KeyError: 'name'"),
        (
            "<annotations><image name='a.png' width='4' height='3'><mask label='x' rle='1,b' left='0'/></image>"
            "</annotations>",
            "is no file of CVAT for images",
        ),
    ],
)
def test_a_damaged_file_is_one_message(text, problem, tmp_path):
    cvat(tmp_path)
    write(tmp_path / "annotations.xml", text)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path)


def test_wrong_runs_are_found_by_the_check(tmp_path):
    cvat(tmp_path, '<mask label="tree" rle="1, 9" left="4" top="6" width="3" height="2" z_order="0"/>')
    assert "run lengths of 10 pixels in an area of 6" in Domain.from_annotations(tmp_path).check().unfit[0]
