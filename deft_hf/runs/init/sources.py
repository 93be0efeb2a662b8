"""What a folder, or a data set on the Hub, has of images and labels, as entries of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.annotations import FORMATS, Found, detect
from deft_hf.data.annotations.formats import read
from deft_hf.data.classes import Classes, propose_classes
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LABELS, LAYOUTS, load_layout, recognise
from deft_hf.data.likeness import SPLITS, split_of
from deft_hf.data.pictures import ValueRange
from deft_hf.data.presets import PRESETS
from deft_hf.data.survey import PairFacts, Survey, survey
from deft_hf.data.tree import Place, find_places
from deft_hf.runs.init.refusals import unusable, without_labels
from deft_hf.utils.errors import UserError

UNKNOWN = LabelSpace(("unknown", "classes"))
_WITH_MASKS = ("roboflow", "supervisely", "voc", "cvat")  # formats that may bring masks along
_SLIVERS = 1e-3  # share of the pixels that drawn areas leave between them
_SAMPLED = 24  # pairs of an official data set, whose classes are known
_DEFAULTS = {"images": "images", "masks": "masks", "image_suffix": "", "mask_suffix": ""}


@dataclass
class Part:
    """An entry for a recipe: a place, or one split of it.

    Attributes:
        entry (`dict[str, Any]`):
            The entry, without what depends on its section.
        place (`str`):
            Name of the place; equal for its splits.
        split (`str` or `None`):
            `train`, `val` or `test`.
        domain (`Domain` or `None`):
            Its pairs; `None` where there are no labels.
        count (`int`):
            Number of images.
        pairs (`list[PairFacts]`, *optional*, defaults to `[]`):
            What was seen of them.
    """

    entry: dict[str, Any]
    place: str
    split: str | None
    domain: Domain | None
    count: int
    pairs: list[PairFacts] = field(default_factory=list)

    def load(
        self, index: int, space: LabelSpace, value_range: ValueRange | None = None
    ) -> tuple[Image.Image, np.ndarray]:
        """Decodes a pair, see `Domain.load`.

        Args:
            index (`int`):
                Its position in the domain.
            space (`LabelSpace`):
                The classes, unless the domain came with its own.
            value_range (`tuple[float, float]`, *optional*):
                Of images of more than 8 bits.
        """
        assert self.domain is not None
        own = self.domain.labels is not UNKNOWN
        dataset, reader = self.domain.select([index]).dataset, self.domain.mask_reader
        labels = self.domain.labels if own else space
        return Domain(self.domain.name, labels, dataset, None, value_range, reader).load(0)


@dataclass
class Sources:
    """All that was found.

    Attributes:
        parts (`list[Part]`):
            Those with labels, then those without.
        layout (`str`):
            In words, how it is laid out.
        classes (`Classes`):
            Proposal for the classes.
        preset (`str` or `None`, *optional*):
            Name of the classes, where `data.labels` can be that.
        found (`Survey`, *optional*, defaults to `Survey()`):
            What the pairs hold, all parts together.
        notes (`list[str]`, *optional*, defaults to `[]`):
            What a person should know of what was left out.
    """

    parts: list[Part]
    layout: str
    classes: Classes
    preset: str | None = None
    found: Survey = field(default_factory=Survey)
    notes: list[str] = field(default_factory=list)

    @property
    def space(self) -> LabelSpace:
        """The classes."""
        return self.classes.space if self.preset is None else PRESETS[self.preset]

    @property
    def labelled(self) -> list[Part]:
        """The parts with labels."""
        return [part for part in self.parts if part.domain is not None]


def find_sources(folder: Path, leave_out: Path | None = None, progress: bool = False) -> Sources:
    """Looks for images and labels in a folder.

    Args:
        folder (`Path`):
            The folder.
        leave_out (`Path`, *optional*):
            A picture in it that is none of the images.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Raises:
        UserError: It has no images, no labels, or files that cannot be used.
    """
    if official := [*_official(folder)]:
        return _of_layouts(official, progress)
    places = find_places(folder, leave_out)
    if exports := [*_exports(folder, places)]:
        return _of_exports(folder, exports, places, progress)
    if not places:
        raise UserError(
            f"{folder}: found no image; expected files such as .jpg, .png or .tif, there or in its folders"
        )
    labelled = [place for place in places if place.masks is not None]
    if not labelled:
        raise UserError(without_labels(folder, places))
    parts = [_masked(folder, place) for place in labelled]
    parts += [_unlabelled(folder, place) for place in places if place.masks is None]
    homes = [folder, *(Path(part.entry["folder"]) for part in parts)]
    return surveyed(folder, parts, progress, "images with masks", homes)


def surveyed(
    folder: Path,
    parts: list[Part],
    progress: bool,
    layout: str,
    homes: Sequence[Path],
    names: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
) -> Sources:
    """Reads the masks of all parts.

    Args:
        folder (`Path`):
            Where they are from, for messages.
        parts (`list[Part]`):
            The parts.
        progress (`bool`):
            Whether to show progress bars.
        layout (`str`):
            In words, how they are laid out.
        homes (`Sequence[Path]`):
            Where a list of the classes' names may be.
        names (`Mapping[int, str]`, *optional*):
            Names of the masks' ids, where they are known.
        notes (`Sequence[str]`, *optional*, defaults to `()`):
            What a person should know already.

    Raises:
        UserError: There are files that cannot be used.
    """
    found, notes = Survey(), [*notes]
    for part in parts:
        if part.domain is not None:
            look = survey(part.domain, progress=progress)
            part.pairs = look.pairs
            found.add(look)
            report = part.domain.report
            if report.images_without_mask:
                notes.append(f"{part.domain.name}: {len(report.images_without_mask)} images have no mask, left out")
            if report.masks_without_image:
                notes.append(f"{part.domain.name}: {len(report.masks_without_image)} masks have no image, left out")
    if found.unfit or not found.pairs:
        raise UserError(unusable(folder, found))
    return Sources(parts, layout, propose_classes(found, homes, names), found=found, notes=notes)


def _masked(folder: Path, place: Place) -> Part:
    root = folder / place.folder
    options = {key: getattr(place, key) for key in _DEFAULTS}
    name = _name(folder, place.place)
    domain = Domain.from_folder(root, UNKNOWN, name, **options)
    own = {key: value for key, value in options.items() if value != _DEFAULTS[key]}
    return Part({"folder": str(root), **own}, name, place.split, domain, len(domain))


def _unlabelled(folder: Path, place: Place) -> Part:
    entry: dict[str, Any] = {"folder": str(folder / place.folder)}
    if place.images not in (".", _DEFAULTS["images"]):
        entry["images"] = place.images
    return Part(entry, _name(folder, place.place), place.split, None, place.pairs)


def _name(folder: Path, place: str) -> str:
    """A name for tables: the place's path in the folder, or the folder's own."""
    return safe_name(folder.resolve().name if place == "." else place)


def safe_name(text: str) -> str:
    """A name that metric keys can hold."""
    return re.sub(r"[\s/\\]+", "_", text).strip("_") or "data"


# ---- exports of labelling tools


def unseen_entries(folder: Path) -> list[dict[str, Any]]:
    """Entries of a recipe for another place: with its labels, or without any where it has none.

    Args:
        folder (`Path`):
            The place.

    Raises:
        UserError: It has no images, or labels that cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"unseen: found no folder {folder}, expected one of images")
    places = find_places(folder)
    if any(place.masks is not None for place in places) or detect(folder) or recognise(folder):
        return [part.entry for part in find_sources(folder).labelled]
    if not places:
        raise UserError(f"unseen: found no image in {folder}, expected files such as .jpg, .png or .tif")
    return [{"folder": str(folder), "labels": "none"}]


