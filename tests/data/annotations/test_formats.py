"""What all formats have in common: the same scene, drawn by each tool, is the same mask."""

import numpy as np
import pytest

from deft_hf.data.annotations import FORMATS, detect
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from .exports import EXPORTS, SIZE, expected, image

LABELS = LabelSpace(("sky", "tree", "background"), other_names={"house": 0})
SPLITS = {
    "roboflow": ["train", "valid"],
    "supervisely": ["ds0", "ds1"],
    "voc": ["train", "trainval", "val"],
    "yolo": ["train", "val"],
}


def test_every_format_is_tested():
    assert set(EXPORTS) == set(FORMATS)


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_the_same_scene_is_the_same_mask(form, tmp_path):
    EXPORTS[form](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = detect(tmp_path)
    assert (found.format, found.names) == (form, ["background", "house", "tree"])
    assert (found.splits, found.problems) == (SPLITS.get(form, []), [])
    domain = Domain.from_annotations(tmp_path, LABELS, form, split=next(iter(found.splits), None))
    first = next(index for index, key in enumerate(domain.ids) if key.rpartition("/")[2].startswith("a"))
    picture, mask = domain.load(first)
    assert picture.size == SIZE
    np.testing.assert_array_equal(mask, np.array([2, 0, 1], np.uint8)[expected()])
    everything = Domain.from_annotations(tmp_path, LABELS)
    assert len(everything) == found.images and len(set(everything.ids)) == len(everything)
    assert all((everything.load(index)[1] == 2).all() for index, key in enumerate(everything.ids) if "/b" in f"/{key}")
    report = everything.check()
    report.raise_if_bad()
    assert report.pixels[0] == 170 * (report.pixels[1] // 140) > 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_an_image_that_is_not_labelled_is_left_out(form, tmp_path):
    EXPORTS[form](tmp_path)
    pictures = sorted(path for path in tmp_path.rglob("*.png") if not ("Segm" in str(path) or "mask" in path.name))
    image(pictures[-1].with_name("new.png"))
    domain = Domain.from_annotations(tmp_path, LABELS)
    new = [key for key in (*domain.ids, *domain.report.images_without_mask) if key.endswith("new")]
    assert len(new) == 1
    assert (new[0] in domain.ids) == (form == "yolo")  # background there
    next(path for path in pictures if path.name.startswith("a")).unlink()
    domain = Domain.from_annotations(tmp_path, LABELS)
    assert len(domain.report.masks_without_image) == (0 if form == "yolo" else 1)


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_folder_without_the_format_is_one_message(form, tmp_path):
    image(tmp_path / "a.png")
    assert detect(tmp_path) is None
    with pytest.raises(UserError, match=f"{tmp_path.name}: has "):
        Domain.from_annotations(tmp_path, LABELS, form)
    with pytest.raises(UserError, match="looks like no label export of a known format"):
        Domain.from_annotations(tmp_path, LABELS)


def test_without_labels_a_domain_has_the_classes_of_the_export(tmp_path):
    EXPORTS["labelme"](tmp_path)
    domain = Domain.from_annotations(tmp_path)
    assert domain.labels.names == ("background", "house", "tree") and domain.name == tmp_path.name
    np.testing.assert_array_equal(domain.load(0)[1], expected())


def test_an_image_in_two_splits_is_there_once_or_refused(tmp_path):
    EXPORTS["coco"](tmp_path, "", "x.json")
    EXPORTS["coco"](tmp_path, "", "y.json")
    assert len(Domain.from_annotations(tmp_path, LABELS, split="x")) == 2
    with pytest.raises(
        UserError, match=r"2 images are labelled more than once, such as b by .*\(split x\).*\(split y\)"
    ):
        Domain.from_annotations(tmp_path, LABELS)
    EXPORTS["voc"](tmp_path / "voc")
    assert len(Domain.from_annotations(tmp_path / "voc", LABELS)) == 2


def test_a_missing_extra_is_one_message(tmp_path, monkeypatch):
    EXPORTS["coco"](tmp_path)
    monkeypatch.setattr("deft_hf.data.annotations.reading.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs pycocotools: pip install 'deft-hf\[import\]'"):
        Domain.from_annotations(tmp_path, LABELS)
    EXPORTS["labelme"](tmp_path / "other")
    assert len(Domain.from_annotations(tmp_path / "other", LABELS)) == 2
