"""The figures of a comparison. Each function returns a figure, or `None` if there is nothing to draw.

mean IoU is in per cent and differences are in percentage points throughout; lines and bars around a marker are 95 %
intervals (see [`~deft_hf.comparison.statistics`]). An interval may extend beyond the frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from deft_hf.comparison.outcomes import Comparison, Outcome
from deft_hf.comparison.statistics import SOURCE_MEAN, UNSEEN_MEAN, Interval, Summary
from deft_hf.scoring.report import METHOD_COLORS, MOST_PANELS, save_figure
from deft_hf.utils.text import figure_text

Summaries = Mapping[str, Summary]

# Without yellow, whose lines are hard to see on white. Seven colours and eleven shapes have no common factor: the
# first pair that comes twice is that of the 78th method.
_COLORS = tuple(color for color in METHOD_COLORS if color != "#F0E442")
_MARKERS = "os^DvPX<>ph"
_LINES = ("-", "--", ":", "-.")
_BETTER, _WORSE, _UNCLEAR = METHOD_COLORS[0], METHOD_COLORS[5], "0.55"
_MOST_LAYER_NAMES = 120


def save_figures(folder: Path, comparison: Comparison, summaries: Summaries) -> dict[str, str]:
    """Draw all figures; returns their captions by file name, in the order of the page."""
    captions = {}
    for draw in (draw_differences, draw_tradeoff, draw_domains, draw_curves, draw_distances):
        name = draw.__name__.removeprefix("draw_") + ".png"
        figure = draw(comparison, summaries)
        if figure is not None:
            save_figure(figure, folder / name)
            captions[name] = figure.get_suptitle()
    return captions


def draw_differences(comparison: Comparison, summaries: Summaries) -> Figure | None:
    """Forest plot: one row per method with its difference to the baseline, seed by seed, and both intervals."""
    key = headline_key(comparison)
    rows = {m: s.differences[key] for m, s in summaries.items() if key in s.differences and s.differences[key].seeds}
    if not rows:
        return None
    figure, axes = _figure(
        f"Difference to {comparison.baseline}, seed by seed: {key}", 8 + _room(rows), 1.9 + 0.36 * len(rows)
    )
    axes.axvline(0, color="black", linewidth=1)
    for place, difference in enumerate(rows.values()):
        interval, bootstrap = difference.interval, difference.bootstrap
        color = (_BETTER if interval.mean > 0 else _WORSE) if interval.clear_of_zero else _UNCLEAR
        _horizontal(axes, interval, place, color=color, linewidth=2.2, zorder=3)
        axes.plot(100 * interval.mean, place, "D", color=color, markersize=7, zorder=4)
        if bootstrap:
            _horizontal(axes, bootstrap, place + 0.24, color="0.35", linewidth=1, linestyle=(0, (3, 1)), zorder=2)
        _seed_dots(axes, difference.values.values(), place)
        axes.text(1.02, place, interval.in_points(), transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    intervals = [i for d in rows.values() for i in (d.interval, d.bootstrap) if i]
    _limit(axes.set_xlim, [d.values.values() for d in rows.values()], intervals, zero=True)
    _name_rows(axes, list(rows))
    axes.set_xlabel(f"{key} of mean IoU, less that of {comparison.baseline}, percentage points")
    handles = [
        Line2D([], [], color=_BETTER, marker="D", label="95 % t interval over seeds, above zero"),
        Line2D([], [], color=_WORSE, marker="D", label="… below zero"),
        Line2D([], [], color=_UNCLEAR, marker="D", label="… holds zero, or unknown"),
        Line2D([], [], color="0.35", linewidth=1, linestyle=(0, (3, 1)), label="95 % bootstrap over seeds and images"),
        Line2D([], [], color="0.3", marker="o", markersize=3, linestyle="", label="one seed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_tradeoff(comparison: Comparison, summaries: Summaries) -> Figure | None:
    """Unseen against source mean IoU: one marker per method with intervals on both axes, small dots for seeds."""
    both = {m: s for m, s in summaries.items() if {SOURCE_MEAN, UNSEEN_MEAN} <= s.means.keys()}
    both = {m: s for m, s in both.items() if not math.isnan(s.means[SOURCE_MEAN].mean + s.means[UNSEEN_MEAN].mean)}
    if not both:
        return None
    height = max(5.0, 1.2 + 0.25 * len(both))
    figure, axes = _figure("What a method reaches on unseen domains, and on the source", 7.4 + _room(both), height)
    for method, summary in both.items():
        x, y = summary.means[SOURCE_MEAN], summary.means[UNSEEN_MEAN]
        color, marker = _style(comparison, method)
        axes.plot([100 * x.low, 100 * x.high], [100 * y.mean] * 2, color=color, linewidth=1, alpha=0.6)
        axes.plot([100 * x.mean] * 2, [100 * y.low, 100 * y.high], color=color, linewidth=1, alpha=0.6)
        seeds = [100 * np.array([*summary.values[key].values()]) for key in (SOURCE_MEAN, UNSEEN_MEAN)]
        axes.plot(*seeds, marker, color=color, markersize=4, alpha=0.5, markeredgewidth=0)
        edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.7, "linestyle": ""}
        axes.plot(
            100 * x.mean, 100 * y.mean, marker, color=color, markersize=9, label=figure_text(method), zorder=5, **edge
        )
    for key, limit in ((SOURCE_MEAN, axes.set_xlim), (UNSEEN_MEAN, axes.set_ylim)):
        _limit(limit, [s.values[key].values() for s in both.values()], [s.means[key] for s in both.values()])
    axes.set_title("lines: 95 % t intervals over seeds; small markers: single seeds", fontsize=9, color="0.35")
    axes.set_xlabel("source mean of mean IoU, per cent")
    axes.set_ylabel("unseen mean of mean IoU, per cent")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def draw_domains(comparison: Comparison, summaries: Summaries) -> Figure | None:
    """Dot plot: one panel per domain and for the unseen mean, one row per method, the baseline's mean as a line."""
    keys = {domain: f"{figure_text(domain)} (source)" for domain in comparison.source}
    keys |= {domain: figure_text(domain) for domain in comparison.unseen}
    count = len(keys)
    keys = dict(list(keys.items())[:MOST_PANELS])
    if len(comparison.unseen) > 1:
        keys[UNSEEN_MEAN] = UNSEEN_MEAN
    methods = [m for m, s in summaries.items() if any(not math.isnan(mean.mean) for mean in s.means.values())]
    if not methods:
        return None
    columns = min((4, 3), key=lambda count: -len(keys) % count) if len(keys) > 3 else len(keys)
    rows = math.ceil(len(keys) / columns)
    figure = Figure(
        figsize=(0.9 + _room(methods) + max(2.7 * columns, 4.5), 0.8 + rows * (0.8 + 0.24 * len(methods)) + 0.2),
        layout="constrained",
    )
    cut = f" (the first {MOST_PANELS} of {count} domains)" if count > MOST_PANELS else ""
    figure.suptitle(f"Segmentation quality, domain by domain{cut}", fontsize=12)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (key, title) in zip(grid.flat, keys.items(), strict=False):
        axes.set_title(title, fontsize=10, fontweight="bold" if key == UNSEEN_MEAN else "normal")
        if comparison.baseline in methods:
            axes.axvline(100 * summaries[comparison.baseline].means[key].mean, color="0.5", linewidth=1, linestyle=":")
        for place, method in enumerate(methods):
            mean = summaries[method].means[key]
            color, marker = _style(comparison, method)
            _seed_dots(axes, summaries[method].values[key].values(), place)
            _horizontal(axes, mean, place, color=color, linewidth=1.8)
            axes.plot(100 * mean.mean, place, marker, color=color, markersize=6.5, zorder=4)
        found = [summaries[method] for method in methods]
        _limit(axes.set_xlim, [s.values[key].values() for s in found], [s.means[key] for s in found])
        _name_rows(axes, methods)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in list(grid.flat)[len(keys) :]:
        axes.remove()
    note = f"lines: 95 % t intervals over seeds; dots: single seeds; dotted: mean of {comparison.baseline}"
    figure.supxlabel(f"mean IoU, per cent\n{note}", fontsize=9)
    return figure


