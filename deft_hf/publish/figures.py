"""The figures of a run. Each `draw_` function returns a figure, or `None` if there is nothing to draw.

Methods have the same colours as in [`~deft_hf.scoring.report`], classes those of the label space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deft_hf.data.labels import LabelSpace
from deft_hf.scoring.report import METHOD_COLORS, MOST_PANELS, Results, new_figure, save_figure
from deft_hf.utils.text import figure_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]

# Not among the colours of the first methods.
_ENCODER, _DECODER = METHOD_COLORS[4], METHOD_COLORS[5]
_PARTS = {"encoder": _ENCODER, "decoder": _DECODER}
_MARKERS = "osD^vPX"
_MOST_LAYER_NAMES = 60
_MOST_WRITTEN_CLASSES = 12


@dataclass(frozen=True)
class RunRecord:
    """What the figures of a run are drawn from.

    Attributes:
        method (`str`):
            Method of the run; the others in `results` are shown beside it.
        stages (`Sequence[tuple[str, int]]`):
            Stages of `method` and their optimizer steps, in order.
        histories (`Mapping[str, History]`):
            By method, `TrainerState.log_history`.
        results (`Results`):
            `results[method][domain]` is a `Scores.to_dict()`.
        confusions (`Mapping[str, Sequence[Sequence[int]]]`):
            By domain, counts of `method` as rows of a (C, C) matrix, truth by row; empty if not kept.
        distances (`Mapping[str, Mapping[str, float]]`):
            By method and layer, in the model's order, ||θ - θ_init|| / ||θ_init||; empty if not kept.
        labels (`LabelSpace`):
            Names and colours of the classes.
        source (`Sequence[str]`):
            Names of the validation domains.
        unseen (`Sequence[str]`):
            Names of the domains that were only evaluated.
    """

    method: str
    stages: Sequence[tuple[str, int]]
    histories: Mapping[str, History]
    results: Results
    confusions: Mapping[str, Sequence[Sequence[int]]]
    distances: Mapping[str, Mapping[str, float]]
    labels: LabelSpace
    source: Sequence[str]
    unseen: Sequence[str]


def save_run_figures(folder: Path, run: RunRecord) -> dict[str, str]:
    """Draw all figures; returns their captions by file name, in the order of a report."""
    captions = {}
    for draw in (draw_curves, draw_classes, draw_confusion, draw_layers):
        name = draw.__name__.removeprefix("draw_") + ".png"
        figure = draw(run)
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            save_figure(figure, folder / name)
            captions[name] = figure.get_suptitle()
    return captions


def score_curve(history: History, domains: Iterable[str], suffix: str = "") -> dict[int, dict[str, float]]:
    """Mean IoU during training by step and domain, from the Trainer's log.

    Empty for a run that was scored only at its end.

    Args:
        history (`History`):
            `TrainerState.log_history`.
        domains (`Iterable[str]`):
            Names of the domains; only steps that have all of them count.
        suffix (`str`, *optional*, defaults to `""`):
            `"_usual"` for the usual component, empty for the exported one.
    """
    domains, curve = list(domains), dict[int, dict[str, float]]()
    for entry in history:
        for domain in domains:
            value = entry.get(f"eval_{domain}{suffix}_mean_iou")
            if value is not None:
                # The second evaluation at a step comes after training, on all images: not a point of the curve.
                curve.setdefault(entry["step"], {}).setdefault(domain, value)
    whole = {step: found for step, found in curve.items() if len(found) == len(domains)}
    return whole if len(whole) > 1 else {}


def draw_curves(run: RunRecord) -> Figure | None:
    """Losses, learning rates, share of the initialisation left, distances, and mean IoU during training."""
    history = [entry for entry in run.histories[run.method] if "loss" in entry and "step" in entry]
    # Of one method only: others have losses with other names, and no share of the initialisation.
    panels = [
        ("loss, mean since the last point", _losses(history), "linear"),
        ("learning rate", _by_part(history, "{}_learning_rate"), "linear"),
        ("share of the initialisation left", _by_part(history, "{}_initial_share"), "share"),
        ("L2 distance to the initialisation", _distances(history), "linear"),
    ]
    panels = [panel for panel in panels if panel[1]]
    scores = {method: score_curve(log, [*run.source, *run.unseen]) for method, log in run.histories.items()}
    scores = {method: curve for method, curve in scores.items() if curve}
    groups = [("source", run.source), ("unseen", run.unseen)] if scores else []
    groups = [group for group in groups if group[1]]
    count = len(panels) + len(groups)
    if not count or (len(history) < 2 and not groups):
        return None
    figure = new_figure((9.6, 0.9 + 2.9 * math.ceil(count / 2)))
    figure.suptitle(f"Training of {run.method}, step by step", fontsize=12)
    grid = list(figure.subplots(math.ceil(count / 2), 2, squeeze=False).flat)
    ends = np.cumsum([steps for _, steps in run.stages])[:-1].tolist()
    for axes in grid[count:]:
        axes.remove()
    for axes, (title, lines, scale) in zip(grid, panels, strict=False):
        axes.set_title(title, fontsize=10)
        for name, (steps, values, style) in lines.items():
            axes.plot(*_in_stages(steps, values, ends), label=name, **_dots_alone(steps, ends), **style)
        if scale == "share":
            axes.set_ylim(-0.03, 1.03)
    for axes, (kind, domains) in zip(grid[len(panels) :], groups, strict=False):
        axes.set_title(f"mean IoU on {kind} images scored while training, per cent", fontsize=10)
        for index, method in enumerate(run.results):
            if method in scores:
                means = {step: 100 * np.mean([found[d] for d in domains]) for step, found in scores[method].items()}
                style = {"color": _color(index), "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4}
                axes.plot(list(means), list(means.values()), label=method, linewidth=1.8, **style)
    for axes in grid[:count]:
        for end in ends:
            axes.axvline(end, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.set_xlabel("optimizer steps", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    if ends:
        figure.supxlabel(f"dashed: end of {', '.join(stage for stage, _ in run.stages[:-1])}", fontsize=9)
    return figure


def draw_classes(run: RunRecord) -> Figure | None:
    """IoU of each class on each domain as bars in the colour of the class; markers for the other methods."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    own = run.results[run.method]
    found = [domain for domain in [*run.source, *run.unseen] if domain in own]
    if not found:
        return None
    domains = found[:MOST_PANELS]
    others = [method for method in run.results if method != run.method]
    names = [figure_text(name) for name in run.labels.names]
    columns = min((3, 2), key=lambda count: -len(domains) % count) if len(domains) > 2 else len(domains)
    rows = math.ceil(len(domains) / columns)
    width = 0.075 * max(map(len, names)) + 2.9 * columns + 0.3
    figure = new_figure((max(width, 5.5), 1.1 + rows * (0.6 + 0.24 * len(names))))
    note = f" (the first {len(domains)} of {len(found)} domains)" if len(found) > len(domains) else ""
    figure.suptitle(f"IoU by class, domain by domain: {run.method}{note}", fontsize=12)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in grid[len(domains) :]:
        axes.remove()
    places = np.arange(len(names))
    colors = [[channel / 255 for channel in color] for color in run.labels.palette]
    for axes, domain in zip(grid, domains, strict=False):
        axes.set_title(f"{figure_text(domain)} ({'source' if domain in run.source else 'unseen'})", fontsize=10)
        heights = _per_cent(own[domain]["iou"])
        axes.barh(places, np.nan_to_num(heights), 0.72, color=colors, edgecolor="0.4", linewidth=0.5)
        for place, height in zip(places, heights, strict=True):
            text = "absent" if math.isnan(height) else f"{height:.1f}"
            axes.text(101, place, text, va="center", fontsize=8, color="0.3", clip_on=False)
        for index, method in enumerate(others):
            if domain in run.results[method]:
                style = {"markeredgecolor": "white", "markeredgewidth": 0.8, "markersize": 6}
                values = _per_cent(run.results[method][domain]["iou"])
                axes.plot(values, places, _MARKERS[index % len(_MARKERS)], color="black", **style)
        axes.set_yticks(places, names, fontsize=9)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 118)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel("IoU, per cent", fontsize=9)
        axes.label_outer()
    own_patch = Patch(facecolor="0.8", edgecolor="0.4", label=f"{run.method}, in the colour of the class")
    handles: list[Artist] = [own_patch]
    for index, method in enumerate(others):
        marker = _MARKERS[index % len(_MARKERS)]
        handles.append(Line2D([], [], color="black", marker=marker, linestyle="", label=method))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def draw_confusion(run: RunRecord) -> Figure | None:
    """Heat maps of the classes predicted for pixels of each class, over all source and over all unseen domains."""
    groups = []
    for kind, domains in (("source", run.source), ("unseen", run.unseen)):
        found = [np.asarray(run.confusions[domain], dtype=np.int64) for domain in domains if domain in run.confusions]
        if found:
            groups.append((kind, np.sum(found, axis=0)))
    if not groups:
        return None
    names = [figure_text(name) for name in run.labels.names]
    side = 1.6 + max(0.36 * min(len(names), 30), 2.2)
    figure = new_figure((side * len(groups) + 1.6, side + 1.5))
    figure.suptitle(f"What pixels of each class are taken for: {run.method}", fontsize=12)
    grid = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, (kind, counts) in zip(grid, groups, strict=True):
        totals = counts.sum(1, keepdims=True)
        shares = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
        axes.set_facecolor("0.85")  # shows through where a class has no pixel
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
        axes.set_title(f"{kind} domains", fontsize=10)
        size = 9 if len(names) <= 20 else 5
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted", fontsize=9)
        if len(names) <= _MOST_WRITTEN_CLASSES:
            for row, column in np.argwhere(shares >= 0.5):
                color = "black" if shares[row, column] > 55 else "white"
                axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    grid[0].set_ylabel("truth", fontsize=9)
    figure.colorbar(image, ax=list(grid), label="per cent of the class's pixels", shrink=0.8)
    return figure


