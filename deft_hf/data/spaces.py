"""Classes that data sets of street scenes share, and label spaces made of a data set's table of raw ids.

Cityscapes: https://github.com/mcordts/cityscapesScripts (helpers/labels.py). The sixteen classes are those that
SYNTHIA and Cityscapes have in common. The seven are level 1 of IDD (Varma et al., WACV 2019,
https://github.com/AutoNUE/public-code, helpers/anue_labels.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import LabelSpace

Raw = TypeVar("Raw", int, tuple[int, int, int])

# Name, colour, and the class of the seven that it belongs to.
_CITYSCAPES = (
    ("road", (128, 64, 128), "drivable"),
    ("sidewalk", (244, 35, 232), "non-drivable"),
    ("building", (70, 70, 70), "far objects"),
    ("wall", (102, 102, 156), "roadside objects"),
    ("fence", (190, 153, 153), "roadside objects"),
    ("pole", (153, 153, 153), "roadside objects"),
    ("traffic light", (250, 170, 30), "roadside objects"),
    ("traffic sign", (220, 220, 0), "roadside objects"),
    ("vegetation", (107, 142, 35), "far objects"),
    ("terrain", (152, 251, 152), "non-drivable"),
    ("sky", (70, 130, 180), "sky"),
    ("person", (220, 20, 60), "living things"),
    ("rider", (255, 0, 0), "living things"),
    ("car", (0, 0, 142), "vehicles"),
    ("truck", (0, 0, 70), "vehicles"),
    ("bus", (0, 60, 100), "vehicles"),
    ("train", (0, 80, 100), "vehicles"),
    ("motorcycle", (0, 0, 230), "vehicles"),
    ("bicycle", (119, 11, 32), "vehicles"),
)
_NOT_IN_SYNTHIA = ("terrain", "truck", "train")
_SEVEN = (
    ("drivable", (128, 64, 128)),
    ("non-drivable", (244, 35, 232)),
    ("living things", (220, 20, 60)),
    ("vehicles", (0, 0, 142)),
    ("roadside objects", (190, 153, 153)),
    ("far objects", (70, 70, 70)),
    ("sky", (70, 130, 180)),
)


def classes(*rows: tuple[str, tuple[int, int, int]]) -> LabelSpace:
    """Classes by name and colour, whose raw ids are their train ids."""
    return LabelSpace(tuple(name for name, _ in rows), tuple(color for _, color in rows))


CITYSCAPES = classes(*((name, color) for name, color, _ in _CITYSCAPES))
SYNTHIA16 = classes(*((name, color) for name, color, _ in _CITYSCAPES if name not in _NOT_IN_SYNTHIA))
STREET7 = classes(*_SEVEN)


def table(space: LabelSpace, names: Mapping[Raw, str | None], stored: str | None = None) -> LabelSpace:
    """Classes, read from what the masks of a data set hold.

    Args:
        space (`LabelSpace`):
            The classes.
        names (`Mapping[int | Color, str | None]`):
            By raw id, or by colour, the name of a class; `None` for what is ignored.
        stored (`str`, *optional*):
            As for `LabelSpace`.
    """
    found: dict[Any, int] = {
        raw: IGNORE_INDEX if name is None else space.label2id[name] for raw, name in names.items()
    }
    if any(isinstance(raw, tuple) for raw in found):
        return replace(space, colors=found)
    return replace(space, ids=found, stored=stored)


def street(
    names: Mapping[Raw, str | None], seven: Mapping[Raw, str] | None = None, stored: str | None = "ids"
) -> dict[str, LabelSpace]:
    """The masks of a data set of street scenes in Cityscapes' nineteen classes, in sixteen and in seven.

    Args:
        names (`Mapping[int | Color, str | None]`):
            By raw id, all of them, the name of one of the nineteen classes; `None` for the others.
        seven (`Mapping[int | Color, str]`, *optional*):
            The class of the seven where it is not that of the one of the nineteen, or where there is none.
        stored (`str`, *optional*, defaults to `"ids"`):
            As for `LabelSpace`.
    """
    parent: dict[str | None, str | None] = {name: group for name, _, group in _CITYSCAPES}
    coarse = {raw: parent.get(name) for raw, name in names.items()} | dict(seven or {})
    sixteen = {raw: None if name in _NOT_IN_SYNTHIA else name for raw, name in names.items()}
    spaces = {"cityscapes": (CITYSCAPES, names), "synthia16": (SYNTHIA16, sixteen), "street7": (STREET7, coarse)}
    return {key: table(space, held, stored) for key, (space, held) in spaces.items()}
