"""The page of a curve: a table, a picture and JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deft_hf.comparison.curve import Curve, MethodCurve
from deft_hf.scoring.report import METHOD_COLORS, markdown_table, percent, save_figure, save_json
from deft_hf.utils.text import figure_text, markdown_block, markdown_code, markdown_text

_READING = """\
All scores are mean IoU in per cent, averaged over the unseen domains, each of which counts once: the mean over the
seeds, ± half the width of its 95 % t interval, and in brackets how many seeds have a score, where some have none.
Bold: a method's best value, of those at which most of its seeds have a score. Without labels there, nobody knows it.

* **Regret**: the score at the value that source validation chooses, minus the score at the best value, seed by seed.
* **At ten times the best**: the score there, minus the score at the best value, where such a value was tried.
"""


def write_curve(curve: Curve) -> str:
    """Write `README.md`, `curve.json` and `curve.png` into the curve's folder; returns the table as Markdown."""
    curve.folder.mkdir(parents=True, exist_ok=True)
    table = curve_table(curve)
    save_figure(draw(curve), curve.folder / "curve.png")
    save_json(curve.folder / "curve.json", _facts(curve))
    failed = "".join(f"* {markdown_code(place)}: {markdown_text(why)}\n" for place, why in curve.reasons.items())
    parts = [
        f"# How methods depend on {markdown_code(curve.key)}",
        table,
        "Without a result:\n\n" + failed if failed else "",
        "![Unseen and source mean of each method along the values](curve.png)",
        "## How to read it",
        _READING.strip(),
        "## How to reproduce",
        markdown_block(curve.command, "sh"),
        "\n".join(f"* {name}: {markdown_text(version)}" for name, version in curve.versions.items()),
        f"The recipe, resolved:\n\n{markdown_block(curve.recipe, 'yaml')}",
    ]
    (curve.folder / "README.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return table


def curve_table(curve: Curve) -> str:
    """A row a method: its score at each value, regret, and what ten times the best value costs."""
    tail = ["chosen on the source", "regret", "at ten times the best"]
    rows = [
        [
            markdown_code(name),
            *(_cell(own, index, len(curve.seeds)) for index in range(len(curve.values))),
            ", ".join(_in_words(curve.values[index]) for index in sorted(set(own.chosen.values()))) or "-",
            own.regret.in_points(),
            "-" if (loss := own.loss_at_ten_times(curve.values)) is None else loss.in_points(),
        ]
        for name, own in curve.methods.items()
    ]
    return markdown_table(["method", *map(_in_words, curve.values), *tail], rows)


def draw(curve: Curve) -> Figure:
    """Left the unseen mean of each method along the values, with its interval, right the source mean."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in curve.values)
    places: list[Any] = curve.values if numeric else list(range(len(curve.values)))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"How methods depend on {figure_text(curve.key)}", fontsize=12)
    panels = figure.subplots(1, 2)
    order = np.argsort(places, kind="stable")  # along the axis, however they were listed
    for count, (name, own) in enumerate(curve.methods.items()):
        color = "black" if not count else METHOD_COLORS[(count - 1) % len(METHOD_COLORS)]
        line = ("-", "--", ":")[count // (len(METHOD_COLORS) + 1) % 3]
        along = [places[index] for index in order]
        intervals = [own.at(index) for index in order]
        mean, low, high = (
            100 * np.array([getattr(each, end) for each in intervals]) for end in ("mean", "low", "high")
        )
        panels[0].fill_between(along, low, high, color=color, alpha=0.12, linewidth=0)
        panels[0].plot(along, mean, line, marker="o", markersize=4, color=color, label=figure_text(name))
        source = 100 * np.array([own.source_at(index) for index in order])
        panels[1].plot(along, source, line, marker="o", markersize=4, color=color)
        for index in set(own.chosen.values()):
            score = 100 * own.at(index).mean
            panels[0].plot(places[index], score, "s", markersize=10, markerfacecolor="none", color=color)
    ordered = numeric and min(curve.values) > 0 and max(curve.values) >= 10 * min(curve.values)
    titles = "unseen mean (shaded: 95 % t interval; squares: chosen on the source)", "source mean"
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(figure_text(curve.key))
        axes.grid(color="0.92")
        if ordered:
            axes.set_xscale("log")
        if not numeric:
            axes.set_xticks(places, [figure_text(str(value)) for value in curve.values])
    low, high = panels[0].get_ylim()  # intervals of few seeds reach beyond what a score can be
    panels[0].set_ylim(max(low, -1), min(high, 101))
    panels[0].set_ylabel("mean IoU, per cent")
    figure.legend(loc="outside lower center", ncols=min(len(curve.methods), 6), frameon=False, fontsize=9)
    return figure


def _cell(own: MethodCurve, index: int, seeds: int) -> str:
    interval, scored = own.at(index), own.seeds_at(index)
    if math.isnan(interval.mean):
        return "-"
    text = percent(interval.mean)
    text += "" if math.isnan(interval.low) else f" ± {100 * (interval.high - interval.mean):.1f}"
    text += "" if scored == seeds else f" ({scored} of {seeds})"
    return f"**{text}**" if index == own.best else text


def _in_words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else markdown_text(str(value))


def _facts(curve: Curve) -> dict[str, Any]:
    def of(own: MethodCurve) -> dict[str, Any]:
        loss = own.loss_at_ten_times(curve.values)
        return {
            "source": own.source,
            "unseen": own.unseen,
            "best": None if own.best is None else curve.values[own.best],
            "chosen": {seed: curve.values[index] for seed, index in own.chosen.items()},
            "regret": vars(own.regret),
            "at_ten_times_the_best": None if loss is None else vars(loss),
        }

    return {
        "key": curve.key,
        "values": curve.values,
        "seeds": curve.seeds,
        "methods": {name: of(own) for name, own in curve.methods.items()},
        "failures": curve.reasons,
        "command": curve.command,
        "versions": curve.versions,
    }
