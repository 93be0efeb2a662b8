"""Pascal VOC's folders: colours, indices, grey, lists, and the exports of other tools that have them."""

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.annotations import detect
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from .exports import SIZE, expected, image, voc, write


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_masks_of_every_kind(mode, tmp_path):
    drawn = expected()
    drawn[0] = 255  # the border of an object
    voc(tmp_path, mode, mask=drawn)
    domain = Domain.from_annotations(tmp_path, split="train")
    assert domain.ids == ["a"]
    np.testing.assert_array_equal(domain.load(0)[1], drawn)
    assert domain.check().unreadable == []


def test_the_classes_of_voc_have_its_colours(tmp_path):
    voc(tmp_path)
    (tmp_path / "labelmap.txt").unlink()
    names = detect(tmp_path).names
    assert len(names) == 21 and names[:2] == ["background", "aeroplane"] and names[-1] == "tvmonitor"
    colors = np.array([[0, 0, 0], [128, 0, 0], [192, 128, 128]], np.uint8)  # person is class 15
    Image.fromarray(colors[expected()]).save(tmp_path / "SegmentationClass" / "a.png")
    labels = LabelSpace(("background", "aeroplane", "person"))
    with pytest.raises(UserError, match='lacks: bicycle, bird.*ids: {"bicycle": 255, "bird": 255'):
        Domain.from_annotations(tmp_path, labels)
    others = {name: 255 for name in names if name not in labels.names}
    labels = LabelSpace(labels.names, other_names=others)
    np.testing.assert_array_equal(Domain.from_annotations(tmp_path, labels, split="train").load(0)[1], expected())
    write(tmp_path / "class_names.txt", "_background_\naeroplane\n")
    assert detect(tmp_path).names == ["_background_", "aeroplane"]


def test_the_folder_of_the_development_kit(tmp_path):
    voc(tmp_path / "VOCdevkit" / "VOC2012")
    assert detect(tmp_path).splits == ["train", "trainval", "val"]
    assert Domain.from_annotations(tmp_path, split="trainval").ids == ["a", "b"]


def test_names_with_spaces_and_folders(tmp_path):
    voc(tmp_path, lists=())
    for folder in ("JPEGImages", "SegmentationClass"):
        (tmp_path / folder / "far").mkdir()
        (tmp_path / folder / "a.png").rename(tmp_path / folder / "far" / "a b.png")
    write(tmp_path / "ImageSets" / "Segmentation" / "default.txt", "far/a b\nnowhere\n")
    domain = Domain.from_annotations(tmp_path, split="default")
    assert domain.ids == ["far/a b"] and domain.load(0)[1].any()
    assert domain.report.images_without_mask == ["nowhere"]


def test_images_in_another_folder(tmp_path):
    voc(tmp_path)
    for file in ("a.png", "b.png"):
        (tmp_path / "JPEGImages" / file).rename(tmp_path / file)
    (tmp_path / "JPEGImages").rmdir()
    assert Domain.from_annotations(tmp_path).ids == ["a", "b"]


def test_a_colour_that_the_map_lacks_is_found_by_the_check(tmp_path):
    voc(tmp_path)
    Image.new("RGB", SIZE, (9, 9, 9)).save(tmp_path / "SegmentationClass" / "a.png")
    report = Domain.from_annotations(tmp_path).check()
    assert "found the colours (9, 9, 9)" in report.outside[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("background:0,0,0::\nhouse:1,2::\n", "has the line 'house:1,2::', expected NAME:RED,GREEN,BLUE"),
        ("background:0,0,0::\nhouse:300,0,0::\n", "has the line 'house:300,0,0::'"),
        ("background:0,0,0::\nhouse:1,2,3::\ntree:1,2,3::\n", "gives house and tree one colour"),
        ("# nothing\n", "names no class"),
    ],
)
def test_a_damaged_map_is_one_message(text, problem, tmp_path):
    voc(tmp_path)
    write(tmp_path / "labelmap.txt", text)
    with pytest.raises(UserError, match=f"labelmap.txt: {problem}"):
        Domain.from_annotations(tmp_path)


def test_damaged_masks(tmp_path):
    voc(tmp_path)
    write(tmp_path / "SegmentationClass" / "a.png", "no picture")
    with pytest.raises(UserError, match="a.png: cannot be read"):
        Domain.from_annotations(tmp_path)
    for mask in (tmp_path / "SegmentationClass").iterdir():
        mask.unlink()
    with pytest.raises(UserError, match="SegmentationClass: holds no masks"):
        Domain.from_annotations(tmp_path)
    image(tmp_path / "SegmentationClass" / "c.png")
    with pytest.raises(UserError, match="not one of the images that it labels is there, such as that of .*c.png"):
        Domain.from_annotations(tmp_path)
