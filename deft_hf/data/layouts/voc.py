"""Pascal VOC 2012 for segmentation (Everingham et al., 2010): 21 ids in pictures with a palette, 255 on borders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deft_hf.data.annotations.reading import read_text
from deft_hf.data.official import Layout, Place
from deft_hf.data.spaces import classes
from deft_hf.utils.errors import UserError

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def _color(index: int) -> tuple[int, int, int]:
    """VOC's colour of an index: every third bit of it, the lowest first, from the highest bit of a channel on."""
    red, green, blue = (sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))
    return red, green, blue


_VOC = classes(*((name, _color(index)) for index, name in enumerate(_NAMES)))
LABELS = {"voc": {"voc": _VOC}}


def _members(root: Path, split: str, ids: Sequence[str]) -> list[str]:
    roots = [root, root / "VOC2012", root / "VOCdevkit/VOC2012"]
    files = [each / "ImageSets" / "Segmentation" / f"{split}.txt" for each in roots]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UserError(f"{files[0]}: no such file, which lists the images of {split}; unpack the download again")
    return read_text(path).split()


LAYOUTS = {
    "voc": Layout(
        tuple(
            Place(f"{root}JPEGImages", f"{root}SegmentationClass") for root in ("", "VOC2012/", "VOCdevkit/VOC2012/")
        ),
        "voc",
        "Pascal VOC 2012",
        "those of Flickr",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        splits={"train": "train", "val": "val", "trainval": ""},
        listed=True,
        members=_members,
        recognised=False,  # exports of annotation tools look the same
    )
}
