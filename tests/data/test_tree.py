"""Images and masks are found however a folder is laid out."""

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.likeness import called, split_of
from deft_hf.data.tree import find_places

SIZE = (12, 16)
NUMBERS = range(3)
LABELS = LabelSpace(("ground", "thing"))


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (*SIZE, 3), np.uint8)).save(path)


def mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros(SIZE, np.uint8)
    ids[3:9, 2:7] = 1
    Image.fromarray(ids).save(path)


def draw(root, images, masks, numbers=NUMBERS):
    for number in numbers:
        image(root / images.format(number))
        if masks:
            mask(root / masks.format(number))


def found(root):
    """Folder, images, masks, suffixes, split and place of all that is found, and whether every pair can be read."""
    places = find_places(root)
    for place in places:
        if place.masks is not None:
            options = {key: getattr(place, key) for key in ("images", "masks", "image_suffix", "mask_suffix")}
            domain = Domain.from_folder(root / place.folder, LABELS, **options)
            assert len(domain) == place.pairs and not domain.check().outside
    return [
        (p.folder, p.images, p.masks, p.image_suffix, p.mask_suffix, p.split, p.place, p.pairs)
        for p in sorted(places, key=lambda place: (place.masks is None, place.folder, place.images))
    ]


@pytest.mark.parametrize(
    "images, masks, expected",
    [
        ("images/{}.jpg", "masks/{}.png", ("images", "masks", "", "")),
        ("img/{}.png", "label/{}.png", ("img", "label", "", "")),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", ("JPEGImages", "SegmentationClass", "", "")),
        ("bilder/{}.png", "umrisse/{}.png", ("bilder", "umrisse", "", "")),  # told apart by what they hold
        ("a/{}.jpg", "b/{}_seg.png", ("a", "b", "", "_seg")),
        ("input/photos/{}_rgb.jpg", "truth/png/{}_truth.png", ("input/photos", "truth/png", "_rgb", "_truth")),
        ("images/far/{}.jpg", "masks/far/{}.png", ("images", "masks", "", "")),
        ("{}.jpg", "masks/{}.png", (".", "masks", "", "")),
        ("{}.jpg", "{}_mask.png", (".", ".", "", "_mask")),
        ("{}.png", "{}-gt.png", (".", ".", "", "-gt")),
        ("s{}_image.png", "s{}_label.png", (".", ".", "_image", "_label")),
        ("{}.jpg", "{}.png", (".", ".", ".jpg", ".png")),
        ("{}/image.png", "{}/mask.png", (".", ".", "image", "mask")),  # a folder for each pair
    ],
)
def test_pairs_of_one_place(tmp_path, images, masks, expected):
    draw(tmp_path, images, masks)
    assert found(tmp_path) == [(".", *expected, None, ".", 3)]


@pytest.mark.parametrize(
    "images, masks, folder, expected",
    [
        ("{split}/images/{{}}.jpg", "{split}/masks/{{}}.png", "{split}", ("images", "masks", "", "")),
        ("images/{split}/{{}}.jpg", "labels/{split}/{{}}_x.png", ".", ("images/{split}", "labels/{split}", "", "_x")),
        ("{split}/{{}}.png", "{split}annot/{{}}.png", ".", ("{split}", "{split}annot", "", "")),
        ("{split}/{{}}.png", "{split}_labels/{{}}_L.png", ".", ("{split}", "{split}_labels", "", "_L")),
        ("{split}/{{}}.jpg", "{split}/{{}}_mask.png", "{split}", (".", ".", "", "_mask")),
    ],
)
def test_a_folder_for_each_split(tmp_path, images, masks, folder, expected):
    names = {"train": "train", "validation": "val", "test": "test"}
    for split in names:
        draw(tmp_path, images.format(split=split), masks.format(split=split))
    wanted = [
        (folder.format(split=name), *(part.format(split=name) for part in expected), split, ".", 3)
        for name, split in names.items()
    ]
    assert sorted(found(tmp_path)) == sorted(wanted)


def test_places_with_and_without_labels(tmp_path):
    for place in ("town", "coast"):
        draw(tmp_path / place, "img/{}.jpg", "lbl/{}.png")
    draw(tmp_path, "client/{}.jpg", None)
    draw(tmp_path, "camera/images/{}.jpg", None)
    assert found(tmp_path) == [
        ("coast", "img", "lbl", "", "", None, "coast", 3),
        ("town", "img", "lbl", "", "", None, "town", 3),
        ("camera", "images", None, "", "", None, "camera", 3),
        ("client", ".", None, "", "", None, "client", 3),
    ]


def test_what_is_none_of_it_is_left_out(tmp_path):
    draw(tmp_path, "images/{}.jpg", "masks/{}.png")
    draw(tmp_path, ".thumbnails/{}.jpg", None)
    draw(tmp_path, "outputs/{}.png", None)
    (tmp_path / "outputs" / ".deft_hf.jsonl").write_text('{"command": "predict"}\n')
    image(tmp_path / "recipe.png")
    assert len(find_places(tmp_path, tmp_path / "recipe.png")) == 1
    assert len(find_places(tmp_path)) == 2


def test_frames_that_look_alike_are_no_masks(tmp_path):
    draw(tmp_path, "left/{}.png", None)
    draw(tmp_path, "right/{}.png", None)
    assert [place[2] for place in found(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    "name, split",
    [("train", "train"), ("valid", "val"), ("testing", "test"), ("trainannot", "train"), ("coast", None)],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


def test_the_name_next_to_the_files_counts():
    assert called(("segmentation", "images")) == "image" and called(("images", "gt")) == "mask"
    assert called(("town",)) is None
