"""Whether files are photos or masks, by what folders and files are called and by what they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deft_hf.data.look import Look, opened
from deft_hf.utils.errors import UserError

_MASKS = ("mask", "label", "gt", "annot", "seg", "groundtruth", "truth", "target", "lbl", "instance", "msk")
_IMAGES = ("image", "img", "photo", "rgb", "input", "frame", "jpegimages", "picture", "raw", "leftimg8bit")
SPLITS = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "testset"),
}
FLAT = 0.8
"""From which share of equal neighbours on pictures look like masks."""
_SAMPLED = 4
_SIDE = 512


def words(name: str) -> list[str]:
    """The words of a name in lower case: `leftImg8bit` has `left`, `img8bit`, and `trainannot` `train`, `annot`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    joined = rf"\b({'|'.join(name for names in SPLITS.values() for name in names)})(?={'|'.join(_MASKS + _IMAGES)})"
    return re.findall(r"[a-z0-9]+", re.sub(joined, r"\1 ", apart))


def split_of(name: str) -> str | None:
    """`train`, `val` or `test`, if a folder is called so."""
    found = [word.rstrip("0123456789") for word in words(name)]
    return next((split for split, names in SPLITS.items() if any(word in names for word in found)), None)


def called(parts: Sequence[str]) -> str | None:
    """`mask` or `image`, if a path or the end of a file's name says that of what it holds."""
    # "images" of a folder "segmentation/images" is nearer to the files than "segmentation".
    for part in reversed(parts):
        found = [part.lower(), *words(part)]
        for kind, names in (("mask", _MASKS), ("image", _IMAGES)):
            if any(word.startswith(names) for word in found):
                return kind
    return None


def flatness(files: Sequence[Path]) -> float:
    """How much some of the pictures are made of areas of one value: above 0.8 for masks, 0 for what is lossy.

    Args:
        files (`Sequence[Path]`):
            Pictures, of which a few are opened; those that cannot be are left out.

    Returns:
        `float`: the mean share of pixels that have their neighbour's value, in 0..1.
    """
    shares = []
    for path in files[:: max(1, len(files) // _SAMPLED)][:_SAMPLED]:
        try:
            with opened(str(path)) as picture:
                if Look.at(picture).lossy:
                    return 0.0
                picture.load()
                pixels = np.asarray(picture)[:_SIDE, :_SIDE]
        except (OSError, UserError, ValueError, SyntaxError):
            continue
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        same = (pixels[:, 1:] == pixels[:, :-1]).all(-1)
        shares.append(float(same.mean()) if same.size else 1.0)
    return float(np.mean(shares)) if shares else 0.0
