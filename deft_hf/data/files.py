"""Finding the files of a domain."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

from deft_hf.data.report import listed
from deft_hf.utils.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def files_by_id(folder: Path, suffix: str, prefix: str = "") -> dict[str, str]:
    """Path of each image file below a folder by its id: the path relative to the folder, without `suffix` and type.

    A suffix may end with a type (`_mask.png`, `.jpg`, `.json`); then only files of that type count. A prefix is left
    out of the ids of files that have it.

    Ids are in Unicode's composed form (NFC): macOS decomposes what other systems and a `split.json` write composed.

    Raises:
        UserError: No such folder, no image in it, two files of one id, or a name that is no UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the images or masks of a domain there")
    typed = suffix.lower().endswith((*IMAGE_SUFFIXES, ".json"))
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        if loop := next((name for name in folders if _leads_back(Path(parent, name))), None):
            raise UserError(f"{Path(parent, loop)}: links to a folder that it lies in; remove the link")
        for file in files:
            name = unicodedata.normalize("NFC", file)
            stem, extension = os.path.splitext(name)
            stem = name if typed else stem
            is_one = stem.endswith(suffix) and (typed or extension.lower() in IMAGE_SUFFIXES)
            if not is_one or file.startswith("."):
                continue
            path = Path(parent, file)
            check_name(path)
            if stem == suffix and path.parent == folder:  # in a folder of its own, that is the id
                raise UserError(f"{path}: nothing is left of its name without the suffix {suffix!r}; rename it")
            place = path.parent.relative_to(folder).as_posix()
            key = unicodedata.normalize(
                "NFC", (Path(place) / stem.removesuffix(suffix).removeprefix(prefix)).as_posix()
            )
            if key in found:
                raise UserError(f"{path}: has the same id ({key}) as {found[key]}; keep one of them")
            found[key] = str(path)
    if not found:
        ending = suffix if typed else f"{suffix}{{{','.join(IMAGE_SUFFIXES)}}}"
        raise UserError(
            f"{folder}: holds no file that ends in {ending}; expected the images or masks of a domain there"
        )
    return dict(sorted(found.items()))


def check_name(path: str | os.PathLike) -> None:
    """Refuses a file name that no table or JSON file can hold.

    Raises:
        UserError: The name is no UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fspath(path)!r}: the name is not valid UTF-8; rename the file or its folder") from None


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def split_ids(path: Path, split: str) -> list[str]:
    """The ids that a split.json lists under `split`, each once.

    Raises:
        UserError: No such file, split or list of ids.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; write one that maps {split!r} to a list of ids, or ask for no split")
    try:
        splits = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_repetition)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no valid JSON ({error})") from error
    if not isinstance(splits, dict) or split not in splits:
        known = ", ".join(splits) if isinstance(splits, dict) else type(splits).__name__
        raise UserError(f"{path}: has no split {split!r}; found {known}")
    ids = splits[split]
    if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
        raise UserError(f"{path}: {split!r} holds {str(ids)[:80]}, expected a list of ids, each a text")
    ids = [unicodedata.normalize("NFC", key) for key in ids]
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"{path}: {split!r} is empty or lists an id more than once; list each id once")
    return ids


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python lets the last of two equal keys win without a word.
    names = [name for name, _ in pairs]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{repeated!r} is there twice; keep one")
    return dict(pairs)


def read_split(path: Path, split: str, pairs: set[str]) -> list[str]:
    """The ids that a split.json lists under `split`, each of which must be one of `pairs`."""
    ids = split_ids(path, split)
    if missing := [key for key in ids if key not in pairs]:
        raise UserError(
            f"{path}: {len(missing)} of the {len(ids)} ids of {split!r} are no pairs: {listed(missing)}; an id is the "
            f"path without its suffix, such as {min(pairs)!r}"
        )
    return ids
