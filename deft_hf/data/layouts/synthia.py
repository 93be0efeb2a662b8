"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): the class is the first channel of a PNG of 16 bits.

Ids: the README of the download. Lane markings, parking slots and road works are none of Cityscapes' classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.look import opened
from deft_hf.data.masks import as_stored
from deft_hf.data.official import Layout, Place
from deft_hf.data.opening import decode
from deft_hf.data.spaces import classes, street, table

# By id from 1 on: name, colour, the class of Cityscapes.
_ROWS = (
    ("sky", (70, 130, 180), "sky"),
    ("building", (70, 70, 70), "building"),
    ("road", (128, 64, 128), "road"),
    ("sidewalk", (244, 35, 232), "sidewalk"),
    ("fence", (64, 64, 128), "fence"),
    ("vegetation", (107, 142, 35), "vegetation"),
    ("pole", (153, 153, 153), "pole"),
    ("car", (0, 0, 142), "car"),
    ("traffic sign", (220, 220, 0), "traffic sign"),
    ("pedestrian", (220, 20, 60), "person"),
    ("bicycle", (119, 11, 32), "bicycle"),
    ("motorcycle", (0, 0, 230), "motorcycle"),
    ("parking slot", (250, 170, 160), None),
    ("road work", (128, 64, 64), None),
    ("traffic light", (250, 170, 30), "traffic light"),
    ("terrain", (152, 251, 152), "terrain"),
    ("rider", (255, 0, 0), "rider"),
    ("truck", (0, 0, 70), "truck"),
    ("bus", (0, 60, 100), "bus"),
    ("train", (0, 80, 100), "train"),
    ("wall", (102, 102, 156), "wall"),
    ("lane marking", (157, 234, 50), None),
)
_SYNTHIA22 = classes(*((name, color) for name, color, _ in _ROWS))
_CITYSCAPES = dict(enumerate([None, *(name for *_, name in _ROWS)]))
_MORE_OF_SEVEN = {13: "drivable", 14: "roadside objects", 22: "drivable"}

LABELS = {
    "synthia": street(_CITYSCAPES, _MORE_OF_SEVEN)
    | {"synthia22": table(_SYNTHIA22, dict(enumerate([None, *_SYNTHIA22.names])))},
    "synthia22": {"synthia22": _SYNTHIA22},
}


def read_mask(row: dict[str, Any], name: str) -> tuple[Image.Image, str]:
    """Reads the first channel, with all of its 16 bits; see `deft_hf.data.opening.MaskReader`."""
    return decode(row["mask"], name, _first_channel)


def _first_channel(picture: Image.Image, name: str) -> Image.Image:
    tiles: Any = getattr(picture, "tile", None)
    if not tiles or tiles[0].args not in ("RGB;16B", "RGBA;16B"):
        return as_stored(picture, name)
    stream: Any = getattr(picture, "fp", None)
    stream.seek(0)
    content = stream.read()
    # Pillow keeps the first of the two bytes. Told that the bytes are the other way round, it keeps the second.
    low, high = (np.asarray(_decoded(content, order))[..., 0].astype(np.int32) for order in "LB")
    return Image.fromarray(low | high << 8)


def _decoded(content: bytes, order: str) -> Image.Image:
    picture: Any = opened(content)
    picture.tile = [picture.tile[0]._replace(args=f"{picture.mode};16{order}")]
    picture.load()
    return picture


LAYOUTS = {
    "synthia": Layout(
        (Place("RGB", "GT/LABELS"), Place("RAND_CITYSCAPES/RGB", "RAND_CITYSCAPES/GT/LABELS")),
        "synthia",
        "SYNTHIA-RAND-CITYSCAPES",
        "CC BY-NC-SA 3.0",
        "https://synthia-dataset.net/",
        True,
        splits={},
        read_mask=read_mask,
    )
}
