"""Where in a folder there are images and masks, however it is laid out."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from deft_hf.data.files import IMAGE_SUFFIXES
from deft_hf.data.likeness import FLAT, called, flatness, split_of
from deft_hf.utils.files import MARKER

Parts = tuple[str, ...]

# How much of a folder's files must have a partner, where no name says what the folder holds.
_MOST = 0.5
# Beyond these, names are no sign of a pair, or there are too many to compare.
_ENDS_AT_MOST, _FOLDERS_AT_MOST, _PARTS_AT_MOST, _NAMES_LOOKED_AT = 8, 64, 3, 6


@dataclass(frozen=True)
class Place:
    """Images of one place, and of one split if folders say so; as `Domain.from_folder` takes it.

    Attributes:
        folder (`str`):
            Its folder, relative to the one that was looked at; `.` for that.
        images (`str`):
            Folder of the images in it.
        masks (`str` or `None`):
            Folder of the masks in it; `None` where there are none.
        image_suffix (`str`):
            What images' names have after the part that they share with their masks.
        mask_suffix (`str`):
            What masks' names have after it.
        split (`str` or `None`):
            `train`, `val` or `test`.
        place (`str`):
            Path of what it is a split of; equal for the splits of one place.
        pairs (`int`):
            How many images have a mask; of a place without masks, how many there are.
    """

    folder: str
    images: str
    masks: str | None
    image_suffix: str = ""
    mask_suffix: str = ""
    split: str | None = None
    place: str = "."
    pairs: int = 0


def find_places(root: Path, leave_out: Path | None = None) -> list[Place]:
    """Where there are images in a folder, and their masks.

    Args:
        root (`Path`):
            The folder.
        leave_out (`Path`, *optional*):
            A picture in it that is none of the images.

    Returns:
        `list[Place]`: places with masks, then those without, each in the order of their paths.
    """
    tree = _Tree(root, leave_out)
    pairs = [*tree.pairs_inside()]
    pairs += tree.pairs_across({pair.images for pair in pairs})
    labelled: Counter[Place] = Counter()
    for pair in pairs:
        labelled[_place(pair)] += pair.files
    places = _as_samples([replace(place, pairs=count) for place, count in labelled.items()])
    without: Counter[Place] = Counter()
    used = {folder for pair in pairs for folder in (pair.images, pair.masks)}
    for folder, files in tree.folders.items():
        below = any(folder[: len(pair.masks)] == pair.masks and pair.masks != pair.images for pair in pairs)
        if folder not in used and not below and not tree.holds_masks(folder):
            without[_unlabelled(folder, [pair.images for pair in pairs])] += len(files)
    return places + [replace(place, pairs=count) for place, count in without.items()]


class _Pair(NamedTuple):
    images: Parts
    masks: Parts
    image_end: str
    mask_end: str
    files: int


class _Tree:
    """The pictures below a folder, by the parts of the path of their own; what commands wrote is left out."""

    def __init__(self, root: Path, leave_out: Path | None) -> None:
        self.root = root
        self.folders: dict[Parts, list[str]] = {}
        self._flatness: dict[tuple[Parts, str], float] = {}
        for parent, inner, files in os.walk(root):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if MARKER in files:
                inner.clear()
                continue
            pictures = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
            if leave_out is not None and Path(parent).resolve() == leave_out.resolve().parent:
                pictures = [name for name in pictures if name != leave_out.name]
            if pictures:
                self.folders[Path(parent).relative_to(root).parts] = sorted(pictures)

    def holds_masks(self, folder: Parts) -> bool:
        """Whether a folder without partner holds masks."""
        kind = called(folder[-1:])
        return kind == "mask" or (kind is None and self._flat(folder) >= FLAT)

    def pairs_inside(self) -> Iterator[_Pair]:
        """Folders that have masks beside their images."""
        for folder, files in self.folders.items():
            by_base: dict[str, set[str]] = defaultdict(set)
            for name in files:
                for base, end in _cuts(name):
                    by_base[base].add(end)
            together: Counter[tuple[str, str]] = Counter()
            for ends in by_base.values():
                if len(ends) <= _ENDS_AT_MOST:
                    together.update((one, two) for one in ends for two in ends if one < two)
            most = max(together.values(), default=0)
            if 2 * most < max(2, _MOST * len(files)):
                continue
            candidates = sorted((_length(ends), ends) for ends, count in together.items() if count == most)
            oriented = (self._oriented(folder, ends) for _, ends in candidates)
            if (found := next(filter(None, oriented), None)) is not None:
                yield _Pair(folder, folder, *_suffixes(found, files), most)

    def pairs_across(self, taken: set[Parts]) -> Iterator[_Pair]:
        """Folders of images with the folder of masks that is nearest; `taken` are left out."""
        by_base: dict[str, set[Parts]] = defaultdict(set)
        for folder in self.folders.keys() - taken:
            for name in self.folders[folder]:
                for base, _ in _cuts(name):
                    by_base[base].add(folder)
        together = {pair for base, shared in by_base.items() if base for pair in _candidates(shared)}
        best: dict[Parts, tuple[tuple, _Pair]] = {}
        for images, masks in sorted(together):
            near = _nearness(images, masks)
            found = near and _matched(self.folders[images], self.folders[masks])
            if not found or not self._is_pair(images, masks):
                continue
            pair = _Pair(images, masks, *found)
            enough = pair.files >= _MOST * min(len(self.folders[images]), len(self.folders[masks]))
            rank = near, pair.files
            if enough and (masks not in best or rank > best[masks][0]):
                best[masks] = rank, pair
        chosen: dict[Parts, _Pair] = {}
        for _, pair in best.values():
            if pair.images not in chosen or pair.files > chosen[pair.images].files:
                chosen[pair.images] = pair
        yield from chosen.values()

    def _oriented(self, folder: Parts, ends: tuple[str, str]) -> tuple[str, str] | None:
        """The ends of images and of masks, in this order; `None` if neither are masks."""
        kinds = [called([os.path.splitext(end)[0]]) for end in ends]
        if kinds[0] != kinds[1] and "mask" in kinds:
            return ends if kinds[1] == "mask" else ends[::-1]
        flat = [self._flat(folder, end) for end in ends]
        if max(flat) < FLAT:
            return None
        return ends if flat[1] >= flat[0] else ends[::-1]

    def _is_pair(self, images: Parts, masks: Parts) -> bool:
        _, one, two, _ = _apart(images, masks)
        kinds = called(one), called(two)
        if kinds[0] != kinds[1] and "mask" in kinds:
            return kinds[1] == "mask"
        return self._flat(masks) >= FLAT and self._flat(masks) > self._flat(images)

    def _flat(self, folder: Parts, end: str = "") -> float:
        key = folder, end
        if key not in self._flatness:
            files = [name for name in self.folders[folder] if name.endswith(end)]
            self._flatness[key] = flatness([self.root.joinpath(*folder, name) for name in files])
        return self._flatness[key]


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Where a name can be cut into what a pair has in common and what tells image from mask."""
    stem, extension = os.path.splitext(name)
    yield stem, extension
    for found in re.finditer(r"[ _.-]", stem):
        end = stem[found.start() :]
        if re.search("[A-Za-z]", end) and found.start():
            yield stem[: found.start()], end + extension
    if called([stem]) and not re.search(r"\d", stem):
        yield "", name  # a folder for each pair: `image.png` with `mask.png`