def draw_layers(run: RunRecord) -> Figure | None:
    """Distance of each layer from the initialisation, layers from input to output: one marker per method."""
    found = {method: layers for method, layers in run.distances.items() if any(layers.values())}
    layers = list(dict.fromkeys(layer for distances in found.values() for layer in distances))
    if not layers:
        return None
    names = [figure_text(layer) for layer in layers]
    height = 1.7 + min(0.17 * len(layers), 10)
    figure = new_figure((5.2 + 0.06 * max(map(len, names)), height))
    figure.suptitle("Distance from the initialisation, layer by layer", fontsize=12)
    axes = figure.subplots()
    for index, method in enumerate(run.results):
        if method in found:
            # The axis is logarithmic: a layer that did not move has no marker.
            values = [found[method].get(layer) or math.nan for layer in layers]
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(values, range(len(layers)), marker, color=_color(index), markersize=4.5, label=method)
    axes.set_xscale("log")
    every = math.ceil(len(layers) / _MOST_LAYER_NAMES)
    axes.set_yticks(range(0, len(layers), every), names[::every], fontsize=7)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("||θ − θ_init|| / ||θ_init||, log scale; first layer on top", fontsize=9)
    figure.legend(loc="outside lower center", ncols=min(len(found), 4), frameon=False, fontsize=9)
    return figure


