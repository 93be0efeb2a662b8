"""Official trees of data sets: what a layout is, and how one becomes a domain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft_hf.data.files import files_by_id
from deft_hf.data.labels import LabelSpace
from deft_hf.data.look import opened
from deft_hf.data.opening import MaskReader
from deft_hf.data.report import DomainReport, listed
from deft_hf.data.splitting import take_share
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from deft_hf.data.domains import Domain

_NAMED = 8


@dataclass(frozen=True)
class Place:
    """Where a release has images and masks; `{split}` and `{condition}` stand for a folder or a part of a name.

    Args:
        images (`str`):
            Folder of the images.
        masks (`str`):
            Folder of the masks.
        image_suffix (`str`, *optional*, defaults to `""`):
            What an image's name has after the part that it shares with its mask.
        mask_suffix (`str`, *optional*, defaults to `""`):
            What a mask's name has after it.
        image_prefix (`str`, *optional*, defaults to `""`):
            What an image's name may have before it.
        mask_prefix (`str`, *optional*, defaults to `""`):
            What a mask's name may have before it.
        labels (`str`, *optional*):
            What the masks hold, where that is not what the layout says.
    """

    images: str
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""
    image_prefix: str = ""
    mask_prefix: str = ""
    labels: str | None = None

    def at(self, split: str, condition: str) -> Place:
        """The place of a split under a condition."""
        texts = {key: value for key, value in vars(self).items() if key != "labels"}
        return replace(self, **{key: text.format(split=split, condition=condition) for key, text in texts.items()})

    def __str__(self) -> str:
        ends = [f"{suffix}*" if suffix else "" for suffix in (self.image_suffix, self.mask_suffix)]
        return f"{self.images}/*{ends[0]} with {self.masks}/*{ends[1]}"


@dataclass(frozen=True)
class Layout:
    """An official tree.

    Args:
        places (`tuple[Place, ...]`):
            Where its releases have images and masks; the first that is there counts.
        labels (`str`):
            What its masks hold: a key of `deft_hf.data.layouts.LABELS`.
        title (`str`):
            Name of the data set.
        terms (`str`):
            Its terms of use in a few words.
        url (`str`):
            Where they stand.
        non_commercial (`bool`, *optional*, defaults to `False`):
            Whether they exclude commercial use.
        splits (`Mapping[str, str]`, *optional*, defaults to `{"train": "train", "val": "val"}`):
            Folder of each split, of lists too, and no name (`""`) for a split that has all of it; none where the
            data set has no splits.
        conditions (`Mapping[str, str]`, *optional*, defaults to `{}`):
            Folder of each condition that can be chosen; without a choice it is all of them.
        listed (`bool`, *optional*, defaults to `False`):
            Whether splits are lists of ids rather than folders, and may be left out.
        members (`Callable`, *optional*):
            From root, split and ids, those of the split, where splits are lists.
        equal_sizes (`bool`, *optional*, defaults to `False`):
            Whether pairs whose image and mask differ in size are left out, since the data set is known for them.
        read_mask (`MaskReader`, *optional*):
            Reads masks that are no pictures of ids, palettes or colours.
        columns (`Callable`, *optional*):
            From root and ids, further columns that `read_mask` needs.
        signs (`tuple[str, ...]`, *optional*, defaults to `()`):
            Files of which one must be there for a folder to be recognised; needed where anybody has such folders.
        recognised (`bool`, *optional*, defaults to `True`):
            Whether a folder is taken for this data set without being told.
    """

    places: tuple[Place, ...]
    labels: str
    title: str
    terms: str
    url: str
    non_commercial: bool = False
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})
    conditions: Mapping[str, str] = field(default_factory=dict)
    listed: bool = False
    members: Callable[[Path, str, Sequence[str]], Sequence[str]] | None = None
    equal_sizes: bool = False
    read_mask: MaskReader | None = None
    columns: Callable[[Path, Sequence[str]], dict[str, list[str]]] | None = None
    signs: tuple[str, ...] = ()
    recognised: bool = True

    def chosen(self, condition: str | None) -> list[str]:
        """The conditions that a choice means; one without a name where there are none."""
        return [condition] if condition is not None else [*self.conditions] or [""]

    @property
    def shared(self) -> bool:
        """Whether all of it is one list of pairs, of which a share may be taken."""
        return self.listed or not self.splits

    def at(self, split: str | float | None, condition: str | None = None) -> list[list[Place]]:
        """By release, where it has a split under each of the chosen conditions."""
        folder = self.splits.get(split, "") if isinstance(split, str) and self.members is None else ""
        chosen = [self.conditions.get(each, each) for each in self.chosen(condition)]
        releases = [[place.at(folder, each) for each in chosen] for place in self.places]
        return [places for places, raw in zip(releases, self.places, strict=True) if _by_split(raw) == bool(folder)]

    def find(self, root: Path, split: str | float | None, condition: str | None = None) -> list[Place] | None:
        """The first release that is there, where it has a split under each of the chosen conditions."""
        return next(
            (places for places in self.at(split, condition) if all(_there(root, each) for each in places)), None
        )


def _by_split(place: Place) -> bool:
    return "{split}" in place.images + place.masks


def _there(root: Path, place: Place) -> bool:
    return all(next(_matching(root / folder, suffix), None) for folder, suffix in _sides(place))


def _sides(place: Place) -> Iterator[tuple[str, str]]:
    yield place.images, place.image_suffix
    yield place.masks, place.mask_suffix


def _matching(folder: Path, suffix: str) -> Iterator[Path]:
    for parent, _, files in os.walk(folder, followlinks=True):
        yield from (Path(parent, file) for file in files if suffix in file and not file.startswith("."))


def load(layout: Layout, places: Sequence[Place], root: Path, labels: LabelSpace, choice: Choice) -> Domain:
    """The domain of a tree that was found; see `deft_hf.data.layouts.load_layout`."""
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for condition, place in zip(layout.chosen(choice.condition), places, strict=True):
        start = f"{condition}/" if condition else ""
        found = files_by_id(root / place.images, place.image_suffix, place.image_prefix)
        images |= {start + key: path for key, path in found.items()}
        found = files_by_id(root / place.masks, place.mask_suffix, place.mask_prefix)
        masks |= {start + key: path for key, path in found.items()}
    ids = [key for key in images if key in masks]
    if not ids:
        raise UserError(
            f"{root}: no image of {places[0].images} has a mask in {places[0].masks}; the first are "
            f"{next(iter(images))!r} and {next(iter(masks))!r}. Unpack both downloads again, as they are"
        )
    orphans = [key for key in images if key not in masks], [key for key in masks if key not in images]
    notes: list[str] = []
    if layout.members is not None and isinstance(choice.split, str):
        members = {*layout.members(root, choice.split, ids)}
        if missing := sorted(members - {*ids}):
            notes.append(f"pairs of the split {choice.split} that are not there: {len(missing)}: {listed(missing)}")
        ids = [key for key in ids if key in members]
    unequal: list[str] = []
    if layout.equal_sizes:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            unequal = [text for text in pool.map(lambda key: _unequal(key, images[key], masks[key]), ids) if text]
        left_out = {text.split(":")[0] for text in unequal}
        ids = [key for key in ids if key not in left_out]
    if not ids:
        why = listed([*notes, *unequal]) or f"none is of the split {choice.split}"
        raise UserError(f"{root}: no pair is left ({why}); unpack the download again")
    if isinstance(choice.split, float):
        ids = take_share(ids, choice.split)
    columns = {"id": ids, "image": [images[key] for key in ids], "mask": [masks[key] for key in ids]}
    if layout.columns is not None:
        columns |= layout.columns(root, ids)
    name = choice.name or root.resolve().name
    report = DomainReport(name, labels, len(ids), *orphans, left_out=unequal, notes=notes)
    from deft_hf.data.columns import as_dataset
    from deft_hf.data.domains import Domain  # recipes, which name layouts, are read without it

    return Domain(name, labels, as_dataset(columns), report, mask_reader=layout.read_mask)


@dataclass(frozen=True)
class Choice:
    """What of a tree is wanted.

    Args:
        split (`str`, `float` or `None`):
            The split, or a share.
        condition (`str` or `None`):
            The condition.
        name (`str` or `None`):
            Name of the domain; that of the root by default.
    """

    split: str | float | None
    condition: str | None
    name: str | None


def _unequal(key: str, *files: str) -> str | None:
    sizes = []
    for file in files:
        try:
            with opened(file) as picture:  # reads the header
                sizes.append(picture.size)
        except (OSError, ValueError):
            return None  # a look at every file says so
    if sizes[0] == sizes[1]:
        return None
    return f"{key}: image {sizes[0][0]} x {sizes[0][1]}, mask {sizes[1][0]} x {sizes[1][1]}"


def not_its_own(name: str, layout: Layout, root: Path, choice: Choice, other: str | None) -> str:
    """What to say of a folder that is no tree of a layout: what was looked for, what is there, and what to do.

    Args:
        name (`str`):
            Name of the layout.
        layout (`Layout`):
            The layout.
        root (`Path`):
            The folder.
        choice (`Choice`):
            What of it was wanted.
        other (`str` or `None`):
            The layout that the folder is recognised as.
    """
    releases = layout.at(choice.split, choice.condition)
    looked_for = [*dict.fromkeys(str(places[0]) for places in releases)]
    expected = " or ".join(looked_for[:2]) + (f" (or one of {len(looked_for) - 2} more)" if looked_for[2:] else "")
    way_out = f"give the folder above them, as it is unpacked from {layout.url}"
    if other is not None and other != name:
        way_out = f"it looks like a tree of {other}: say layout: {other}"
    elif choice.condition is None and (
        there := [each for each in layout.conditions if layout.find(root, choice.split, each)]
    ):
        way_out = f"name the condition that is there: {', '.join(there)}"
    return f"{root}: is no tree of {name}, in which {expected} would be; found {_found(root, releases)}; {way_out}"


def _found(root: Path, releases: Sequence[Sequence[Place]]) -> str:
    if not root.is_dir():
        return "no such folder"
    sides = {side: (root / side[0]).is_dir() for places in releases for place in places for side in _sides(place)}
    parts: dict[str, str] = {}
    for (folder, suffix), is_there in sides.items():
        if not is_there or folder in parts:
            continue
        parts[folder] = folder
        if next(_matching(root / folder, suffix), None) is None:
            files = sorted(path.name for path in islice(_matching(root / folder, ""), _NAMED))
            parts[folder] += f" without a file *{suffix}* (it has {listed(files) or 'none'})"
    if parts:
        missing = [*dict.fromkeys(folder for folder, _ in sides if folder not in parts)]
        return " and ".join(parts.values()) + (f", but not {listed(missing)}" if missing else "")
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    return listed(names[:_NAMED]) or "nothing"


def split_problem(name: str, layout: Layout, split: Any) -> str | None:
    """What is wrong with the split of a layout, as `split: ...`."""
    if split in layout.splits or (layout.shared and (split is None or isinstance(split, float))):
        return None
    expected = f"one of {', '.join(layout.splits)}" if layout.splits else "a share of the images, or none,"
    return f"split: found {split}, expected {expected} of the layout {name}"


def condition_problem(name: str, layout: Layout, condition: Any) -> str | None:
    """What is wrong with the condition of a layout, as `condition: ...`."""
    if condition is None or condition in layout.conditions:
        return None
    if not layout.conditions:
        return f"condition: found {condition}, but the layout {name} has none; remove it"
    return f"condition: found {condition}, expected one of {', '.join(layout.conditions)} of the layout {name}"
