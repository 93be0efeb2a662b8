"""The one place where what a mask file holds becomes what a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.masks import Color, as_stored, check_alpha, check_stored, used_colors
from deft_hf.utils.errors import UserError

# Train ids are uint8: 255 is the ignored id and 254 marks, inside the tables only, what the space does not know.
_UNKNOWN = 254
_RAW_IDS = 65536
_LOWEST_RAW_ID = -(2**31)
REST = "rest"
"""The key of `ids` that stands for every raw id that is not listed."""
_NAMED_IN_ERRORS = 8

# Okabe & Ito, "Color Universal Design" (https://jfly.uni-koeln.de/color/), without black, which shows ignored pixels.
_OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
)


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a task, and how the values of its masks map to them.

    Args:
        names (`tuple[str, ...]`):
            One name per class, 2 to 254 of them; a name's position is its train id.
        palette (`tuple[Color, ...]`, *optional*, defaults to `()`):
            One (red, green, blue) colour in 0..255 per class, for figures and, without `colors`, for reading coloured
            masks; by default the colour-blind-safe colours of Okabe and Ito, and darker shades of them.
        ids (`Mapping[int | str, int]`, *optional*):
            Raw id in the mask file (at most 65535, negative ones of 32 bits too) -> train id, or 255 for pixels to
            ignore. By default raw ids are train ids. 255 is ignored without being listed; list it (`{0: 0, 255: 1}`)
            for binary masks stored as 0 and 255. The key `rest` stands for every other raw id, 255 too: `{0: 0, rest:
            1}` makes one class of instances that are numbered from 1 to whatever each picture has.
        colors (`Mapping[Color, int]`, *optional*):
            Colour -> train id or 255, for masks stored as RGB or RGBA, and for indexed ones unless `ids` is given too.
            By default RGB by `palette`, and black is ignored unless the palette uses it: what `colorize` writes,
            `encode` reads; indexed masks by index.
        other_names (`Mapping[str, int]`, *optional*):
            What label exports call a class that is none of `names` -> train id or 255; see `Domain.from_annotations`.
        stored (`str`, *optional*):
            Of masks of street scenes `"ids"`, where a data set's own ids are declared, or `"train ids"`, where the
            nineteen of Cityscapes are. Files whose name or values say the other are refused.

    Raises:
        UserError: If the parts contradict each other, or a value is out of its range.

    Example:

    ```python
    >>> import numpy as np
    >>> from deft_hf import LabelSpace
    >>> from PIL import Image

    >>> labels = LabelSpace(names=("road", "car"), ids={7: 0, 26: 1, 0: 255})
    >>> mask = Image.fromarray(np.array([[7, 7], [26, 0]], np.uint8))
    >>> labels.encode(mask, name="mask.png").tolist()
    [[0, 0], [1, 255]]

    ```
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    ids: Mapping[Any, int] | None = None
    colors: Mapping[Color, int] | None = None
    other_names: Mapping[str, int] | None = None
    stored: str | None = None

    def __post_init__(self) -> None:
        names = _sequence(self.names, "names", "a list of class names")
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UserError(f"labels.names: found {list(names)}, expected one non-empty name a class")
        if len(names) == 1:
            raise UserError(
                f"labels.names: found one class, {names[0]}, which leaves nothing to tell apart; name the rest as a "
                f"class of its own, such as names: [background, {names[0]}] with ids: {{0: 0, 255: 1}}"
            )
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"labels.names: {', '.join(repeated)} stands there more than once; give each class its own name"
            )
        if len(names) > _UNKNOWN:
            raise UserError(f"labels.names: found {len(names)} classes; masks of train ids hold at most {_UNKNOWN}")

        palette = _sequence(self.palette, "palette", "a list of [red, green, blue]") or default_palette(len(names))
        palette = tuple(_color(color, "palette") for color in palette)
        if len(palette) != len(names):
            raise UserError(f"labels.palette: found {len(palette)} colours for {len(names)} names; give one a class")

        object.__setattr__(self, "names", names)
        object.__setattr__(self, "palette", palette)
        if self.ids is not None:
            ids = _mapping(self.ids, "ids")
            if not ids:
                raise UserError("labels.ids is empty; list the raw ids, or leave it out where raw ids are train ids")
            for raw, train in ids.items():
                if raw != REST and (not _is_int(raw) or not _LOWEST_RAW_ID <= raw < _RAW_IDS):
                    expected = f"a whole number up to {_RAW_IDS - 1}, or {REST}"
                    raise UserError(f"labels.ids: found the raw id {raw!r}, expected {expected}")
                self._check_train_id(train, f"labels.ids: {raw}")
            object.__setattr__(self, "ids", dict(ids))
        if self.colors is not None:
            colors = {_color(color, "colors"): train for color, train in _mapping(self.colors, "colors").items()}
            for color, train in colors.items():
                self._check_train_id(train, f"labels.colors: {color}")
            object.__setattr__(self, "colors", colors)
        for name, train in (self.other_names or {}).items():
            self._check_train_id(train, f"labels.ids: {name}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> LabelSpace:
        """Builds a space from a recipe's `labels` section.

        Args:
            mapping (`Mapping[str, Any]`):
                Keys `names`, `palette`, `ids` and `colors`, as in the constructor. Since a key of a YAML or JSON
                mapping cannot be a list, the colours of `colors` are written as text: `"128, 64, 128": 0`. Names among
                the keys of `ids` are `other_names`: `{0: 0, 7: 1, bush: 1}`.

        Raises:
            UserError: An unknown key, no `names`, or a value that the constructor refuses.
        """
        known = ("names", "palette", "ids", "colors")
        mapping = _mapping(mapping, None)
        if unknown := [str(key) for key in mapping if key not in known]:
            raise UserError(f"labels: unknown key {', '.join(unknown)}; expected {', '.join(known)}")
        if "names" not in mapping:
            raise UserError("labels: `names` is missing; list the classes in the order of their train ids")
        colors = mapping.get("colors")
        if colors is not None:
            colors = {_parse_color(color): train for color, train in _mapping(colors, "colors").items()}
        ids = mapping.get("ids")
        other_names = {key: train for key, train in ids.items() if _is_name(key)} if isinstance(ids, Mapping) else {}
        if other_names:
            ids = {key: train for key, train in mapping["ids"].items() if key not in other_names} or None
        return cls(mapping["names"], mapping.get("palette") or (), ids, colors, other_names or None)

    @property
    def num_labels(self) -> int:
        """Number of classes, the ignored one not counted."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Train id -> name, as a model's configuration holds it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Name -> train id, as a model's configuration holds it."""
        return {name: index for index, name in enumerate(self.names)}

    def encode(self, mask: Image.Image, name: str) -> np.ndarray:
        """Maps a mask as stored to train ids.

        Args:
            mask (`Image.Image`):
                Mode `1` (0 and 1), `L`, `P` (by index; by colour where `colors` alone is declared), `I;16`, `I`, or
                `RGB`/`RGBA` (by colour).
            name (`str`):
                The file's name, for messages.

        Returns:
            `np.ndarray`: uint8 array (H, W) of train ids, 255 where a pixel is ignored.

        Raises:
            UserError: An id or a colour that the space does not know, a mode that holds neither, a palette that
                contradicts the declared colours, or a file that `deft_hf.data.masks.as_stored` refuses.
        """
        mask = as_stored(mask, name)
        if self.stored is not None and mask.mode in ("L", "P"):
            check_stored(mask, name, self.stored)
        if mask.mode == "P":
            return self._encode_indexed(mask, name)
        if mask.mode in ("RGB", "RGBA"):
            if mask.mode == "RGBA":
                check_alpha(np.asarray(mask), name)
            train = np.take(self._color_table, _packed(mask))
        elif mask.mode == "L":
            train = np.array(mask.point(self._byte_table))
        elif mask.mode in ("1", "I") or mask.mode.startswith("I;16"):
            train = self._by_id(np.asarray(mask))
        else:
            raise UserError(
                f"{name}: found a mask of mode {mask.mode}, expected whole-number ids (8, 16 or 32 bits), a palette "
                "or RGB colours; save it as a PNG of one of these"
            )
        if (train == _UNKNOWN).any():
            by_color = mask.mode.startswith("RGB")
            raw = _packed(mask) if by_color else np.asarray(mask)
            unknown = np.unique(raw[train == _UNKNOWN])
            raise UserError(f"{name}: {self._explain(unknown.tolist(), by_color)}")
        return train

    def _by_id(self, raw: np.ndarray) -> np.ndarray:
        # As unsigned, a negative id of a 32-bit mask is a large one; clipping takes both to the last entry.
        train = np.take(self._id_table, raw.astype(np.uint32), mode="clip")
        if raw.dtype == np.int32:
            for raw_id, train_id in (self.ids or {}).items():
                if not isinstance(raw_id, str) and raw_id < 0:
                    train[raw == raw_id] = train_id
        return train

    def _encode_indexed(self, mask: Image.Image, name: str) -> np.ndarray:
        """By index, or by the colour of an index, whichever is declared; where both are, they must agree."""
        colors = used_colors(mask)
        by_id = {index: int(self._id_table[index]) for index in colors}
        by_color = {index: self._declared_colors.get(color, _UNKNOWN) for index, color in colors.items()}
        known = _UNKNOWN not in by_color.values()
        if self.colors is not None and (self.ids is None or (_UNKNOWN in by_id.values() and known)):
            if not known:
                packed = [r << 16 | g << 8 | b for i, (r, g, b) in colors.items() if by_color[i] == _UNKNOWN]
                raise UserError(
                    f"{name}: its palette: {self._explain(sorted(packed), by_color=True)}. If the indices count and "
                    "not the colours, leave labels.colors out or list the indices in labels.ids"
                )
            chosen = by_color
        else:
            if unknown := [index for index, train in by_id.items() if train == _UNKNOWN]:
                raise UserError(f"{name}: {self._explain(unknown, by_color=False)}")
            self._check_colors(by_id, by_color, colors, name)
            chosen = by_id
        return np.array(mask.point([chosen.get(index, 0) for index in range(256)], "L"))

    def _check_colors(
        self, by_id: Mapping[int, int], by_color: Mapping[int, int], colors: Mapping[int, Color], name: str
    ) -> None:
        for index, train in by_id.items():
            other = by_color[index]
            if other < self.num_labels and train < self.num_labels and other != train:
                declared = "palette" if self.colors is None else "colors"
                raise UserError(
                    f"{name}: its palette contradicts labels.{declared}: index {index} is {self.names[train]}, but "
                    f"has the colour {colors[index]} of {self.names[other]}. If the colours count, give them in "
                    "labels.colors without labels.ids; if the indices count, give the classes the colours of the file"
                )

    def colorize(self, ids: np.ndarray) -> np.ndarray:
        """Paints train ids (H, W) in the palette's colours: uint8 (H, W, 3), ignored pixels black."""
        table = np.zeros((IGNORE_INDEX + 1, 3), np.uint8)
        table[: self.num_labels] = self.palette
        return table[ids]

    @cached_property
    def _id_table(self) -> np.ndarray:
        ids: Mapping[Any, int] = {index: index for index in range(self.num_labels)}
        ids = ids if self.ids is None else self.ids
        table = np.full(_RAW_IDS + 1, ids.get(REST, _UNKNOWN), np.uint8)
        if REST not in ids:
            table[IGNORE_INDEX] = IGNORE_INDEX
        for raw, train in ids.items():
            if not isinstance(raw, str) and raw >= 0:
                table[raw] = train
        return table

    @cached_property
    def _byte_table(self) -> list[int]:
        return self._id_table[:256].tolist()

    @cached_property
    def _declared_colors(self) -> dict[Color, int]:
        """What indexed masks are compared with; nothing where the palette is the default one, which nobody chose."""
        if self.colors is not None:
            return dict(self.colors)
        if self.palette == default_palette(self.num_labels) or len(set(self.palette)) < len(self.palette):
            return {}
        return {color: index for index, color in enumerate(self.palette)}

    @cached_property
    def _color_table(self) -> np.ndarray:
        colors = self.colors
        if colors is None:
            if len(set(self.palette)) < len(self.palette):
                raise UserError(
                    "labels.palette: two classes share a colour, so coloured masks cannot be read; give `colors`"
                )
            colors = {(0, 0, 0): IGNORE_INDEX} | {color: index for index, color in enumerate(self.palette)}
        table = np.full(1 << 24, _UNKNOWN, np.uint8)
        for (red, green, blue), train in colors.items():
            table[red << 16 | green << 8 | blue] = train
        return table

    def _check_train_id(self, train: Any, key: str) -> None:
        if not _is_int(train) or not (0 <= train < self.num_labels or train == IGNORE_INDEX):
            raise UserError(
                f"{key} maps to {train!r}, expected a train id in 0..{self.num_labels - 1}, or {IGNORE_INDEX} to "
                "ignore it"
            )

    def _explain(self, unknown: list[int], by_color: bool) -> str:
        shown = [(raw >> 16, raw >> 8 & 255, raw & 255) if by_color else raw for raw in unknown[:_NAMED_IN_ERRORS]]
        found = ", ".join(map(str, shown))
        if len(unknown) > len(shown):
            found += f" and {len(unknown) - len(shown)} more"
        if by_color:
            key = "palette" if self.colors is None else "colors"
            return (
                f"found the colours {found}, which labels.{key} does not list; give every colour a train id "
                "(255 = ignore) in labels.colors. Many odd colours mean a mask that was saved as JPEG or smoothed"
            )
        noise = ". Many odd ids mean a mask that was saved as JPEG or smoothed" if len(unknown) > len(shown) else ""
        if self.ids is None:
            example = ", such as {0: 0, 1: 1, " + f"{unknown[0]}: {IGNORE_INDEX}}}" if unknown[0] < 0 else ""
            return (
                f"found the ids {found}, expected 0..{self.num_labels - 1} or {IGNORE_INDEX}; if the "
                f"masks hold a data set's own ids, say in labels.ids which class each one is (255 = ignore){example}"
                f"{noise}"
            )
        if all(0 <= raw < self.num_labels for raw in unknown):
            return (
                f"found the ids {found}, which labels.ids does not list but which are train ids; if the masks "
                "hold train ids already, leave labels.ids out"
            )
        way_out = f"give each one a train id there (255 = ignore){noise}"
        return f"found the ids {found}, which labels.ids does not list; {way_out}"