def draw_curves(comparison: Comparison, summaries: Summaries) -> Figure | None:
    """Mean IoU during training: one line per method, the mean of its seeds, within the range of its seeds."""
    key = headline_key(comparison)
    curves = {method: curve for method in summaries if (curve := _curve(comparison, method))}
    if not curves:
        return None
    figure, axes = _figure(
        f"{key.capitalize()} while training", 7.4 + _room(curves), max(4.6, 1.2 + 0.25 * len(curves))
    )
    # Legend in the order in which the lines end, from the top down.
    for method, (steps, values) in sorted(curves.items(), key=lambda item: -item[1][1][:, -1].mean()):
        color, marker = _style(comparison, method)
        line: dict[str, Any] = {"markersize": 5, "markevery": max(1, len(steps) // 12), "linewidth": 1.6}
        line["linestyle"] = _line(comparison, method)
        axes.plot(steps, values.mean(0), color=color, marker=marker, label=figure_text(method), **line)
        if len(values) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.1, linewidth=0)
    bands = "; bands: range of the seeds" if any(len(values) > 1 for _, values in curves.values()) else ""
    axes.set_title(f"on the images that were scored while training{bands}", fontsize=9, color="0.35")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"{key} of mean IoU, per cent")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def draw_distances(comparison: Comparison, summaries: Summaries) -> Figure | None:
    """Heat map: distance of each layer from the initialisation, layers from input to output, one column per method."""
    runs = {m: [o.distances for o in _outcomes(comparison, m) if o.distances] for m in summaries}
    runs = {method: distances for method, distances in runs.items() if distances}
    layers = list(dict.fromkeys(layer for distances in runs.values() for run in distances for layer in run))
    if not layers:
        return None
    values = np.full((len(layers), len(runs)), np.nan)
    for column, distances in enumerate(runs.values()):
        for row, layer in enumerate(layers):
            found = [run[layer] for run in distances if run.get(layer) is not None and math.isfinite(run[layer])]
            values[row, column] = np.mean(found) if found else np.nan
    width = 1.6 + 0.062 * min(60, max(map(len, layers))) + max(0.45 * len(runs), 3.0)
    figure, axes = _figure(
        "Distance from the initialisation, layer by layer", width, 2.0 + min(0.15 * len(layers), 18)
    )
    axes.set_facecolor("0.85")  # shows through where there is no colour
    moved = values[values > 0]
    if moved.size:
        # The smallest distances are rounding or next to it: three decades below the largest is where colour ends.
        norm = LogNorm(max(moved.min(), moved.max() / 1e3), moved.max()) if moved.min() < moved.max() else None
        image = axes.imshow(np.where(values > 0, values, np.nan), aspect="auto", cmap="viridis", norm=norm)
        figure.colorbar(
            image, label="||θ − θ_init|| / ||θ_init||, mean over seeds", shrink=min(1, 40 / len(layers)), aspect=30
        )
    every = math.ceil(len(layers) / _MOST_LAYER_NAMES)
    axes.set_yticks(range(0, len(layers), every), [figure_text(layer) for layer in layers[::every]], fontsize=7)
    axes.set_xticks(range(len(runs)), list(runs), rotation=90 if len(runs) > 4 else 0, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("grey: layer not moved, not there, or zero to begin with", fontsize=8)
    return figure


def headline_key(comparison: Comparison) -> str:
    """The mean that the comparison is about: of the unseen domains, or of the source if no domain is unseen."""
    return UNSEEN_MEAN if comparison.unseen else SOURCE_MEAN


def _outcomes(comparison: Comparison, method: str) -> list[Outcome]:
    found = comparison.outcomes.get(method, {})
    return [found[seed] for seed in comparison.seeds if seed in found]


def _curve(comparison: Comparison, method: str) -> tuple[list[int], np.ndarray] | None:
    """The steps at which all seeds were scored on all domains, and mean IoU in per cent there (seeds, steps)."""
    domains = comparison.unseen or comparison.source
    runs = [outcome.curve for outcome in _outcomes(comparison, method) if outcome.curve]
    steps = sorted(step for step in set().union(*runs) if all(run.get(step, {}).keys() >= {*domains} for run in runs))
    means = [[100 * np.mean([run[step][domain] for domain in domains]) for step in steps] for run in runs]
    return (steps, np.array(means)) if steps else None


def _room(methods: Iterable[str]) -> float:
    """Inches that the names of methods need next to a plot."""
    return 0.085 * max(len(figure_text(method)) for method in methods)


def _figure(title: str, width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(comparison: Comparison, method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in all pictures; the baseline is a black star."""
    if method == comparison.baseline:
        return "black", "*"
    index = [name for name in comparison.notes if name != comparison.baseline].index(method)
    return _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]


def _line(comparison: Comparison, method: str) -> str:
    """Line style of a method: solid for the first round of colours, another one for each further round."""
    others = [name for name in comparison.notes if name != comparison.baseline]
    return "-" if method == comparison.baseline else _LINES[others.index(method) // len(_COLORS) % len(_LINES)]


def _horizontal(axes: Axes, interval: Interval, place: float, **line: Any) -> None:
    axes.plot([100 * interval.low, 100 * interval.high], [place, place], **line)


def _seed_dots(axes: Axes, values: Iterable[float], place: float) -> None:
    dots = 100 * np.array([*values])
    axes.plot(dots, np.full(len(dots), place - 0.24), "o", color="0.3", markersize=2.5, markeredgewidth=0, alpha=0.8)


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [figure_text(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _limit(
    set_limits: Callable[[float, float], Any],
    points: Iterable[Iterable[float]],
    intervals: Iterable[Interval],
    zero: bool = False,
) -> None:
    """Axis limits that hold all points and, as far as these do not dwarf the points, all intervals."""
    known = [100 * value for values in points for value in values if not math.isnan(value)] + [0.0] * zero
    if not known:
        return
    first, last = min(known), max(known)
    span = max(last - first, 1.0)
    ends = [100 * end for interval in intervals for end in (interval.low, interval.high) if not math.isnan(end)]
    low, high = max(min([first, *ends]), first - span), min(max([last, *ends]), last + span)
    set_limits(low - 0.05 * (high - low + 1), high + 0.05 * (high - low + 1))
