"""Splits by share: which ids one part of a domain gets, so that look-alike neighbours are never on both sides.

Only the names of files are read. Frames of a video, tiles of one picture and copies of one image are alike, and their
names say so: they differ in the numbers at their end. Such a group stays together; a set that is a few long sequences
is cut inside them, at the same place at every start.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from deft_hf.utils.errors import UserError

# Of fewer groups than this, and of one that holds more than this share, the end is held out.
_FEWEST_GROUPS = 5
_LARGEST_GROUP = 0.25
# How far from the share, of a group, a border between two rows of tiles or two sequences is taken rather than a cut.
_TOLERANCE = 0.1

_COPY = re.compile(r"\.rf\.[0-9a-fA-F]+$")  # Roboflow's augmented copies of one image
_NUMBER = r"(?:(?:row|col|tile|r|c|x|y)?\d+)"
_WORD = r"(?:[ _.-][a-z]{1,16}|\))?"  # `_left` of `0001_left`, the bracket of `photo (1)`
_TILE = re.compile(rf"(?:^|[ _.-]){_NUMBER}[ _.,x-]{_NUMBER}{_WORD}$", re.IGNORECASE)
_FRAME = re.compile(rf"[ _.(-]*\d+[a-z]?{_WORD}$", re.IGNORECASE)


def take_share(ids: Iterable[str], share: float) -> list[str]:
    """The ids of one part of a domain.

    The part of `share` and that of `share - 1` have no id in common, and together are all of them. Smaller shares are
    parts of larger ones.

    Args:
        ids (`Iterable[str]`):
            All ids: paths without their type.
        share (`float`):
            Between 0 and 1: as many of the ids, from the beginning. Between -1 and 0: as many from the end.

    Returns:
        `list[str]`: Ids in natural order (`a2` before `a10`), at least one on either side.

    Raises:
        UserError: The share is 0, or not between -1 and 1, or there are fewer than two ids.

    Example:

    ```python
    >>> from deft_hf.data.splitting import take_share

    >>> take_share([f"frame_{number}" for number in range(1, 11)], -0.2)
    ['frame_9', 'frame_10']

    ```
    """
    if not 0 < abs(share) < 1:
        raise UserError(f"split: found the share {share:g}, expected one above 0 and below 1")
    line = sorted(ids, key=_natural)
    if len(line) < 2:
        raise UserError(f"split: found {len(line)} pair to split by a share of {abs(share):g}, expected at least two")
    cut = share if share > 0 else round(1 + share, 9)
    first = set(_first_part(line, cut))
    return [key for key in line if (key in first) == (share > 0)]


def look_alikes(ids: Iterable[str]) -> dict[str, list[str]]:
    """By what their names have in common, the ids of images that may be alike, in natural order."""
    groups: dict[str, list[str]] = {}
    for key in sorted(ids, key=_natural):
        groups.setdefault(_group(key), []).append(key)
    return groups


def long_sequences(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the groups that are cut, since there are few, or they are too large to be on one side as a whole."""
    most = _LARGEST_GROUP * sum(map(len, groups.values()))
    return [name for name, group in groups.items() if len(groups) < _FEWEST_GROUPS or len(group) > most]


def _first_part(line: Sequence[str], share: float) -> list[str]:
    groups = look_alikes(line)
    cut = long_sequences(groups)
    first = [key for name in cut for key in groups[name][: _cut(groups[name], share)]]
    # In an order of its own that new images leave as it is: by name, all of one kind would be at the end.
    order = sorted(groups.keys() - set(cut), key=lambda name: hashlib.sha256(name.encode()).digest())
    borders = [0, *accumulate(len(groups[name]) for name in order)]
    possible = range(len(borders)) if cut else range(1, len(borders) - 1)  # a group on either side
    near = min(possible, key=lambda index: abs(borders[index] - share * borders[-1]))
    first += [key for name in order[:near] for key in groups[name]]
    return first if 0 < len(first) < len(line) else [*line[: 1 if not first else -1]]


def _cut(group: Sequence[str], share: float) -> int:
    """Where a sequence is cut: between two rows of tiles, or two sequences, if one is near."""
    wanted = share * len(group)
    rows = [_FRAME.sub("", key) for key in group]
    borders = [index for index in range(1, len(group)) if rows[index] != rows[index - 1]]
    near = [border for border in borders if abs(border - wanted) <= _TOLERANCE * len(group)]
    return min(near, key=lambda border: abs(border - wanted)) if near else round(wanted)


def _group(key: str) -> str:
    folder, _, stem = key.rpartition("/")
    stem = _COPY.sub("", stem)
    rest = _TILE.sub("", stem)
    if rest == stem:
        rest = _FRAME.sub("", stem)
    return f"{folder}/{rest}"


def _natural(key: str) -> tuple:
    # Text and numbers take turns, so that like is compared with like.
    parts = re.split(r"(\d+)", key)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), key
