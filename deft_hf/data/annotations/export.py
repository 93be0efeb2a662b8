"""What a label export holds, whichever tool wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.utils.errors import UserError

BACKGROUND = "background"
_BACKGROUNDS = (BACKGROUND, "_background_")  # the latter is labelme's
IGNORED = "__ignore__"
"""labelme's name of what is ignored."""


class Shape(NamedTuple):
    """An area of one class.

    Attributes:
        name (`str`):
            The class.
        kind (`str`):
            A key of `deft_hf.data.annotations.shapes.KINDS`.
        data (`Any`):
            What that kind is drawn from; JSON can hold it.
    """

    name: str
    kind: str
    data: Any


@dataclass
class Item:
    """An image of an export, with what the export says of it.

    Attributes:
        key (`str`):
            Its id: the path in the export's folder, without type.
        image (`Path` or `None`):
            The file; `None` if the export names one that is not there.
        source (`str`):
            What messages call its labels.
        splits (`tuple[str, ...]`, *optional*, defaults to `()`):
            The splits of the export that it is in.
        shapes (`list[Shape]`, *optional*):
            Its shapes, later ones on top; none for an image that is background throughout. `None` where the export
            does not label the image, or labels it by a mask.
        mask (`Path`, *optional*):
            Its mask, where the export has such.
        size (`tuple[int, int]`, *optional*):
            (height, width) that the export states.
    """

    key: str
    image: Path | None
    source: str
    splits: tuple[str, ...] = ()
    shapes: list[Shape] | None = None
    mask: Path | None = None
    size: tuple[int, int] | None = None

    @property
    def labelled(self) -> bool:
        """Whether the export says what the image shows."""
        return self.shapes is not None or self.mask is not None


@dataclass
class Export:
    """A label export.

    Attributes:
        names (`list[str]`):
            Its classes in order; the first is the background, which is every pixel that no shape covers.
        items (`list[Item]`):
            Its images.
        splits (`list[str]`, *optional*, defaults to `[]`):
            Its splits in order, where it has some.
        problems (`list[str]`, *optional*, defaults to `[]`):
            A line for each kind of thing that was left out.
        values (`dict[Color, str | None] | dict[int, str | None]`, *optional*):
            What its masks hold, where it has some: the class of each colour or id, `None` for what is ignored.
    """

    names: list[str]
    items: list[Item]
    splits: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: dict[Any, str | None] | None = None

    def of(self, split: str | None, folder: Path) -> list[Item]:
        """The items of a split; all of them by default.

        Raises:
            UserError: There is no such split, or it has no labelled image.
        """
        if split is not None and split not in self.splits:
            known = f"expected one of {', '.join(self.splits)}" if self.splits else "nor any other; leave it out"
            raise UserError(f"{folder}: has no split {split!r}, {known}")
        items = [item for item in self.items if split is None or split in item.splits]
        if not any(item.labelled and item.image for item in items):
            missing = [item.source for item in items if item.labelled]
            reason = f"not one of the images that it labels is there, such as that of {missing[0]}" if missing else ""
            raise UserError(f"{folder}: {reason or 'labels no image'}{'' if split is None else f' (split {split})'}")
        return items

    def used(self, items: Iterable[Item]) -> list[str]:
        """The classes that some items may hold, in order: of shapes those that are drawn, of masks all."""
        items = list(items)
        drawn = {shape.name for item in items for shape in item.shapes or ()} | {self.names[0]}
        return [name for name in self.names if name in drawn or any(item.mask for item in items)]

    def cell(self, item: Item, folder: Path) -> str:
        """The shapes of an item as text, for `deft_hf.data.annotations.shapes.drawn`, wherever the folder is."""
        index = {name: position for position, name in enumerate(self.names)} | {IGNORED: IGNORE_INDEX}
        shapes = [[index[shape.name], shape.kind, shape.data] for shape in item.shapes or ()]
        source = item.source.removeprefix(str(folder)).lstrip("/\\")
        return json.dumps({"source": source, "size": item.size, "shapes": shapes})


def with_background(names: Iterable[str]) -> list[str]:
    """The classes with the background first: the export's own if it has one (in any case), else `background`."""
    distinct = list(dict.fromkeys(names))
    own = next((name for name in distinct if name.lower() in _BACKGROUNDS), BACKGROUND)
    return [own, *(name for name in distinct if name not in (own, IGNORED))]


@dataclass(frozen=True)
class Found:
    """A label export that `detect` recognised.

    Attributes:
        format (`str`):
            A key of `FORMATS`.
        names (`list[str]`):
            Its classes in order, the background first.
        splits (`list[str]`):
            Its splits, empty where it has none.
        images (`int`):
            How many labelled images it has.
        problems (`list[str]`):
            A line for each kind of thing that cannot be used; what makes the whole unreadable is the only one.
    """

    format: str
    names: list[str]
    splits: list[str]
    images: int
    problems: list[str]


def counted(what: Sequence[str], text: str) -> list[str]:
    """A line with what there is, how often, and the first, where there is any."""
    return [f"{text}: {len(what)}, such as {what[0]}"] if what else []