def _length(ends: tuple[str, str]) -> int:
    return sum(map(len, ends))


def _suffixes(ends: tuple[str, str], files: Sequence[str]) -> tuple[str, str]:
    """As `Domain.from_folder` takes them: with the type only where that tells images from the rest."""
    image, mask = ends
    bare = ["" if end in IMAGE_SUFFIXES else os.path.splitext(end)[0] for end in (image.lower(), mask.lower())]
    bare = [end[: len(short)] for end, short in zip(ends, bare, strict=True)]
    others = [name for name in files if not name.endswith((image, mask))]
    if bare[0] == bare[1] or (not bare[0] and others):
        return image, mask
    return bare[0], bare[1]


def _candidates(shared: set[Parts]) -> Iterator[tuple[Parts, Parts]]:
    """Pairs of folders that have a name in common; of many, those that are called the same or lie side by side."""
    if len(shared) <= _FOLDERS_AT_MOST:
        yield from permutations(shared, 2)
        return
    groups: dict[tuple, list[Parts]] = defaultdict(list)
    for folder in shared:
        groups[("parent", folder[:-1])].append(folder)
        groups[("name", folder[-1:])].append(folder)
    for group in groups.values():
        if len(group) <= _FOLDERS_AT_MOST:
            yield from permutations(group, 2)