Lines = dict[str, tuple[list[int], list[float], dict[str, Any]]]


def _losses(history: History) -> Lines:
    names = list(dict.fromkeys(key for entry in history for key in entry if key.endswith("_loss"))) or ["loss"]
    colors = {"encoder_loss": _ENCODER, "decoder_loss": _DECODER}
    return {
        name.replace("_", " "): (*line, {"color": colors.get(name, METHOD_COLORS[2]), "linewidth": 1.8})
        for name in names
        if (line := _line(history, name))
    }


def _by_part(history: History, key: str, **style: Any) -> Lines:
    lines = {}
    for part, color in _PARTS.items():
        if line := _line(history, key.format(part)):
            # The decoder's line lies on top of the encoder's where they are equal: both stay visible.
            dashes = {"linestyle": (0, (5, 3))} if part == "decoder" else {}
            lines[part] = (*line, {"color": color, "linewidth": 1.8, **dashes, **style})
    return lines


def _distances(history: History) -> Lines:
    usual = _by_part(history, "usual_{}_distance", linewidth=1.2, linestyle=":")
    return _by_part(history, "{}_distance", linestyle="-") | {f"usual {part}": line for part, line in usual.items()}


def _in_stages(steps: list[int], values: list[float], ends: list[int]) -> tuple[list[int], list[float]]:
    """Points with a gap at the end of each stage: nothing moved there from one value to the next."""
    gaps = [end for end in ends if any(step <= end for step in steps) and any(step > end for step in steps)]
    # A gap comes after the points at its step.
    points = sorted([*zip(steps, values, strict=True), *((end, math.nan) for end in gaps)], key=_place)
    return [step for step, _ in points], [value for _, value in points]


def _place(point: tuple[int, float]) -> tuple[int, bool]:
    return point[0], math.isnan(point[1])


def _dots_alone(steps: list[int], ends: list[int]) -> dict[str, Any]:
    """A marker where a stage has a single point, of which no line can be drawn."""
    stages = [sum(step > end for end in ends) for step in steps]
    return {"marker": ".", "markersize": 4} if any(stages.count(stage) == 1 for stage in stages) else {}


def _line(history: History, key: str) -> tuple[list[int], list[float]] | None:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return ([step for step, _ in points], [value for _, value in points]) if points else None


def _per_cent(values: Sequence[float | None]) -> np.ndarray:
    """Null, which NaN is in JSON, becomes NaN again."""
    return 100 * np.array([math.nan if value is None else value for value in values], dtype=float)


def _color(index: int) -> str:
    return METHOD_COLORS[index % len(METHOD_COLORS)]
