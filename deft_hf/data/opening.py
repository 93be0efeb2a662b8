"""Opening the images and masks of a domain: the one place where files become pixels, for every command."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from PIL import Image

from deft_hf.data.annotations.shapes import drawn
from deft_hf.data.look import opened
from deft_hf.data.masks import as_stored
from deft_hf.data.pictures import ValueRange, as_rgb
from deft_hf.utils.errors import UnreadableFile, UserError

Stored = dict[str, Any] | None
"""A cell of an image column: `{"bytes": ..., "path": ...}`, as `datasets.Image(decode=False)` gives it."""

MaskReader = Callable[[dict[str, Any], str], tuple[Image.Image, str]]
"""What makes of a row, and of what messages call its mask where that is no file, the mask as stored and its name."""


def open_picture(stored: Stored, name: str, value_range: ValueRange | None = None) -> tuple[Image.Image, str]:
    """Decodes a cell of an image column to RGB, turned as its EXIF orientation says.

    Args:
        stored (`dict` or `None`):
            `{"bytes": ..., "path": ...}`, as `datasets.Image(decode=False)` gives it.
        name (`str`):
            What messages call the cell where it is no file of its own.
        value_range (`tuple[float, float]`, *optional*):
            What is black and what is white in images of more than 8 bits.

    Returns:
        `tuple[Image, str]`: The decoded picture, and the name that messages should use.

    Raises:
        UnreadableFile: The file is missing, truncated or no picture.
        UserError: Its values would not be read as they are, see `deft_hf.data.pictures.as_rgb`.
    """
    return decode(stored, name, lambda picture, known: as_rgb(picture, known, value_range))


def open_mask(stored: Stored, name: str) -> tuple[Image.Image, str]:
    """Decodes a cell of a mask column as it is stored; see `open_picture` and `deft_hf.data.masks.as_stored`."""
    return decode(stored, name, as_stored)


def open_row(
    row: dict[str, Any], name: str, size: tuple[int, int] | None, reader: MaskReader | None
) -> tuple[Image.Image, str]:
    """Decodes the mask of a row of a domain, however it is stored.

    Args:
        row (`dict`):
            The row.
        name (`str`):
            What messages call the mask where it is no file of its own.
        size (`tuple[int, int]` or `None`):
            (width, height) of its image, which some shapes need; `None` if it cannot be read.
        reader (`MaskReader` or `None`):
            The one of the domain.
    """
    if reader is not None:
        return reader(row, name)
    return drawn(row["shapes"], size) if "shapes" in row else open_mask(row["mask"], name)


def decode(stored: Stored, name: str, finish: Callable[[Image.Image, str], Image.Image]) -> tuple[Image.Image, str]:
    """Opens a cell of an image column and hands the picture, and what messages call it, on; see `open_picture`."""
    if stored is None:
        raise UnreadableFile(f"{name}: the row holds no file; fill it in or leave the pair out")
    if stored["bytes"] is None:
        name = stored["path"]
    try:
        if stored["bytes"] is None and os.path.exists(name) and not os.path.isfile(name):
            raise OSError("no regular file")  # opening a pipe would wait for ever
        try:
            picture = opened(name if stored["bytes"] is None else stored["bytes"])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return finish(picture, name), name
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over.
        raise UnreadableFile(f"{name}: cannot be read ({error}); replace the file or leave the pair out") from error


def unequal(image: Image.Image, image_name: str, mask: Image.Image, mask_name: str) -> str:
    """What to say of an image and a mask of unequal sizes."""
    # A mask drawn on the stored pixels of a photo whose EXIF tag turns it fits once the tag is gone.
    turned = ", or remove the image's EXIF orientation if that turned it" if image.size == mask.size[::-1] else ""
    return (
        f"{mask_name}: is {mask.width} x {mask.height} (width x height), but its image {image_name} is "
        f"{image.width} x {image.height}; make them one size{turned}, or leave the pair out"
    )