def _nearness(images: Parts, masks: Parts) -> tuple[int, int] | None:
    """How much of the paths is the same, with few parts between; `None` for those of two splits."""
    start, one, two, end = _apart(images, masks)
    splits = [{split_of(part) for part in parts} - {None} for parts in (one, two)]
    if splits[0] != splits[1] or len(one) > _PARTS_AT_MOST or len(two) > _PARTS_AT_MOST:
        return None
    return len(start) + len(end), -len(one) - len(two)


def _apart(one: Parts, two: Parts) -> tuple[Parts, Parts, Parts, Parts]:
    """What two paths have in common at the start, what each has alone, and what they have in common at the end."""
    start = 0
    while start < min(len(one), len(two)) and one[start] == two[start]:
        start += 1
    end = 0
    while end < min(len(one), len(two)) - start and one[-1 - end] == two[-1 - end]:
        end += 1
    return one[:start], one[start : len(one) - end], two[start : len(two) - end], one[len(one) - end :]


def _matched(images: Sequence[str], masks: Sequence[str]) -> tuple[str, str, int] | None:
    """With what suffixes how many files pair: the shortest that pair the most."""
    found = []
    for one in _common_ends(images):
        ids = {os.path.splitext(name)[0].removesuffix(one) for name in images}
        for two in _common_ends(masks):
            count = len(ids & {os.path.splitext(name)[0].removesuffix(two) for name in masks} - {""})
            found.append((count, -_length((one, two)), one, two))
    count, _, one, two = max(found)
    return (one, two, count) if count else None


def _common_ends(names: Sequence[str]) -> list[str]:
    stems = [os.path.splitext(name)[0] for name in names]
    few = [cut for name in names[:_NAMES_LOOKED_AT] for cut in _cuts(name)]
    ends = {os.path.splitext(end)[0] for base, end in few if base and not end.startswith(".")}
    return ["", *(end for end in ends if sum(stem.endswith(end) for stem in stems) >= len(stems) / 4)]


# ---- from pairs of folders to places


def _place(pair: _Pair) -> Place:
    start, one, two, end = _apart(pair.images, pair.masks)
    split = next(filter(None, map(split_of, (*start, *one, *end))), None)
    inside = next((index + 1 for index, part in enumerate(end) if split_of(part)), 0)
    images, masks = (*one, *end[:inside]), (*two, *end[:inside])
    place = [part for part in (*start, *end[:inside]) if not split_of(part)]
    ends = pair.image_end, pair.mask_end
    return Place(_path(start), _path(images), _path(masks), *ends, split=split, place=_path(place))


def _unlabelled(folder: Parts, labelled: Sequence[Parts]) -> Place:
    """A place of its own for each folder that no labelled images lie in; `images` below it is not the place."""
    depth = 1
    while depth < len(folder) and any(image[:depth] == folder[:depth] for image in labelled):
        depth += 1
    rest = folder[depth:]
    images = rest if rest and all(called([part]) == "image" for part in rest[:1]) else ()
    return Place(_path(folder[:depth]), _path(images[:1]), None, place=_path(folder[:depth]))


def _as_samples(places: list[Place]) -> list[Place]:
    """Folders of a pair or two each, `0001/image.png` with `0001/mask.png`, are one place with many pairs."""
    alike: dict[tuple, list[Place]] = defaultdict(list)
    for place in places:
        if place.images == place.masks:
            key = place.image_suffix, place.mask_suffix, place.split, str(Path(place.folder).parent)
            alike[key].append(place)
    merged = []
    for (image, mask, split, parent), group in alike.items():
        if len(group) > 1 and sum(place.pairs for place in group) < 3 * len(group):
            pairs = sum(place.pairs for place in group)
            above = str(Path(group[0].place).parent)
            merged.append(Place(parent, ".", ".", image, mask, split, above, pairs))
            places = [place for place in places if place not in group]
    return places + merged


def _path(parts: Sequence[str]) -> str:
    return "/".join(parts) or "."
