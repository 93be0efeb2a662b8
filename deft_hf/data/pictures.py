"""Images in RGB: which modes are read and how; what would turn black, white or false-coloured is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from deft_hf.data.look import Look
from deft_hf.data.png import loaded
from deft_hf.utils.errors import UserError

ValueRange = tuple[float, float]

EIGHT_BITS = ("1", "L", "P", "RGB", "YCbCr")
"""Pillow's modes that are read as they are."""
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
"""Modes whose last band is dropped where it is a mask of 0 and 255, and refused where it holds more."""
DEEP = ("I;16", "I", "F")
"""Modes that are scaled to 8 bits, from a declared value range."""

DROPPED_ALPHA = "deft_hf_dropped_alpha"
"""In `info` of an image whose alpha channel was dropped although it hid some pixels."""

# What sensors and products count to; the first that holds an image's values is proposed.
USUAL_ENDS = (1, 255, 1023, 4095, 10000, 16383, 65535)
_FULL = 65535
_FULL_RANGE = (0, _FULL)
_BRIGHT = 2**15
_ONE_FRAME = ("PNG", "JPEG")


def as_rgb(picture: Image.Image, name: str, value_range: ValueRange | None = None) -> Image.Image:
    """Decodes an opened image to RGB, turned as its EXIF orientation says.

    Images of 8 bits are read as they are. Grey of 16 bits without a declared range counts as 0..65535 if it comes
    above the middle of that; what stays below, and grey of 32 bits or of fractions, needs a declared range.

    Args:
        picture (`Image`):
            An opened picture.
        name (`str`):
            The file's name, for messages.
        value_range (`tuple[float, float]`, *optional*):
            The values that become black and white in images of more than 8 bits; what lies outside is cut.

    Raises:
        UserError: Its bands, pages or depth would not be read as they are.
    """
    look = Look.at(picture)
    if problem := _problem(look):
        raise UserError(f"{name}: {problem}")
    picture = loaded(picture)
    if ";16" in look.rawmode and not look.mode.startswith("I"):
        _check_upper_bytes(picture, name, value_range)
    dropped = _check_alpha(picture, name) if look.mode in WITH_ALPHA else _hides(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    if look.mode in ("I", "F") or look.mode.startswith("I;16"):
        values = np.asarray(picture)
        if look.rawmode.startswith("I;32") and not look.signed:
            values = values.view(np.uint32)
        picture = _scaled(values, name, value_range, stretched=look.format == "PPM" and look.mode == "I")
    # Converting copies; what may have further frames keeps its file open, which the copy has not.
    rgb = picture if picture.mode == "RGB" and look.format in _ONE_FRAME else picture.convert("RGB")
    if dropped:
        rgb.info[DROPPED_ALPHA] = True
    return rgb


def check_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """A declared value range as a pair of numbers.

    Raises:
        UserError: No two finite numbers, the first below the second.
    """
    if value_range is None:
        return None
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise UserError(f"value_range: found {value_range!r}, expected [low, high], two numbers with low < high")
    return low, high


def _problem(look: Look) -> str | None:
    stored = len(Image.new(look.mode, (1, 1)).getbands())
    if look.bands > stored or (look.mode == "CMYK" and look.format != "JPEG") or look.mode == "RGBX":
        return (
            f"holds {max(look.bands, stored)} bands, and only three would be read; models take three here: save the "
            "three bands that matter as RGB"
        )
    if look.frames > 1 and look.format != "MPO":  # of a photo with smaller views, the first is the photo
        return f"holds {look.frames} pages or frames, of which only the first would be read; save one image a file"
    if look.signed and look.mode == "L":
        return "holds bytes with a sign, of which those below 0 would be read as white; save it as 8 bits without one"
    accepted = (*EIGHT_BITS, *WITH_ALPHA, *DEEP, "CMYK")
    if look.mode not in accepted and not look.mode.startswith("I;16"):
        return f"found an image of mode {look.mode}, expected grey or RGB; save it as a PNG of one of these"
    return None


def _check_upper_bytes(picture: Image.Image, name: str, value_range: ValueRange | None) -> None:
    bands: Any = picture.getextrema()  # a pair for each band, as there are several
    brightest = max(high for _, high in bands[:3])
    if value_range in (None, _FULL_RANGE) and brightest * 256 >= _BRIGHT:
        return
    raise UserError(
        f"{name}: holds colours of 16 bits up to about {brightest * 256 + 255} of {_FULL}, of which only the upper 8 "
        "bits can be read; scale them to 8 bits a colour and save them again"
    )


def _check_alpha(picture: Image.Image, name: str) -> bool:
    """Whether an alpha channel of 0 and 255 hides pixels."""
    histogram = picture.getchannel("A" if "A" in picture.getbands() else "a").histogram()
    used = [value for value, count in enumerate(histogram) if count]
    if set(used) <= {0, 255}:
        return used != [255]
    bands = len(picture.getbands())
    raise UserError(
        f"{name}: holds {bands} bands, the last of which (values {used[0]}..{used[-1]}) would be dropped as an alpha "
        f"channel; if it is one, flatten the image; if it is a band such as infrared, save the {bands - 1} others "
        "alone"
    )


def _hides(picture: Image.Image) -> bool:
    """Whether a transparent colour or index hides pixels; it is forgotten, so that it is dropped as an alpha is."""
    if "transparency" not in picture.info:
        return False
    alpha: Any = picture.convert("RGBA").getchannel("A").getextrema()
    del picture.info["transparency"]
    return alpha[0] < 255


def _scaled(values: np.ndarray, name: str, value_range: ValueRange | None, stretched: bool) -> Image.Image:
    short = values.itemsize == 2
    # Pillow has stretched a PGM file to all of 16 bits, by the maximum that it states.
    if stretched or (value_range is None and short and values.max() >= _BRIGHT):
        return Image.fromarray((values // 257).clip(0, 255).astype(np.uint8))
    if value_range is None:
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise UserError(f"{name}: holds no number, only NaN or infinity; replace the file or leave the pair out")
        low, high = finite.min(), finite.max()
        kind = "fractions" if values.dtype.kind == "f" else f"values of {16 if short else 32} bits,"
        end = next((end for end in USUAL_ENDS if high <= end), high)
        raise UserError(
            f"{name}: holds {kind} {low:g}..{high:g}, whose black and white are not known; declare them: "
            f"data.value_range in a recipe, value_range of a Domain, such as [{min(low, 0):g}, {end:g}]"
        )
    black, white = value_range
    known = np.nan_to_num(values.astype(np.float64), nan=black, posinf=white, neginf=black)
    scaled = (known - black) * (255 / (white - black))
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
