"""COCO files: masks equal to those of pycocotools, and what real files hold."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from deft_hf.data.annotations import detect
from deft_hf.data.annotations.coco import read
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from .exports import HOUSE, SIZE, TREE, coco, expected, image, write
from .test_shapes import star

LABELS = LabelSpace(("background", "house", "tree"))


def test_polygons_of_two_classes(tmp_path):
    coco(tmp_path)
    assert read(tmp_path).names == ["background", "house", "tree"]
    domain = Domain.from_annotations(tmp_path, LABELS, "coco")
    assert domain.ids == ["b", "a"]
    picture, mask = domain.load(1)
    np.testing.assert_array_equal(mask, expected())
    assert picture.size == SIZE and mask.dtype == np.uint8
    assert not domain.load(0)[1].any()  # listed without annotations
    found = detect(tmp_path)
    assert (found.format, found.names, found.splits, found.images) == ("coco", ["background", "house", "tree"], [], 2)


def test_every_bit_is_that_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    size = (90, 120)
    annotations = []
    for index in range(30):
        reach = rng.uniform(1, 40)
        rings = [star(rng, rng.integers(3, 25), reach, rng.uniform(-10, 120, 2)) for _ in range(rng.integers(1, 4))]
        annotations.append({"id": index, "image_id": 1, "category_id": 1 + index % 3, "segmentation": rings})
    crowd = np.asfortranarray(rng.random(size) < 0.01).astype(np.uint8)
    flat = crowd.ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    packed = rle.encode(np.asfortranarray(rng.random(size) < 0.01).astype(np.uint8))
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    for segmentation in ({"size": size, "counts": counts}, packed):
        row = {"id": len(annotations), "image_id": 1, "category_id": 2, "iscrowd": 1, "segmentation": segmentation}
        annotations.append(row)
    content = {
        "images": [{"id": 1, "file_name": "x.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": number, "name": f"c{number}"} for number in (1, 2, 3)],
        "annotations": annotations,
    }
    file = write(tmp_path / "all.json", content)
    image(tmp_path / "images" / "x.png", size[::-1])
    reference = np.zeros(size, np.uint8)
    api = COCO(file)
    for annotation in api.loadAnns(api.getAnnIds(imgIds=[1])):
        reference[api.annToMask(annotation) == 1] = annotation["category_id"]
    _, mask = Domain.from_annotations(tmp_path, format="coco").load(0)
    np.testing.assert_array_equal(mask, reference)
    assert len(np.unique(mask)) == 4


def test_splits_are_files_or_folders(tmp_path):
    for split, folder in (("train2017", "one"), ("val2017", "two")):
        coco(tmp_path / folder, "", "x.json")
        coco(tmp_path / "three", "annotations", f"instances_{split}.json")
        (tmp_path / "three" / "annotations" / "a.png").unlink()
        (tmp_path / "three" / "annotations" / "b.png").unlink()
        for file in ("a.png", "b.png"):
            image(tmp_path / "three" / split / file, seed=len(split))
    assert detect(tmp_path).splits == ["one", "two"]
    (tmp_path / "three" / "annotations" / "captions_val2017.json").write_text('{"images": [], "annotations": []}')
    assert detect(tmp_path / "three").splits == ["train2017", "val2017"]
    domain = Domain.from_annotations(tmp_path / "three", LABELS, "coco", split="val2017")
    assert domain.ids == ["val2017/b", "val2017/a"] and domain.name == "three"
    np.testing.assert_array_equal(domain.load(1)[1], expected())
    assert len(Domain.from_annotations(tmp_path / "three", LABELS)) == 4
    with pytest.raises(UserError, match="has no split 'val', expected one of train2017, val2017"):
        Domain.from_annotations(tmp_path / "three", LABELS, split="val")


def test_classes_are_matched_by_name(tmp_path):
    coco(tmp_path)
    labels = LabelSpace(("built", "background"), other_names={"house": 0, "tree": 255})
    np.testing.assert_array_equal(
        Domain.from_annotations(tmp_path, labels).load(1)[1], np.array([1, 0, 255], np.uint8)[expected()]
    )
    with pytest.raises(
        UserError,
        match=r'has classes that labels.names lacks: background, tree.*ids: \{"background": 255, "tree": 255\}',
    ):
        Domain.from_annotations(tmp_path, LabelSpace(("house", "car")))
    # A class that no shape is of is no mistake.
    coco(tmp_path, categories=[{"id": 4, "name": "house"}, {"id": 9, "name": "tree"}, {"id": 11, "name": "unicorn"}])
    assert Domain.from_annotations(tmp_path, LABELS).load(1)[1].max() == 2


def test_a_class_called_background_is_the_background(tmp_path):
    categories = [{"id": 4, "name": "house"}, {"id": 9, "name": "Background"}]
    coco(tmp_path, categories=categories)
    assert read(tmp_path).names == ["Background", "house"]
    _, mask = Domain.from_annotations(tmp_path).load(1)
    np.testing.assert_array_equal(mask, expected(tree=0))


def test_orphans_are_named(tmp_path):
    coco(tmp_path)
    image(tmp_path / "more" / "c.png")
    (tmp_path / "b.png").unlink()
    domain = Domain.from_annotations(tmp_path, LABELS)
    assert domain.ids == ["a"]
    assert domain.report.images_without_mask == ["more/c"] and domain.report.masks_without_image == ["b"]
    report = domain.check()
    assert report.masks_without_image == ["b"] and report.sizes == {SIZE[::-1]: 1}
    report.raise_if_bad()


def test_windows_paths_and_urls_lead_to_the_file(tmp_path):
    names = ["data\\far\\a.png", "https://example.org/x/y/b.png"]
    images = [{"id": 7, "file_name": names[1], "width": 40, "height": 30}]
    images.append({"id": 3, "file_name": names[0], "width": 40, "height": 30})
    coco(tmp_path, images=images)
    for place in ("far", "near"):
        image(tmp_path / place / "a.png")
    (tmp_path / "a.png").unlink()
    assert Domain.from_annotations(tmp_path, LABELS).ids == ["b", "far/a"]
    images[1]["file_name"] = "a.png"
    coco(tmp_path, images=images)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a.png may be any of .*far.*near"):
        Domain.from_annotations(tmp_path, LABELS)


def test_boxes_are_no_masks(tmp_path):
    rows = [{"id": 1, "image_id": 3, "category_id": 4, "segmentation": [], "bbox": [1, 2, 3, 4]}]
    rows.append({"id": 2, "image_id": 3, "category_id": 9, "segmentation": [TREE]})
    coco(tmp_path, annotations=rows)
    assert detect(tmp_path).problems == [
        "annotations without an area or an image, left out: 1, such as annotation 1 of annotations.json"
    ]
    assert "annotations without an area or an image, left out: 1" in str(
        Domain.from_annotations(tmp_path, LABELS).check()
    )
    coco(tmp_path, annotations=rows[:1])
    with pytest.raises(UserError, match="holds boxes or points without segmentation, which are no masks"):
        Domain.from_annotations(tmp_path, LABELS)
    assert "no masks" in detect(tmp_path).problems[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"images": [', "cannot be read as JSON"),
        ({"images": [], "annotations": [{"id": 1}], "categories": []}, "is no COCO file .*category_id"),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, "is no COCO file .*file_name"),
        (
            {"images": [], "categories": [], "annotations": [{"id": 5, "category_id": 8}]},
            "annotation 5 of .* has category_id 8",
        ),
    ],
)
def test_a_damaged_file_is_one_message(content, problem, tmp_path):
    write(tmp_path / "x.json", content)
    with pytest.raises(UserError, match=problem):
        Domain.from_annotations(tmp_path, LABELS, "coco")
    assert len(detect(tmp_path).problems) == 1


def test_damaged_run_lengths_and_other_sizes_are_found_by_the_check(tmp_path):
    segmentation = {"size": [30, 40], "counts": [5, 1000]}
    coco(tmp_path, annotations=[{"id": 1, "image_id": 3, "category_id": 4, "segmentation": segmentation}])
    report = Domain.from_annotations(tmp_path, LABELS).check()
    assert "annotations.json: a.png: holds a shape that cannot be drawn (coco: run lengths of 1005" in report.unfit[0]
    coco(tmp_path)
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png")
    report = Domain.from_annotations(tmp_path, LABELS).check()
    assert "annotations.json: a.png: is 40 x 30 (width x height), but its image" in report.unequal[0]


def test_what_has_no_such_file_is_no_coco(tmp_path):
    write(tmp_path / "a.json", {"shapes": [], "imagePath": "a.png"})
    write(tmp_path / "b.json", json.dumps([{"id": 1, "annotations": []}]))
    assert detect(tmp_path) is None or detect(tmp_path).format != "coco"
    with pytest.raises(UserError, match="has no COCO file"):
        Domain.from_annotations(tmp_path, LABELS, "coco")
    with pytest.raises(UserError, match="no such folder"):
        Domain.from_annotations(tmp_path / "nowhere", LABELS, "coco")
    with pytest.raises(UserError, match="annotations: found 'voc2', expected one of"):
        Domain.from_annotations(tmp_path, LABELS, "voc2")


def test_a_moved_corner_is_other_data(tmp_path):
    coco(tmp_path)
    before = Domain.from_annotations(tmp_path, LABELS).contents
    (tmp_path / "elsewhere").mkdir()
    coco(tmp_path / "elsewhere")
    assert [row[2] for row in Domain.from_annotations(tmp_path / "elsewhere", LABELS).contents] == [
        row[2] for row in before
    ]
    moved = [{"id": 1, "image_id": 3, "category_id": 4, "segmentation": [[11, *HOUSE[1:]]]}]
    coco(tmp_path, annotations=[*moved, {"id": 2, "image_id": 3, "category_id": 9, "segmentation": [TREE]}])
    after = Domain.from_annotations(tmp_path, LABELS).contents
    assert before[0] == after[0] and before[1] != after[1] and before[1][:2] == after[1][:2]