def default_palette(count: int) -> tuple[Color, ...]:
    """Colours for `count` classes: those of Okabe and Ito, then darker and darker shades of them."""
    # Every further round of the seven hues is darkened by another step of the golden ratio, which keeps rounds apart.
    rounds = (1 - 0.7 * (index // len(_OKABE_ITO) * 0.618 % 1) for index in range(count))
    hues = ((_OKABE_ITO[index % len(_OKABE_ITO)], shade) for index, shade in enumerate(rounds))
    return tuple((round(red * shade), round(green * shade), round(blue * shade)) for (red, green, blue), shade in hues)


def _is_name(key: Any) -> bool:
    # A number in quotes is a mistake.
    return isinstance(key, str) and key != REST and not key.removeprefix("-").isdigit()


def _packed(mask: Image.Image) -> np.ndarray:
    """Colours as red << 16 | green << 8 | blue."""
    pixels = np.frombuffer(mask.convert("RGB").tobytes("raw", "BGRX"), "<u4")
    return pixels.reshape(mask.height, mask.width)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _sequence(value: Any, key: str, expected: str) -> tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"labels.{key}: found {value!r}, expected {expected}")
    return tuple(value)


def _mapping(value: Any, key: str | None) -> Mapping:
    if not isinstance(value, Mapping):
        raise UserError(f"labels{f'.{key}' if key else ''}: found {value!r}, expected a mapping")
    return value


def _color(value: Any, key: str) -> Color:
    color = _sequence(value, key, "colours as [red, green, blue]")
    if len(color) != 3 or not all(_is_int(channel) and 0 <= channel <= 255 for channel in color):
        raise UserError(f"labels.{key}: found the colour {value!r}, expected three whole numbers in 0..255")
    red, green, blue = map(int, color)
    return red, green, blue


def _parse_color(text: Any) -> tuple[int, ...]:
    if not isinstance(text, str):
        return text
    try:
        return tuple(int(channel) for channel in text.split(","))
    except ValueError:
        raise UserError(f'labels.colors: found the colour {text!r}, expected "red, green, blue" in 0..255') from None
