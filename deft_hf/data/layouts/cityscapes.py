"""Cityscapes, and data sets that hold its ids or its train ids.

Ids: https://github.com/mcordts/cityscapesScripts (helpers/labels.py). BDD100K and UrbanSyn store train ids; 19 of
UrbanSyn is what it does not label.
"""

from __future__ import annotations

from dataclasses import replace

from deft_hf.data.official import Layout, Place
from deft_hf.data.spaces import CITYSCAPES, STREET7, street

# To 34, the licence plate of GTA5: -1 in Cityscapes, whose scripts do not draw it.
_IDS = dict.fromkeys(range(35)) | dict(
    zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), CITYSCAPES.names, strict=True)
)
_MORE_OF_SEVEN = {
    9: "drivable",
    10: "non-drivable",
    14: "roadside objects",
    15: "far objects",
    16: "far objects",
    18: "roadside objects",
    29: "vehicles",
    30: "vehicles",
}
_TRAIN_IDS = street(dict(enumerate(CITYSCAPES.names)), stored="train ids")

_IDS_READ = street(_IDS, _MORE_OF_SEVEN)
LABELS = {
    "cityscapes": _IDS_READ,
    "cityscapes_train_ids": _TRAIN_IDS | {"cityscapes": replace(CITYSCAPES, stored="train ids")},
    "urbansyn": street(dict(enumerate([*CITYSCAPES.names, None])), stored=None),
    "synthia16": {"synthia16": _IDS_READ["synthia16"]},
    "street7": {"street7": STREET7},
}


def in_ids_or_train_ids(*places: tuple[str, str], suffix: str, kind: str) -> tuple[Place, ...]:
    """Masks with the ids of a download, or else with the train ids that Cityscapes' scripts make of them.

    Args:
        *places (`tuple[str, str]`):
            Folders of images and of masks.
        suffix (`str`):
            Of the images' names.
        kind (`str`):
            What the masks are called before `_labelIds` or `_labelTrainIds`.
    """
    held = (("labelIds", None), ("labelTrainIds", "cityscapes_train_ids"))
    return tuple(
        Place(images, masks, suffix, f"{kind}_{name}", labels=labels)
        for images, masks in places
        for name, labels in held
    )


_TERMS = ("non-commercial, after registration", "https://www.cityscapes-dataset.com/license/", True)

LAYOUTS = {
    "cityscapes": Layout(
        in_ids_or_train_ids(
            ("leftImg8bit/{split}", "gtFine/{split}"),
            ("leftImg8bit_trainvaltest/leftImg8bit/{split}", "gtFine_trainvaltest/gtFine/{split}"),
            suffix="_leftImg8bit",
            kind="_gtFine",
        ),
        "cityscapes",
        "Cityscapes",
        *_TERMS,
    ),
    "foggy_cityscapes": Layout(
        in_ids_or_train_ids(
            ("leftImg8bit_foggy/{split}", "gtFine/{split}"),
            ("leftImg8bit_trainvaltest_foggy/leftImg8bit_foggy/{split}", "gtFine_trainvaltest/gtFine/{split}"),
            suffix="_leftImg8bit_foggy_{condition}",
            kind="_gtFine",
        ),
        "cityscapes",
        "Foggy Cityscapes",
        *_TERMS,
        conditions={name: name for name in ("beta_0.005", "beta_0.01", "beta_0.02")},
    ),
    "bdd100k": Layout(
        (
            Place("images/10k/{split}", "labels/sem_seg/masks/{split}"),
            Place("seg/images/{split}", "seg/labels/{split}", mask_suffix="_train_id"),
        ),
        "cityscapes_train_ids",
        "BDD100K",
        "BDD100K licence",
        "https://doc.bdd100k.com/license.html",
    ),
    "urbansyn": Layout(
        (Place("rgb", "ss", image_prefix="rgb_", mask_prefix="ss_"),),
        "urbansyn",
        "UrbanSyn",
        "CC BY-SA 4.0",
        "https://huggingface.co/datasets/UrbanSyn/UrbanSyn",
        splits={},
    ),
}
