"""What was found in files once, kept in the cache of the Hub's client for later starts.

Files are known again by path, size and times, as Git knows them, so that none has to be read for that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL
from huggingface_hub import constants
from xxhash import xxh3_128_hexdigest

from deft_hf import __version__
from deft_hf.data.contents import digest
from deft_hf.data.opening import Stored

_FORMAT = 2
# Files that changed so shortly ago may change again without another time: clocks of file systems tick every two
# seconds at the slowest (FAT).
_SETTLED = 2.0  # seconds
logger = logging.getLogger(__name__)


def stamps(rows: Iterable[dict[str, Any]]) -> tuple[str, list[str | None]]:
    """What tells, for each pair, whether its files are still those of an earlier start, without reading them.

    What is no file of its own, but bytes in a table or shapes, is hashed.

    Args:
        rows (`Iterable[dict]`):
            Rows of a domain's data set.

    Returns:
        `tuple[str, list[str | None]]`: what tells the list from others, whatever its files hold; and for each pair its
        stamp, `None` where a file is missing, or changed a moment ago.
    """
    before = time.time_ns() - int(_SETTLED * 1e9)
    listed, found = hashlib.sha256(f"{_FORMAT}\n".encode()), []
    for row in rows:
        parts, whole = [row["id"], row.get("shapes"), row.get("segments")], True
        listed.update((repr(row["id"]) + "\n").encode())
        for name in ("image", "mask"):
            stored = row.get(name)
            if stored is not None and stored["bytes"] is None:
                listed.update((repr(stored["path"]) + "\n").encode())
            cell = _cell(stored, before)
            whole &= cell is not None
            parts += cell or ()
        found.append(xxh3_128_hexdigest(repr(parts).encode()) if whole else None)
    return listed.hexdigest(), found


def stamp(rows: Iterable[dict[str, Any]]) -> str | None:
    """The [`stamps`] of all pairs in one; `None` where one of them has none."""
    return joined(stamps(rows)[1])


def joined(each: Iterable[str | None]) -> str | None:
    """Some [`stamps`] in one; `None` where one of them is."""
    parts = [*each]
    return None if None in parts else name_of("stamps", *parts)


def _cell(stored: Stored, before: int) -> tuple[Any, ...] | None:
    if stored is None:
        return ()
    if stored["bytes"] is not None:
        return (digest(stored),)
    path = os.path.abspath(stored["path"])
    try:
        status = os.stat(path)
    except OSError:
        return None
    if max(status.st_mtime_ns, status.st_ctime_ns) > before:
        return None
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def name_of(*parts: Any) -> str:
    """The name under which findings are kept, of all that they depend on; and of what looked.

    Args:
        parts (`Any`):
            Values whose `repr` says all of them.
    """
    return hashlib.sha256(repr((_FORMAT, __version__, PIL.__version__, *parts)).encode()).hexdigest()


def path_of(kind: str, name: str, suffix: str = "json") -> Path:
    """Where findings are kept (`HF_ASSETS_CACHE`).

    Args:
        kind (`str`):
            The folder, such as `pairs`.
        name (`str`):
            From [`stamp`] or [`name_of`].
        suffix (`str`, *optional*, defaults to `"json"`):
            Of the file.
    """
    return Path(constants.HF_ASSETS_CACHE, "deft_hf", kind, f"{name}.{suffix}")


def read(kind: str, name: str | None) -> Any:
    """What is kept; `None` where there is nothing, or something damaged.

    Args:
        kind (`str`):
            As for [`path_of`].
        name (`str` or `None`):
            As for [`path_of`].
    """
    try:
        return None if name is None else json.loads(path_of(kind, name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def write(kind: str, name: str | None, found: Any) -> None:
    """Keeps findings, as far as the disk lets it.

    Args:
        kind (`str`):
            As for [`path_of`].
        name (`str` or `None`):
            As for [`path_of`]; `None`: nothing is kept.
        found (`Any`):
            What JSON takes.
    """
    if name is not None:
        write_bytes(path_of(kind, name), json.dumps(found).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file of a cache whole, or says why not: a cache is no reason to stop.

    Args:
        path (`Path`):
            The file.
        content (`bytes`):
            What it is to hold.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")  # the other processes of a launcher keep it too
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        logger.warning(f"{path.parent.name} cannot be kept ({error}); they are made again at the next start.")