def _exports(folder: Path, found: list[Place]) -> Iterator[tuple[str, Path]]:
    """Label exports: the folder itself is one, or some of those in it are.

    Raises:
        UserError: A folder is two of them.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    forms = {path: [name for name, form in FORMATS.items() if form.recognises(path)] for path in (folder, *inside)}
    places = [path for path in inside if forms[path] and not split_of(path.name)]
    # A format that has its files in folders of its own is seen from above as well.
    own = [place for place in found if places and Path(place.folder).parts[:1] == (places[0].name,)]
    beside = len(places) == 1 and 0 < len(own) < len(found)  # an export beside images of another place
    for path in [folder] if forms[folder] and len(places) < 2 and not beside else places:
        if len(forms[path]) > 1:
            raise UserError(
                f"{path}: holds labels in two formats, {' and '.join(forms[path])}; move one of them to another folder"
            )
        yield forms[path][0], path


def _of_exports(folder: Path, exports: list[tuple[str, Path]], places: list[Place], progress: bool) -> Sources:
    homes = [path.relative_to(folder).parts for _, path in exports]
    outside = [place for place in places if not any(Path(place.folder).parts[: len(home)] == home for home in homes)]
    polygons = [form for form, _ in exports if form not in _WITH_MASKS]
    masked = [place for place in places if place.masks is not None and (place in outside or polygons)]
    if masked:
        place = masked[0]
        raise UserError(
            f"{folder}: holds labels in two formats, {exports[0][0]} in {exports[0][1]} and masks in "
            f"{folder / place.folder / str(place.masks)}; move one of them to another folder"
        )
    known = {path: (form, _readable(form, path)) for form, path in exports}
    names = list(dict.fromkeys(name for _, found in known.values() for name in found.names))
    classes = Classes({"names": names}, {"names": "as the labels call them; the first is what no label covers"})
    parts, survey_of = _export_parts(known, classes.space, progress)
    pixels = survey_of.values
    if len(names) > 2 and pixels[0] < _SLIVERS * sum(pixels.values()):
        rest = (
            f"all but {max(pixels[0] / sum(pixels.values()), 1e-4):.2%} of the pixels" if pixels[0] else "every pixel"
        )
        why = f"labels cover {rest}: what they leave is not a class"
        labels = {"names": names[1:], "ids": {names[0]: IGNORE_INDEX}}
        classes = Classes(labels, {"names": "as the labels call them", "ids": why})
        parts, survey_of = _export_parts(known, classes.space, progress)
    if survey_of.unfit or not survey_of.pairs:
        raise UserError(unusable(folder, survey_of))
    parts += [part for form, path in exports for part in _not_listed(form, path)]
    parts += [_unlabelled(folder, place) for place in outside]
    notes = [problem for _, found in known.values() for problem in found.problems]
    kinds = " and ".join(dict.fromkeys(form for form, _ in exports))
    return Sources(parts, f"an export in the format {kinds}", classes, found=survey_of, notes=notes)


def _export_parts(
    exports: Mapping[Path, tuple[str, Found]], space: LabelSpace, progress: bool
) -> tuple[list[Part], Survey]:
    parts, survey_of = [], Survey()
    for path, (form, found) in exports.items():
        name = safe_name(path.resolve().name)
        known = {split_of(split): split for split in reversed(found.splits)}
        splits = {kind: known[kind] for kind in SPLITS if kind in known}
        if "val" not in splits and "test" in splits:
            splits["val"] = splits.pop("test")
        # A share is held out of all images of an export: of one split alone none can be.
        for kind, split in splits.items() if {"train", "val"} <= splits.keys() else [(None, None)]:
            domain = Domain.from_annotations(path, space, form, split, name)
            look = survey(domain, domain.labels, progress)
            survey_of.add(look)
            entry = {"folder": str(path), "annotations": form, **({"split": split} if split else {})}
            parts.append(Part(entry, name, kind, domain, len(domain), look.pairs))
    return parts, survey_of


def _not_listed(form: str, folder: Path) -> Iterator[Part]:
    """Folders of images below an export that it says nothing of."""
    items = [item for item in read(folder, form).items if item.labelled and item.image is not None]
    homes = {item.image.resolve().parent for item in items if item.image is not None}
    for place in find_places(folder):
        images = (folder / place.folder / place.images).resolve()
        if place.masks is None and not any(home.is_relative_to(images) for home in homes):
            yield _unlabelled(folder, place)


def _readable(form: str, path: Path) -> Found:
    found = detect(path)
    if found is None or len(found.names) < 2 or not found.images:
        problems = "; ".join(found.problems) if found else ""
        raise UserError(problems or f"{path}: is an export in the format {form}, but labels nothing; export it again")
    return found


def _official(folder: Path) -> Iterator[tuple[str, Path]]:
    """Official trees: the folder itself, or those in it."""
    if layout := recognise(folder):
        yield layout, folder
        return
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if layout := recognise(path):
            yield layout, path


def _splits(layout: str, folder: Path) -> list[str | None]:
    """The splits of a tree to train and to choose on, as far as they were unpacked; None for all of it."""
    there: list[str | None] = []
    for wanted in (("train", "val"), ("test",), (None,)):
        there = there or [split for split in wanted if _opens(layout, folder, split)]
    return there


def _opens(layout: str, folder: Path, split: str | None) -> bool:
    try:
        load_layout(layout, folder, split=split)
    except UserError:
        return False  # a split that was not unpacked
    return True


def _of_layouts(official: list[tuple[str, Path]], progress: bool) -> Sources:
    parts, found = [], Survey()
    readable = [LABELS[LAYOUTS[layout].labels] for layout, _ in official]
    classes = next((name for name in readable[0] if all(name in spaces for spaces in readable)), None)
    names = " and ".join(dict.fromkeys(layout for layout, _ in official))
    if classes is None:
        raise UserError(
            f"{official[0][1].parent}: holds trees of {names}, which have no classes in common; name the folder of one"
        )
    for layout, folder in official:
        labels = LABELS[LAYOUTS[layout].labels][classes]
        for split in _splits(layout, folder):
            domain = load_layout(layout, folder, labels, split, safe_name(folder.resolve().name))
            entry = {"folder": str(folder), "layout": layout} | ({"split": split} if split else {})
            positions = range(0, len(domain), max(1, len(domain) // _SAMPLED))
            look = survey(domain.select(positions), labels, progress)
            found.add(look)
            parts.append(Part(entry, domain.name, split, domain, len(domain), look.pairs))
    if not parts:
        layout, folder = official[0]
        raise UserError(f"{folder}: is laid out as {layout}, but no split of it could be read; unpack it again")
    mapping: Mapping[str, Any] = {"names": list(PRESETS[classes].names)}
    return Sources(parts, f"the official tree of {names}", Classes(mapping), classes, found)
