"""The pixels of PNG files, in a third of the time that Pillow takes for them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from PIL import Image

_MODES = {"L": "mono", "RGB": "rgb"}
_MOST_PIXELS = 1 << 25  # of a larger one, memory would hold the file and two copies of the pixels


def loaded(picture: Image.Image) -> Image.Image:
    """An opened picture with its pixels, as `picture.load()` gives them.

    Plain PNG files of 8 bits, grey or RGB, are decoded by kornia-rs; all others, very large ones, and what kornia-rs
    stumbles over, by Pillow. So is what a thread asks for: kornia-rs holds Python's lock meanwhile, and Pillow does
    not.
    """
    pixels = _by_kornia(picture) if threading.current_thread() is threading.main_thread() else None
    if pixels is None:
        picture.load()
        return picture
    decoded = Image.fromarray(pixels)
    decoded.info = picture.info
    picture.close()
    return decoded


def _by_kornia(picture: Any) -> np.ndarray | None:
    tiles = picture.tile if picture.format == "PNG" else []
    if len(tiles) != 1 or picture.width * picture.height > _MOST_PIXELS:
        return None
    if picture.mode not in _MODES or tiles[0].args != picture.mode:
        return None
    from kornia_rs.io import decode_image_png_u8

    place = picture.fp.tell()
    picture.fp.seek(0)
    content = picture.fp.read()
    picture.fp.seek(place)
    if not _ends_in_pixels(content, tiles[0].offset - 8):
        return None
    try:
        pixels = decode_image_png_u8(content, (picture.height, picture.width), _MODES[picture.mode])
    except Exception:  # Pillow makes something of it, or says what is wrong
        return None
    return pixels[..., 0] if picture.mode == "L" else pixels


def _ends_in_pixels(content: bytes, place: int) -> bool:
    """Whether a PNG file holds nothing but pixels from a place on. An orientation may stand behind them."""
    while content[place + 4 : place + 8] == b"IDAT":
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return content[place + 4 : place + 8] == b"IEND"
