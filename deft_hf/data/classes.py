"""What the values of masks probably mean: names, ids and colours to begin with, and why."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import REST, LabelSpace
from deft_hf.data.masks import Color
from deft_hf.data.presets import PRESETS
from deft_hf.data.survey import PairFacts, Survey
from deft_hf.utils.errors import UserError

_MOST_CLASSES = 64
_MOST_COLORS = 254
_ONE_PIECE = 1.2
# Greys between black and white are the smoothed edges of a mask of two values while they are this few of its pixels.
_EDGES = 0.1
_NAME_FILES = ("classes.txt", "labels.txt", "names.txt", "codes.txt", "labelmap.txt", "label_map.txt", "_classes.csv")


@dataclass(frozen=True)
class Classes:
    """A proposal for `data.labels`.

    Attributes:
        labels (`Mapping[str, Any]`):
            As `LabelSpace.from_mapping` takes it.
        reasons (`Mapping[str, str]`):
            By key, why it is so.
    """

    labels: Mapping[str, Any]
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def space(self) -> LabelSpace:
        """The classes."""
        return LabelSpace.from_mapping(self.labels)

    def train_ids(self, pair: PairFacts) -> dict[int, int]:
        """Pixels of each class in a pair, the ignored ones at 255."""
        found: Counter[int] = Counter()
        for raw, count in pair.values.items():
            found[self._train_id(raw, pair)] += count
        return dict(found)

    def _train_id(self, raw: int, pair: PairFacts) -> int:
        ids, colors = self.labels.get("ids"), self.labels.get("colors")
        if colors is not None:
            return colors[_text(_unpacked(raw) if pair.palette is None else pair.palette[raw])]
        if ids is None or not any(isinstance(key, int) for key in ids):
            return raw  # ids of names: the areas of an export, which are drawn as the classes
        return ids[raw] if raw in ids else ids.get(REST, IGNORE_INDEX)


def propose_classes(found: Survey, folders: Sequence[Path] = (), known: Mapping[int, str] | None = None) -> Classes:
    """Names, ids and palette for the masks that were looked at.

    Args:
        found (`Survey`):
            What the masks hold.
        folders (`Sequence[Path]`, *optional*):
            Where a list of the classes' names may be: `classes.txt` and the like.
        known (`Mapping[int, str]`, *optional*):
            Names by id, where the data set has them; such a list comes before a file.

    Raises:
        UserError: The masks hold one value alone, mix ids and colours, or hold more than can be classes.
    """
    kinds = {pair.by_color for pair in found.pairs}
    if len(kinds) > 1:
        colored, plain = (next(pair.id for pair in found.pairs if pair.by_color is kind) for kind in (True, False))
        raise UserError(f"masks: {colored} holds colours and {plain} ids; save all masks in one of the two ways")
    values, names = found.values, known or _named(folders)
    if len(values) < 2:
        only = _unpacked(next(iter(values))) if kinds == {True} else next(iter(values), None)
        raise UserError(f"masks: all pixels of all masks are {only}, so that there is nothing to tell apart")
    if kinds == {True}:
        return _by_color(values, names)
    palettes = [pair.palette for pair in found.pairs]
    if all(palette is not None for palette in palettes):
        merged, clash = _merged([palette for palette in palettes if palette is not None])
        if clash:  # an index has several colours: the colours are what counts
            counts: Counter[int] = Counter()
            for pair in found.pairs:
                for index, count in pair.values.items():
                    counts[_packed((pair.palette or {})[index])] += count
            return _by_color(counts, names)
        return _by_id(found, values, names, merged)
    return _by_id(found, values, names, None)


# ---- ids


def _by_id(
    found: Survey, values: Counter[int], names: Mapping[Any, str], palette: Mapping[int, Color] | None
) -> Classes:
    if _are_instances(found.pairs):
        most = max(max(pair.values) for pair in found.pairs)
        why = f"instances, numbered in each mask (up to {most}): all of them are one class"
        return Classes({"names": ["background", "object"], "ids": {0: 0, REST: 1}}, {"ids": why})
    ids = sorted(values)
    if (edges := _smoothed(values)) is not None:
        why = f"0 and 255; the greys between them ({edges:.1%} of the pixels) are smoothed edges, which are ignored"
        return Classes({"names": ["background", "object"], "ids": {0: 0, 255: 1, REST: IGNORE_INDEX}}, {"ids": why})
    if len(ids) > _MOST_CLASSES or ids[-1] > 65535:
        raise UserError(
            f"masks: hold {len(ids)} different values, {ids[0]} to {ids[-1]}, which are neither classes nor instances "
            "numbered from 1; expected masks as they were drawn, not smoothed, resized or saved as JPEG"
        )
    reasons = {}
    void = IGNORE_INDEX in ids and len(ids) > 2 and ids[-2] < 2 * len(ids)
    classes = [value for value in ids if value != IGNORE_INDEX or not void]
    if 0 in classes and 0 in names and classes[-1] == len(names):  # lists of objects leave the background out
        names = {value + 1: name for value, name in names.items() if isinstance(value, int)}
    labels: dict[str, Any] = {"names": _names(classes, names)}
    if classes != [*range(len(classes))]:
        labels["ids"] = {value: index for index, value in enumerate(classes)}
        reasons["ids"] = "value in the masks: class, in the order of the names; 255 on the right would ignore a value"
    if void:
        reasons["names"] = f"255 in the masks ({values[255] / values.total():.1%} of the pixels) is ignored"
    if palette is not None and _tells_apart([palette[value] for value in classes]):
        labels["palette"] = [list(palette[value]) for value in classes]
        reasons["palette"] = "the colours that the masks have in their palette"
    return Classes(labels, reasons)


def _are_instances(pairs: Sequence[PairFacts]) -> bool:
    """Whether ids above 0 number the pieces of each mask: one piece each, and other counts in other masks."""
    looked_at = [pair for pair in pairs if pair.pieces is not None]
    largest = [max(pair.values) for pair in looked_at]
    if not looked_at or max(largest) < 3 or sum(_counted_through(pair) for pair in looked_at) < 0.9 * len(looked_at):
        distinct = {value for pair in pairs for value in pair.values}
        return len(distinct) > _MOST_CLASSES and _in_one_piece(looked_at)
    return (len(set(largest)) > 2 or max(largest) > 20) and _in_one_piece(looked_at)


def _counted_through(pair: PairFacts) -> bool:
    ids = {value for value in pair.values if value}
    return ids == {*range(1, len(ids) + 1)}


def _in_one_piece(pairs: Sequence[PairFacts]) -> bool:
    pieces = [pair.pieces for pair in pairs if pair.pieces is not None]
    return bool(pieces) and sum(pieces) / len(pieces) <= _ONE_PIECE


def _smoothed(values: Counter[int]) -> float | None:
    """The share of greys between black and white in masks of these two; `None` for other masks."""
    if not {0, 255} <= set(values) or len(values) <= _MOST_CLASSES // 2 or max(values) > 255:
        return None
    share = 1 - (values[0] + values[255]) / values.total()
    return share if share < _EDGES else None


def _merged(palettes: Sequence[Mapping[int, Color]]) -> tuple[dict[int, Color], bool]:
    merged: dict[int, Color] = {}
    clash = False
    for palette in palettes:
        for index, color in palette.items():
            clash |= merged.setdefault(index, color) != color
    return merged, clash


def _tells_apart(colors: Sequence[Color]) -> bool:
    """Whether colours show classes well: each has its own, and they are not the greys of a palette of numbers."""
    return len(set(colors)) == len(colors) and any(max(color) - min(color) > 32 for color in colors)


# ---- colours


def _by_color(values: Counter[int], names: Mapping[Any, str]) -> Classes:
    if len(values) > _MOST_COLORS:
        raise UserError(
            f"masks: hold {len(values)} different colours, more than there can be classes; expected masks as they "
            "were drawn, with one colour a class (not a colour for each instance, and not smoothed or resized)"
        )
    # Black first, which is the background as a rule; then the most frequent.
    colors = sorted(map(_unpacked, values), key=lambda color: (color != (0, 0, 0), -values[_packed(color)]))
    reasons = {"colors": "colour in the masks: class; 255 ignores a colour", "palette": "the colours of the masks"}
    cityscapes = dict(zip(PRESETS["cityscapes"].palette, PRESETS["cityscapes"].names, strict=True))
    ids = {_text(color): index for index, color in enumerate(colors)}
    if len(colors) > 2 and all(color in cityscapes for color in colors if any(color)):
        names, reasons["names"] = cityscapes, "the colours are those of Cityscapes"
        if not any(colors[0]):  # not labelled there
            colors = colors[1:]
            ids = {_text((0, 0, 0)): IGNORE_INDEX} | {_text(color): index for index, color in enumerate(colors)}
    else:
        reasons["names"] = "black first, then by their share of the pixels; give them their names"
    palette = [list(color) for color in colors]
    return Classes({"names": _names(colors, names), "palette": palette, "colors": ids}, reasons)


def _packed(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _unpacked(value: int) -> Color:
    return value >> 16, value >> 8 & 255, value & 255


def _text(color: Color) -> str:
    return ", ".join(map(str, color))


# ---- names


def _names(values: Sequence[Any], known: Mapping[Any, str]) -> list[str]:
    """A name for each value: the one that is known, or `class_1`; black and 0 are the background."""
    if len(values) == 2 and not known and values[0] in (0, (0, 0, 0)):
        return ["background", "object"]
    found = []
    for index, value in enumerate(values):
        plain = "background" if value == (0, 0, 0) else f"class_{value if isinstance(value, int) else index}"
        found.append(known.get(value, plain))
    return found if len(set(found)) == len(found) else [f"{name}_{index}" for index, name in enumerate(found)]


def is_proposal(name: str) -> bool:
    """Whether a class is called so for want of a name."""
    return re.fullmatch(r"object|class_\d+(_\d+)?", name) is not None


def _named(folders: Sequence[Path]) -> dict[Any, str]:
    """By id or colour, the names that a file beside the images lists."""
    for path in (
        folder / name for folder in folders for name in (*_NAME_FILES, "meta.json", "classes.json", "id2label.json")
    ):
        try:
            text = path.read_text("utf-8")
            found = _of_json(json.loads(text)) if path.suffix == ".json" else _of_lines(text.splitlines())
        except (OSError, ValueError, RecursionError):
            continue
        if len(found) > 1:
            return found
    return {}


def _of_json(content: Any) -> dict[Any, str]:
    if isinstance(content, dict):
        content = next((content[key] for key in ("classes", "names", "labels", "id2label") if key in content), content)
    if isinstance(content, list):
        names = [item.get("name", "") if isinstance(item, dict) else item for item in content]
        return {index: str(name) for index, name in enumerate(names)}
    if isinstance(content, dict) and all(str(key).isdigit() for key in content):
        return {int(key): str(name) for key, name in content.items()}
    return {}


def _of_lines(lines: Sequence[str]) -> dict[Any, str]:
    """A name a line; `0, name` as Roboflow and `name:255,0,0` as CVAT write it."""
    found: dict[Any, str] = {}
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for line in lines:
        if match := re.fullmatch(r"(.+?):(\d+),(\d+),(\d+)(:.*)?", line):
            found[tuple(int(match[channel]) for channel in (2, 3, 4))] = match[1]
        elif match := re.fullmatch(r"(\d+)\s*[,:\t ]\s*([^,]+)", line):
            found[int(match[1])] = match[2].strip()
        elif "," in line or len(line) > 64:  # a header, or no list
            continue
        else:
            found[len(found)] = line
    return found
