"""What kind of picture a set holds, for its augmentation: by names, by the file's tags, by what is up and down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.likeness import words
from deft_hf.data.look import opened
from deft_hf.data.pictures import ValueRange
from deft_hf.runs.init.sources import Part, Sources
from deft_hf.utils.errors import UserError

_WORDS = {
    "aerial": ("aerial", "drone", "uav", "ortho", "orthophoto", "orthomosaic", "satellite", "sentinel", "dji", "naip"),
    "microscopy": (
        "cell",
        "cells",
        "nuclei",
        "nucleus",
        "microscopy",
        "microscope",
        "histology",
        "fluorescence",
        "tissue",
    ),
    "street": (
        "street",
        "streets",
        "cityscapes",
        "camvid",
        "drive",
        "dashcam",
        "gtav",
        "bdd100k",
        "mapillary",
        "kitti",
    ),
}
_GEOTIFF = (33550, 33922, 34735)
_LOOKED_AT = 16
_SIDE = 96
# Share of the pixels whose class would have to change for the upper third to be as the lower one.
_UPRIGHT = 0.35
_DARK = 60


def choose_augmentation(folder: Path, sources: Sources, value_range: ValueRange | None) -> tuple[str, str]:
    """A preset of `data.augment`, and why.

    Args:
        folder (`Path`):
            The folder that was looked at.
        sources (`Sources`):
            What was found there.
        value_range (`tuple[float, float]` or `None`):
            Of images of more than 8 bits.
    """
    if "official tree" in sources.layout:
        return "street", "scenes of streets: upright, at every distance"
    part = max(sources.labelled, key=lambda part: part.count)
    assert part.domain is not None
    named = [folder.resolve().name, part.place, *part.domain.ids[:3]]
    for kind, known in _WORDS.items():
        if word := next((word for name in named for word in words(name) if word in known), None):
            return kind, f"{word!r} stands in the names"
    if _has_coordinates(part):
        return "aerial", "the files have map coordinates (GeoTIFF)"
    images, ids = _sample(part, sources, value_range)
    if (distance := _up_and_down(ids)) > _UPRIGHT:
        return "street", f"what is above differs from what is below ({distance:.0%} of the labels), as from a vehicle"
    spread = np.mean([np.ptp(image, axis=-1).mean() for image in images])
    brightness = np.mean([np.median(image) for image in images])
    if spread < 8 and (brightness < _DARK or value_range is not None):
        return "microscopy", "grey pictures, dark or of more than 8 bits, with no up and down in their labels"
    return (
        "handheld",
        "nothing says what is up: a little rotation; aerial and microscopy turn images all the way round",
    )


def _sample(part: Part, sources: Sources, value_range: ValueRange | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    assert part.domain is not None
    images, ids = [], []
    count = len(part.domain)
    for index in sorted({step * count // _LOOKED_AT for step in range(_LOOKED_AT)}):
        try:
            image, mask = part.load(index, sources.space, value_range)
        except UserError:
            continue
        images.append(np.asarray(image.resize((_SIDE, _SIDE))).astype(np.float32))
        ids.append(np.asarray(Image.fromarray(mask).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)))
    return images, ids


def _up_and_down(ids: Sequence[np.ndarray]) -> float:
    """How far the classes of the upper third are from those of the lower, beyond left from right."""
    stack = np.stack(ids)
    third = _SIDE // 3
    vertical = _distance(stack[:, :third], stack[:, -third:])
    return vertical - _distance(stack[:, :, :third], stack[:, :, -third:])


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    shares = []
    for part in (one, two):
        counts = np.bincount(part[part != IGNORE_INDEX].ravel(), minlength=IGNORE_INDEX)
        shares.append(counts / max(1, counts.sum()))
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _has_coordinates(part: Part) -> bool:
    assert part.domain is not None
    stored = part.domain.dataset[0]["image"]
    try:
        with opened(stored["path"] if stored["bytes"] is None else stored["bytes"]) as picture:
            return any(tag in getattr(picture, "tag_v2", {}) for tag in _GEOTIFF)
    except (OSError, UserError):
        return False
