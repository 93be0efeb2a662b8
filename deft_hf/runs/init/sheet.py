"""A picture of what was found: some of the labelled images with their classes over them, and the classes' shares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import LabelSpace
from deft_hf.data.pictures import ValueRange
from deft_hf.runs.init.roles import Roles, classes_of
from deft_hf.runs.init.sources import Part, Sources
from deft_hf.utils.text import figure_text

SOFTWARE = "deft-hf init"
BACKGROUND = "background"
_SHOWN = 12
_COLUMNS = 4
_SIDE = 480
_OPACITY = 0.5


def save_sheet(path: Path, title: str, sources: Sources, roles: Roles, value_range: ValueRange | None) -> None:
    """Draws a contact sheet.

    Args:
        path (`Path`):
            PNG file.
        title (`str`):
            What it shows.
        sources (`Sources`):
            What was found.
        roles (`Roles`):
            What it is for.
        value_range (`tuple[float, float]` or `None`):
            Of images of more than 8 bits.
    """
    space = sources.space
    chosen = _chosen(sources, roles)
    rows = math.ceil(len(chosen) / _COLUMNS)
    columns = min(_COLUMNS, len(chosen))
    pixels = classes_of([pair for part in sources.labelled for pair in part.pairs], sources.classes)
    legend = _legend(space, pixels)
    legend_rows = math.ceil(len(legend) / columns)
    pictures = [(caption, *_pair(part, index, space, value_range)) for caption, part, index in chosen]
    tallest = max(picture.shape[0] / picture.shape[1] for _, picture, _ in pictures)
    size = (3.2 * columns, rows * (3.1 * min(tallest, 1.5) + 0.25) + 0.26 * legend_rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(figure_text(title, 110), fontsize=12)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (caption, picture, ids) in zip(grid.flat, pictures, strict=False):
        axes.imshow(_overlay(picture, ids, space))
        axes.set_title(figure_text(caption, 44), fontsize=8)
    # A wider column for names than there is room beside four pictures.
    figure.legend(
        handles=legend, loc="outside lower center", ncols=min(columns, len(legend)), fontsize=9, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png", metadata={"Software": SOFTWARE})


def _chosen(sources: Sources, roles: Roles) -> list[tuple[str, Part, int]]:
    """Caption, part and position of a dozen pairs: an image of every class first, then evenly spaced ones."""
    candidates = []
    for section, part in roles.shown:
        assert part.domain is not None
        position = {key: index for index, key in enumerate(part.domain.ids)}
        candidates += [(section, part, position[pair.id], pair) for pair in part.pairs if pair.id in position]
    counts = [sources.classes.train_ids(pair) for *_, pair in candidates]
    total = classes_of([pair for *_, pair in candidates], sources.classes)
    picked: list[int] = []
    for train in sorted((train for train in total if train != IGNORE_INDEX), key=total.__getitem__)[:_SHOWN]:
        if not any(counts[index].get(train, 0) for index in picked):
            picked.append(max(range(len(candidates)), key=lambda index: counts[index].get(train, 0)))
    for step in range(_SHOWN):
        index = step * len(candidates) // _SHOWN
        if len(picked) < _SHOWN and index not in picked:
            picked.append(index)
    return [
        (f"{part.place}: {pair.id}" + (", unseen" if section == "unseen" else ""), part, position)
        for section, part, position, pair in (candidates[index] for index in sorted(picked))
    ]


def _pair(part: Part, index: int, space: LabelSpace, value_range: ValueRange | None) -> tuple[np.ndarray, np.ndarray]:
    image, ids = part.load(index, space, value_range)
    shrink = min(1, _SIDE / max(image.size))
    size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    small = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)), np.asarray(small)


def _overlay(picture: np.ndarray, ids: np.ndarray, space: LabelSpace) -> np.ndarray:
    """The classes' colours over the image, but for a background; edges drawn whole, ignored pixels hatched."""
    colors = space.colorize(ids).astype(np.float64)
    opacity = np.full((*ids.shape, 1), _OPACITY)
    if space.names[0] == BACKGROUND:
        opacity[ids == 0] = 0
    mixed = picture * (1 - opacity) + colors * opacity
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    mixed[edge & (opacity[..., 0] > 0)] = colors[edge & (opacity[..., 0] > 0)]
    rows, columns = np.indices(ids.shape)
    mixed[(ids == IGNORE_INDEX) & ((rows + columns) % 8 < 2)] = 0
    return mixed.clip(0, 255).astype(np.uint8)


def _legend(space: LabelSpace, pixels: dict[int, int]) -> list[Patch]:
    total = max(1, sum(pixels.values()))
    handles = []
    for index, name in enumerate(space.names):
        red, green, blue = (channel / 255 for channel in space.palette[index])
        label = f"{figure_text(name, 24)}  {pixels.get(index, 0) / total:.1%}"
        plain = index == 0 and name == BACKGROUND  # which is not drawn
        handles.append(_patch((1, 1, 1) if plain else (red, green, blue), label))
    if pixels.get(IGNORE_INDEX):
        handles.append(_patch((1, 1, 1), f"ignored  {pixels[IGNORE_INDEX] / total:.1%}", hatch="////"))
    return handles


def _patch(color: tuple[float, float, float], label: str, **options: Any) -> Patch:
    return Patch(facecolor=color, edgecolor="0.3", linewidth=0.5, label=label, **options)
