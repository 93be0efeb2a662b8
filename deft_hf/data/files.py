"""Finding the files of a domain, and opening them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from deft_hf.data.report import listed
from deft_hf.utils.errors import UnreadableFile, UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def files_by_id(folder: Path, suffix: str) -> dict[str, str]:
    """Path of each image file below a folder by its id: the path relative to the folder, without `suffix` and type."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the images or masks of a domain there")
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        if loop := next((name for name in folders if _leads_back(Path(parent, name))), None):
            raise UserError(f"{Path(parent, loop)}: links to a folder that it lies in; remove the link")
        for file in files:
            stem, extension = os.path.splitext(file)
            if extension.lower() not in IMAGE_SUFFIXES or not stem.endswith(suffix) or file.startswith("."):
                continue
            path = Path(parent, file)
            key = (path.parent / stem.removesuffix(suffix)).relative_to(folder).as_posix()
            if key in found:
                raise UserError(f"{path}: has the same id ({key}) as {found[key]}; keep one of them")
            found[key] = str(path)
    if not found:
        ending = f"{suffix}{{{','.join(IMAGE_SUFFIXES)}}}"
        raise UserError(
            f"{folder}: holds no file that ends in {ending}; expected the images or masks of a domain there"
        )
    return dict(sorted(found.items()))


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def read_split(path: Path, split: str, pairs: set[str]) -> list[str]:
    """The ids that a split.json lists under `split`, each of which must be one of `pairs`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; write one that maps {split!r} to a list of ids, or ask for no split")
    try:
        splits = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no valid JSON ({error})") from error
    if not isinstance(splits, dict) or split not in splits:
        known = ", ".join(splits) if isinstance(splits, dict) else type(splits).__name__
        raise UserError(f"{path}: has no split {split!r}; found {known}")
    ids = splits[split]
    if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
        raise UserError(f"{path}: {split!r} holds {str(ids)[:80]}, expected a list of ids, each a text")
    if missing := [key for key in ids if key not in pairs]:
        raise UserError(
            f"{path}: {len(missing)} of the {len(ids)} ids of {split!r} are no pairs: {listed(missing)}; an id is the "
            f"path without its suffix, such as {min(pairs)!r}"
        )
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"{path}: {split!r} is empty or lists an id more than once; list each id once")
    return ids


def open_picture(stored: dict[str, Any] | None, name: str) -> tuple[Image.Image, str]:
    """Decodes a cell of an image column to RGB, turned as its EXIF orientation says; see `open_mask`."""
    return _decode(stored, name, _upright_rgb)


def open_mask(stored: dict[str, Any] | None, name: str) -> tuple[Image.Image, str]:
    """Decodes a cell of a mask column as it is stored.

    Args:
        stored: `{"bytes": ..., "path": ...}`, as `datasets.Image(decode=False)` gives it.
        name: What messages call the cell where it is no file of its own.

    Returns:
        The decoded picture, and the name that messages should use.

    Raises:
        UnreadableFile: The file is missing, truncated or no picture.
    """
    return _decode(stored, name, lambda mask: mask)


def _decode(
    stored: dict[str, Any] | None, name: str, finish: Callable[[Image.Image], Image.Image]
) -> tuple[Image.Image, str]:
    if stored is None:
        raise UserError(f"{name}: the row holds no file; fill it in or leave the pair out")
    if stored["bytes"] is None:
        name = stored["path"]
    try:
        if stored["bytes"] is None and os.path.exists(name) and not os.path.isfile(name):
            raise OSError("no regular file")  # opening a pipe would wait for ever
        picture = Image.open(name if stored["bytes"] is None else io.BytesIO(stored["bytes"]))
        picture.load()
        return finish(picture), name
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over.
        raise UnreadableFile(f"{name}: cannot be read ({error}); replace the file or leave the pair out") from error


def _upright_rgb(picture: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey values at 255, which turns a micrograph white.
        picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")
