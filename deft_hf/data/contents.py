"""What the files of a domain hold, as short digests: whether data is still what it was.

XXH3 (https://xxhash.com) of 128 bits tells one file from another at the speed of memory, which a cryptographic hash
does not; it is no defence against somebody who wants two files to be taken for one.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from typing import Any

from xxhash import xxh3_128, xxh3_128_hexdigest

from deft_hf.data.opening import Stored

_BLOCK = 2**20
_LARGE = 2**26
_LOOKED_AT = 32


def digest(stored: Stored) -> str:
    """The digest of a cell of an image column as it is stored; empty where nothing can be read."""
    if stored is None:
        return ""
    if stored["bytes"] is not None:
        return xxh3_128_hexdigest(stored["bytes"])
    found = xxh3_128()
    try:
        if not os.path.isfile(stored["path"]):  # opening a pipe would wait for ever
            return ""
        with open(stored["path"], "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()


def in_memory(row: dict[str, Any]) -> dict[str, Any]:
    """A pair whose files are read, so that digests and pixels come of one reading; very large ones are left alone."""
    return {name: _read(value) if name in ("image", "mask") else value for name, value in row.items()}


def _read(stored: Stored) -> Stored:
    if stored is None or stored["bytes"] is not None:
        return stored
    try:
        status = os.stat(stored["path"])
        if stat.S_ISREG(status.st_mode) and status.st_size <= _LARGE:
            with open(stored["path"], "rb", buffering=0) as stream:
                return {"bytes": stream.read(), "path": stored["path"], "file": True}
    except OSError:  # for the one who opens it to say
        pass
    return stored


def is_file(stored: Stored) -> bool:
    """Whether a cell of an image column is a file of its own, read by `in_memory` or not."""
    return stored is not None and (stored["bytes"] is None or "file" in stored)


def digests(row: dict[str, Any]) -> tuple[str, str, str]:
    """Id of a pair, and the digests of its image and of its mask, be it a file or shapes."""
    mask = xxh3_128_hexdigest(row["shapes"].encode()) if "shapes" in row else digest(row["mask"])
    if "segments" in row:
        mask = xxh3_128_hexdigest((mask + row["segments"]).encode())
    return row["id"], digest(row["image"]), mask


def fingerprint(domains: Iterable[Any]) -> str:
    """SHA-256 of all ids of domains, and of what a few evenly spaced pairs of each hold.

    It takes no time, however large they are, and tells domains apart unless only some of their images were exchanged.

    Args:
        domains (`Iterable[Domain]`):
            The domains, in order.
    """
    found = hashlib.sha256()
    for domain in domains:
        found.update("\0".join([*domain.ids, ""]).encode())
        count = len(domain.dataset)
        for position in sorted({index * count // _LOOKED_AT for index in range(_LOOKED_AT)}):
            found.update("\0".join(digests(domain.dataset[position])).encode())
    return found.hexdigest()
