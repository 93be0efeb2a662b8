"""Data sets as they are unpacked from their official downloads: nothing is converted on disk.

Each file here has a data set, or a few that are alike: `LAYOUTS`, where its trees have what, and `LABELS`, what its
masks hold, unless another file has that, and the classes that it can be read as. A file that is added is found.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from deft_hf.data import official
from deft_hf.data.labels import LabelSpace
from deft_hf.data.official import Choice, Layout, Place
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from deft_hf.data.domains import Domain

__all__ = [
    "LABELS",
    "LAYOUTS",
    "Layout",
    "Place",
    "condition_problem",
    "layout_places",
    "load_layout",
    "recognise",
    "split_problem",
]

_FILES = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
LAYOUTS: dict[str, Layout] = {name: layout for file in _FILES for name, layout in file.LAYOUTS.items()}
LABELS: dict[str, dict[str, LabelSpace]] = {
    key: held for file in _FILES for key, held in getattr(file, "LABELS", {}).items()
}
"""By what masks hold, the classes that it can be read as; the first are the usual ones."""


def load_layout(
    layout: str,
    root: str | os.PathLike,
    labels: LabelSpace | str | None = None,
    split: str | float | None = None,
    name: str | None = None,
    condition: str | None = None,
) -> Domain:
    """A domain of an official tree; decodes no image.

    GTA5's pairs whose image and mask differ in size, which it is known for, are left out and named in the report
    (their headers are read), and in its training split the fifteen frames that RobustNet leaves out, so that 12,388
    are left as there. Without a split it is all of GTA5.

    Args:
        layout (`str`):
            One of `LAYOUTS`.
        root (`str` or `os.PathLike`):
            The folder that the downloads were unpacked in.
        labels (`LabelSpace` or `str`, *optional*):
            The classes to read its masks as: a name such as `cityscapes`, `synthia16` or `street7`, or a label space
            of the raw ids. By default the usual ones of the layout.
        split (`str` or `float`, *optional*):
            One of the layout's splits. Of those without, and of those whose splits are lists, all is the default, and
            a share can be taken: 0.8 the first, -0.2 the rest, see `deft_hf.data.splitting.take_share`.
        name (`str`, *optional*):
            Name of the domain; that of `root` by default.
        condition (`str`, *optional*):
            One of the layout's conditions, such as `fog` of ACDC; all by default. Ids start with it.

    Raises:
        UserError: An unknown split or condition, no such tree, or classes that its masks cannot be read as.
    """
    spec, root = LAYOUTS[layout], Path(root)
    for problem in (split_problem(layout, split), condition_problem(layout, condition)):
        if problem:
            raise UserError(f"{root}: {problem}")
    choice = Choice(split, condition, name)
    places = spec.find(root, split, condition)
    if places is None:
        raise UserError(official.not_its_own(layout, spec, root, choice, recognise(root)))
    return official.load(spec, places, root, _space(spec, places[0], labels), choice)


def _space(layout: Layout, place: Place, labels: LabelSpace | str | None) -> LabelSpace:
    held, there = LABELS[layout.labels], LABELS[place.labels or layout.labels]
    if labels is None:
        return next(iter(there.values()))
    if isinstance(labels, str):
        return read_as(place.labels or layout.labels, labels)
    # Of a release with other ids, the same classes by those.
    return next((there[key] for key, space in held.items() if space == labels and key in there), labels)


def read_as(held: str, classes: str) -> LabelSpace:
    """What masks hold, read as classes.

    Args:
        held (`str`):
            What the masks hold: a key of `LABELS`.
        classes (`str`):
            Name of the classes, such as `cityscapes`, or a key of `LABELS`, which stands for its usual classes.

    Raises:
        UserError: There is no table from one to the other.
    """
    spaces = LABELS[held]
    wanted = classes if classes in spaces else next(iter(LABELS.get(classes, {})), classes)
    if wanted not in spaces:
        raise UserError(
            f"labels: found {classes}, which masks of {held} cannot be read as, expected one of {', '.join(spaces)}"
        )
    return spaces[wanted]


def split_problem(layout: str, split: str | float | None) -> str | None:
    """What is wrong with the split of a layout, as `split: ...`."""
    return official.split_problem(layout, LAYOUTS[layout], split)


def condition_problem(layout: str, condition: str | None) -> str | None:
    """What is wrong with the condition of a layout, as `condition: ...`."""
    return official.condition_problem(layout, LAYOUTS[layout], condition)


def layout_places(layout: str, split: str | float | None, condition: str | None = None) -> list[Place]:
    """Where the releases of a layout have the images and masks of a split."""
    return [place for places in LAYOUTS[layout].at(split, condition) for place in places]


def recognise(folder: Path) -> str | None:
    """The layout that a folder has by its folders and files; `None` if none is sure."""
    for name, layout in LAYOUTS.items():
        if not layout.recognised or (layout.signs and not any((folder / sign).exists() for sign in layout.signs)):
            continue
        splits: list[str | None] = [*layout.splits]
        for split in splits if splits and not layout.listed else [None, *splits]:
            if layout.find(folder, split) is not None:
                return name
    return None
