"""Masks as their files hold them: what cannot be meant is refused, and what Pillow scaled for viewing is undone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.look import Look
from deft_hf.data.png import loaded
from deft_hf.utils.errors import UserError

Color = tuple[int, int, int]

# Pillow stretches grey of 2 and 4 bits to 0..255: what one step becomes, by the start of its rawmode.
_STEPS = {"L;2": 85, "L;4": 17}
TRAIN_IDS = 19  # of Cityscapes
_NAMED_STORED = re.compile(r"label_?(?P<train>train_?)?ids$|(?P<alone>_train_?ids?)$", re.IGNORECASE)
_USED = "deft_hf_used_colors"  # in `info` of a mask, whose pixels are counted once


def as_stored(mask: Image.Image, name: str) -> Image.Image:
    """Decodes a mask to the values that its file holds.

    Args:
        mask (`Image`):
            An opened picture.
        name (`str`):
            The file's name, for messages.

    Raises:
        UserError: The file cannot hold ids or colours as they were drawn, or holds more than can be read.
    """
    look = Look.at(mask)
    if problem := _problem(look):
        raise UserError(f"{name}: {problem}")
    scaled = look.maximum not in (None, 255, 65535) and mask.mode in ("L", "I") and not _reads_raw(mask)
    mask = loaded(mask)
    if step := _STEPS.get(look.rawmode[:3]):
        return mask.point([value // step for value in range(256)])
    if scaled and look.maximum:
        stretched = np.asarray(mask).astype(np.int64)
        full = 255 if mask.mode == "L" else 65535
        return Image.fromarray(((stretched * look.maximum + full // 2) // full).astype(np.int32))
    if look.signed and mask.mode == "L":
        return Image.fromarray(np.asarray(mask).view(np.int8).astype(np.int32))
    return mask


def _reads_raw(mask: Image.Image) -> bool:
    """Has a binary PGM read as it is: Pillow would scale its values, and cut those above the maximum it states."""
    tiles: Any = getattr(mask, "tile", None)
    if not tiles or tiles[0].codec_name != "ppm":
        return False
    rawmode = "L" if mask.mode == "L" else "I;16B"
    mask.tile = [tiles[0]._replace(codec_name="raw", args=(rawmode, 0, 1))]  # type: ignore[attr-defined]
    return True


def _problem(look: Look) -> str | None:
    if look.lossy is not None:
        return (
            f"is compressed by {look.lossy}, which changes ids at every edge; export the masks again as PNG, from "
            "where they were drawn"
        )
    if look.frames > 1:
        return f"holds {look.frames} pages or frames, of which only the first would be read; save one mask a file"
    if ";16" in look.rawmode and not look.mode.startswith("I"):
        return (
            "holds colours of 16 bits, of which only the upper 8 would be read; SYNTHIA's LABELS are read as they are "
            "by layout: synthia; of others save the channel that has the class as a grey PNG of 8 or 16 bits"
        )
    if look.bands > len(Image.new(look.mode, (1, 1)).getbands()):
        return f"holds {look.bands} bands, of which only some would be read; save the one with the class as grey PNG"
    if look.format in ("TIFF", "PPM") and look.mode in ("1", "L") and look.rawmode.rstrip("R").endswith("I"):
        return "says that 0 is white (WhiteIsZero, PBM), so that ids would be read inverted; save it as PNG"
    if look.turned:
        return "says in its Orientation tag that it is to be turned, which masks are not; turn it and save it as PNG"
    return None


def check_alpha(channels: np.ndarray, name: str) -> None:
    """Refuses a coloured mask whose alpha channel says what its colours do not.

    Args:
        channels (`np.ndarray`):
            uint8 (H, W, 4).
        name (`str`):
            The file's name, for messages.

    Raises:
        UserError: One colour has several alphas: the class may be in alpha, or edges are smoothed.
    """
    alpha = channels[..., 3]
    if alpha.min() == alpha.max():
        return
    colors = channels[..., 0].astype(np.uint32) << 16 | channels[..., 1].astype(np.uint32) << 8 | channels[..., 2]
    alpha_of = np.zeros(1 << 24, np.uint8)
    alpha_of[colors] = alpha
    if (alpha_of[colors] != alpha).any():
        raise UserError(
            f"{name}: its alpha channel ({alpha.min()}..{alpha.max()}) tells pixels of one colour apart, and is not "
            "read; save the class as an id in a grey PNG, or flatten the mask if its edges are smoothed"
        )


def used_colors(mask: Image.Image) -> dict[int, Color]:
    """The indices that an indexed mask uses, and the colours that its palette gives them."""
    if _USED not in mask.info:
        palette = [*(mask.getpalette("RGB") or []), *bytes(768)]
        used = [index for index, count in enumerate(mask.histogram()) if count]
        mask.info[_USED] = {index: tuple(palette[3 * index : 3 * index + 3]) for index in used}
    return mask.info[_USED]


def check_stored(mask: Image.Image, name: str, stored: str) -> None:
    """Refuses train ids of Cityscapes where a data set's own ids are declared, and the other way round.

    A name says it by `labelIds` or `labelTrainIds`. Values say it too: train ids are 0 to 18 and 255, which is none of
    the ids; ids go on to 33 and more.

    Args:
        mask (`Image`):
            A decoded mask of 8 bits.
        name (`str`):
            The file's name.
        stored (`str`):
            What is declared: `"ids"` or `"train ids"`.

    Raises:
        UserError: Name or values contradict that.
    """
    highest = int(np.asarray(mask).max())  # quicker than counting, which only 255 needs
    used = [value for value, count in enumerate(mask.histogram()) if count] if highest == IGNORE_INDEX else [highest]
    high = [value for value in used if TRAIN_IDS <= value < IGNORE_INDEX]
    by_values = "ids" if high else "train ids" if IGNORE_INDEX in used and len(used) > 1 else None
    found = _NAMED_STORED.search(PurePath(name).stem)
    by_name = None if found is None else "train ids" if found["train"] or found["alone"] else "ids"
    said = [f"its name says {by_name}"] * (by_name is not None)
    if by_values is not None:
        shown = ", ".join(map(str, high[:3] if high else [*used[:-1][:3], IGNORE_INDEX]))
        said.append(f"its values, such as {shown}, are {by_values}")
    if {by_name, by_values} <= {stored, None}:
        return
    if stored == "ids":
        way_out = "name the files that hold ids (mask_suffix), or say labels: cityscapes_train_ids"
    else:
        way_out = (
            "name the files that hold train ids (mask_suffix), or say which ids they are, such as labels: cityscapes"
        )
    if by_name != by_values and None not in (by_name, by_values):
        way_out = "one of the two is wrong: unpack the file again, or rename it"
    raise UserError(f"{name}: is read as {stored}, but {' and '.join(said)}; {way_out}")


class Palettes:
    """The palettes of the indexed masks of one domain, seen one after another: an index must keep its colour.

    Args:
        ids_declared (`bool`):
            Whether the label space says what each index is. Then palettes may differ, unless a colour moves from one
            index to another.
    """

    def __init__(self, ids_declared: bool) -> None:
        self.ids_declared = ids_declared
        self._colors: dict[int, tuple[Color, str]] = {}
        self._indices: dict[Color, tuple[int, str]] = {}

    def note(self, colors: Mapping[int, Color], name: str) -> None:
        """Compares a mask's colours, as `used_colors` gives them, with those of the masks before.

        Raises:
            UserError: The palettes cannot both be right where ids are what counts.
        """
        for index, color in colors.items():
            known, first = self._colors.setdefault(index, (color, name))
            before, where = self._indices.setdefault(color, (index, name))
            if before != index and colors.get(before, color) != color:
                self._refuse(f"{color} is index {index}, but {before} in {where}", name)
            if known != color and not self.ids_declared:
                self._refuse(f"index {index} is {color}, but {known} in {first}", name)

    def _refuse(self, what: str, name: str) -> None:
        by_id = "say in labels.ids that the indices count, such as {0: 0, 1: 1}"
        if self.ids_declared:
            by_id = "save the masks with one palette, or without"
        raise UserError(
            f"{name}: its palette is not that of the other masks: {what}. If the colours count, list them in "
            f"labels.colors; else {by_id}"
        )
