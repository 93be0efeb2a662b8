"""The report of a comparison: one page, its table and figures, and all numbers as JSON.

Equal comparisons give equal bytes, in whatever order their runs finished; timings are in a file of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deft_hf.comparison import places
from deft_hf.comparison.figures import headline_key, save_figures
from deft_hf.comparison.outcomes import Comparison, Outcome
from deft_hf.comparison.statistics import (
    LEVEL,
    RESAMPLES,
    SOURCE_MEAN,
    UNSEEN_MEAN,
    Difference,
    Interval,
    Summary,
    summarize,
)
from deft_hf.runs.collapsed import only_class
from deft_hf.scoring.report import markdown_table, percent, save_json
from deft_hf.utils.text import markdown_block, markdown_code, markdown_text

Summaries = Mapping[str, Summary]

_READING = """\
All scores are mean IoU in per cent, as the Cityscapes scripts count it; the unseen mean takes each unseen domain once.
`a ± b` is the mean over seeds with half the width of its 95 % t interval. `+d [low, high]` is the difference to
`{baseline}` in percentage points with a 95 % interval, paired: at each seed, the method less `{baseline}` at the same
seed. Pairing takes out what a seed does to both, so read the differences and not how the ± of two rows overlap.

* **Over seeds**: a t interval. Would other seeds say the same, on these very images? It is the one that this page goes
  by. With one seed there is none, and with two or three it is wide, as it should be.
* **Over seeds and images**: a hierarchical bootstrap ({resamples} resamples; percentiles) that draws seeds and, within
  each domain, images anew, the same ones for both methods. Would other images of these domains say the same too?
  With few seeds its percentiles are too narrow; with frames of video, or several corrupted copies of one image, too,
  since they are alike.

An interval clear of zero is evidence for these domains, this data and this recipe; neither interval speaks of domains
that were not scored. Of every twenty methods that are in truth equal to `{baseline}`, one is expected to come out
clear of zero by chance. An interval that holds zero does not show that two methods are equal. In the pictures, an
interval that the frame cuts off goes on beyond it.
"""

_STEPS = """\
`training.max_steps` is the length of a method's last stage; a decoder warm-up comes on top of it, so that methods
without one see fewer images.
"""


_POOLED = """\
{names}: made of the models of all seeds, without training. A soup is one model, and ReVT's models have an encoder in
common: such values do not vary as those of other seeds would, so they have no interval, and their difference to
`{baseline}` is one of means. They cost the training of all the runs that they are made of.
"""


def write_report(comparison: Comparison, folder: Path) -> str:
    """Write `README.md`, `table.md`, `comparison.json`, `timings.json` and `figures/` into a folder.

    Args:
        comparison (`Comparison`):
            Results; runs may be missing.
        folder (`Path`):
            Folder to write to; created if it does not exist.

    Returns:
        `str`: The main table as Markdown, with what is missing from it below.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarize(comparison)
    table = "\n\n".join(
        filter(None, [main_table(comparison, summaries), _missing(comparison), _collapsed(comparison)])
    )
    captions = save_figures(folder / "figures", comparison, summaries)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_page(comparison, summaries, table, captions), encoding="utf-8")
    save_json(folder / "comparison.json", _facts(comparison, summaries))
    seconds = {m: {s: o.seconds for s, o in _by_seed(comparison, m).items()} for m in comparison.notes}
    save_json(folder / "timings.json", seconds)
    return table


def main_table(comparison: Comparison, summaries: Summaries) -> str:
    """A Markdown table with one row per method: scores by domain, difference to the baseline, seeds, cost if known.

    The best unseen mean is bold. Without unseen domains the difference is that of the source mean.
    """
    unseen, key = comparison.unseen, headline_key(comparison)
    source = f"{markdown_text(comparison.source[0])} (source)" if len(comparison.source) == 1 else SOURCE_MEAN
    header = ["method", *([source] if comparison.source else []), *map(markdown_text, unseen)]
    header += [UNSEEN_MEAN] if unseen else []
    header += [f"difference to {comparison.baseline}, over seeds", "over seeds and images", "seeds"]
    header += ["step time", "memory"] if comparison.costs else []
    # By what is printed: two methods with the same rounded number are both the best.
    best = max((s.means[key].mean for s in summaries.values() if not math.isnan(s.means[key].mean)), default=math.nan)

    rows = []
    for method, summary in summaries.items():
        ran, all_seeds = len(_by_seed(comparison, method)), len(comparison.seeds)
        row = [method, *([_with_spread(summary.means[SOURCE_MEAN])] if comparison.source else [])]
        row += [percent(summary.means[domain].mean) for domain in unseen]
        if unseen:
            row.append(_with_spread(summary.means[key], bold=percent(summary.means[key].mean) == percent(best)))
        if method == comparison.baseline:
            row += ["baseline", ""]
        else:
            row += _difference_cells(summary.differences[key], ran)
        if method in comparison.pooled and ran:
            row.append(f"{ran}, made of {all_seeds}")
        else:
            row.append(str(ran) if ran == all_seeds else f"{ran} of {all_seeds}")
        if comparison.costs:
            cost = comparison.costs.get(method)
            row += [_ratio(cost.time), _ratio(cost.memory)] if cost else ["-", "-"]
        rows.append(row)
    return markdown_table(header, rows)


def headline(comparison: Comparison, summaries: Summaries) -> str:
    """What the numbers say, as Markdown paragraphs."""
    key, baseline = headline_key(comparison), comparison.baseline
    means = {m: s.means[key].mean for m, s in summaries.items() if not math.isnan(s.means[key].mean)}
    lines = []
    if not comparison.unseen:
        lines.append("No domain is unseen here, so that this says nothing about domains nobody labelled.")
    if baseline not in means:
        return "\n\n".join([*lines, f"The baseline `{baseline}` has no {key}: there is nothing to compare with."])

    groups: dict[str, list[str]] = {"above": [], "below": [], "open": [], "unknown": [], "nothing": [], "pooled": []}
    for method, summary in summaries.items():
        if method == baseline:
            continue
        difference = summary.differences[key]
        name = f"`{method}` ({difference.interval.in_points()})"
        if method in comparison.pooled and not math.isnan(difference.interval.mean):
            groups["pooled"].append(name)
        elif not difference.seeds:
            groups["nothing"].append(f"`{method}`")
        elif difference.seeds == 1:
            groups["unknown"].append(name)
        elif difference.interval.clear_of_zero:
            groups["above" if difference.interval.mean > 0 else "below"].append(name)
        else:
            groups["open"].append(name)
    words = {
        "above": f"**Above `{baseline}`**, clear of zero",
        "below": f"**Below `{baseline}`**, clear of zero",
        "open": f"**Not distinguishable from `{baseline}`**, the interval contains zero",
        "unknown": "**One seed only**, which cannot tell a difference from chance",
        "nothing": f"**No seed in common with `{baseline}`**",
        "pooled": "**Made of the models of all seeds**, for which there is no interval",
    }
    best = max(means, key=means.__getitem__)
    compared = len(groups["above"] + groups["below"] + groups["open"])
    others = "the highest of all" if best == baseline else f"the highest is `{best}` with {percent(means[best])} %"
    lines.append(f"{key.capitalize()} of mean IoU: `{baseline}` reaches {percent(means[baseline])} %, {others}.")
    if any(groups.values()):
        intervals = ", with 95 % t intervals over seeds" if compared else ""
        lines[-1] += f" Differences to `{baseline}` in percentage points{intervals}:"
        lines.append("\n".join(f"* {words[group]}: {', '.join(found)}." for group, found in groups.items() if found))
    if compared > 1:
        lines.append(
            f"{compared} methods have an interval; were all of them equal to `{baseline}` in truth, an expected "
            f"{(1 - LEVEL) * compared:.2g} of them would still come out clear of zero by chance."
        )
    return "\n\n".join(lines)


def _page(comparison: Comparison, summaries: Summaries, table: str, captions: Mapping[str, str]) -> str:
    seeds = ("Seeds " if len(comparison.seeds) > 1 else "Seed ") + ", ".join(map(str, comparison.seeds))
    source, unseen = (markdown_text(", ".join(names)) or "none" for names in (comparison.source, comparison.unseen))
    parts = [
        f"# {markdown_text(comparison.title)}",
        headline(comparison, summaries),
        f"{seeds}. Source: {source}. Unseen: {unseen}.",
        "## Results",
        table,
    ]
    if comparison.costs:
        parts.append("Step time and memory are those of a training step of the last stage, as ratios to `joint`.")
    parts += [f"![{markdown_text(caption)}](figures/{name})" for name, caption in captions.items()]
    if comparison.places:
        parts += places.section(comparison.places, comparison.labels)
    parts += [
        "## How to read the intervals",
        _READING.format(baseline=comparison.baseline, resamples=RESAMPLES).strip(),
        _POOLED.format(
            names=", ".join(f"`{name}`" for name in comparison.pooled), baseline=comparison.baseline
        ).strip()
        if comparison.pooled
        else "",
    ]
    parts += [
        "## Methods",
        "\n".join(_method_line(comparison, method) for method in comparison.notes),
        _steps(comparison),
    ]
    if comparison.trials:
        parts += ["## What was tuned", _tuning(comparison)]
    parts += [
        "## How to reproduce",
        markdown_block(comparison.command, "sh"),
        "\n".join(f"* {name}: {markdown_text(version)}" for name, version in comparison.versions.items()),
        f"The recipe, resolved:\n\n{markdown_block(comparison.recipe, 'yaml')}",
        "Every score, per class and per seed, is in `comparison.json`; how long runs took is in `timings.json`.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _steps(comparison: Comparison) -> str:
    equal = [method for method in comparison.notes if method.partition(":")[0].endswith("_equal")]
    names = " and ".join(f"`{method}`" for method in equal)
    return _STEPS.strip() + (f" {names}: as many steps as the operations of DeFT's whole run buy." if equal else "")


def _missing(comparison: Comparison) -> str:
    """One line on every run without a result; empty where all came through."""
    reasons = {
        (failure.method, failure.seed): markdown_text(_one_line(failure.reason)) for failure in comparison.failures
    }
    for method in comparison.notes:
        for seed in comparison.pooled.get(method, comparison.seeds):
            if seed not in comparison.outcomes.get(method, {}):
                reasons.setdefault((method, seed), "not run")
    order = {method: place for place, method in enumerate(comparison.notes)}
    groups: dict[tuple[str, str], list[int]] = {}
    for (method, seed), reason in sorted(reasons.items(), key=lambda run: (order.get(run[0][0], len(order)), run[0])):
        groups.setdefault((method, reason), []).append(seed)
    named = [
        f"`{method}`, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {reason}"
        for (method, reason), seeds in groups.items()
    ]
    if not named:
        return ""
    return (
        f"Without a result: {'; '.join(named)}. Means over other seeds than the rest are not comparable with them; "
        "differences are, being paired."
    )


def _collapsed(comparison: Comparison) -> str:
    """One line on every run whose model predicts one class alone; empty where none does."""
    named = [
        f"`{method}`, seed {seed}: {markdown_text(only)}"
        for method in comparison.notes
        for seed, outcome in _by_seed(comparison, method).items()
        for only in _if_collapsed(comparison, outcome).values()
    ]
    place = "source validation" if comparison.source else "all that was scored"
    return (
        f"Models that predict one class for all or nearly all pixels of {place}: {'; '.join(named)}." if named else ""
    )


def _method_line(comparison: Comparison, method: str) -> str:
    settings = _in_words(comparison.settings.get(method, {}))
    return f"* `{method}`: {comparison.notes[method]}" + (f". {settings}" if settings else "")


def _tuning(comparison: Comparison) -> str:
    """What was tried, method by method; the chosen row of each is bold."""
    rows = []
    # A method that another one is based on is tuned too, though it may have no row of its own.
    for method in dict.fromkeys([*comparison.notes, *(trial.method for trial in comparison.trials)]):
        for trial in (trial for trial in comparison.trials if trial.method == method):
            score = percent(math.nan if trial.source_mean_iou is None else trial.source_mean_iou)
            name = f"`{method}` {_in_words(trial.settings)}".strip()
            rows.append([name, f"**{score}**" if trial.chosen else score])
    return (
        "Settings were chosen by mean IoU on source validation, and on nothing else; the chosen ones are bold. "
        "Choosing there flatters the source column a little, and no unseen one.\n\n"
        + markdown_table(["tried", "source mean IoU"], rows)
    )


def _facts(comparison: Comparison, summaries: Summaries) -> dict[str, Any]:
    """Everything but the raw counts and the seconds."""
    methods = {}
    for method, summary in summaries.items():
        runs = {
            seed: {
                "scores": outcome.scores,
                "means": {key: by_seed[seed] for key, by_seed in summary.values.items()},
                "distances": outcome.distances,
                "curve": {step: outcome.curve[step] for step in sorted(outcome.curve)},
            }
            | _if_collapsed(comparison, outcome)
            for seed, outcome in _by_seed(comparison, method).items()
        }
        cost = comparison.costs.get(method)
        methods[method] = {
            "note": comparison.notes[method],
            "settings": comparison.settings.get(method, {}),
            "means": {key: asdict(interval) for key, interval in summary.means.items()},
            "differences": {
                key: {
                    "by_seed": difference.values,
                    "over_seeds": asdict(difference.interval),
                    "over_seeds_and_images": asdict(difference.bootstrap) if difference.bootstrap else None,
                }
                for key, difference in summary.differences.items()
            },
            "cost": asdict(cost) if cost else None,
            "seeds": runs,
        }
    failures = sorted(comparison.failures, key=lambda failure: (failure.method, failure.seed, failure.reason))
    return {
        "title": comparison.title,
        "command": comparison.command,
        "baseline": comparison.baseline,
        "seeds": comparison.seeds,
        "source": comparison.source,
        "unseen": comparison.unseen,
        "labels": comparison.labels,
        "intervals": {"level": LEVEL, "bootstrap_resamples": RESAMPLES},
        "methods": methods,
        "failures": [asdict(failure) for failure in failures],
        "trials": [asdict(trial) for trial in comparison.trials],
        "versions": comparison.versions,
        "recipe": comparison.recipe,
        **(
            {"places": {name: asdict(place) for name, place in comparison.places.items()}} if comparison.places else {}
        ),
    }


def _if_collapsed(comparison: Comparison, outcome: Outcome) -> dict[str, str]:
    only = only_class(outcome.counts, comparison.source or comparison.unseen, comparison.labels)
    return {} if only is None else {"only_class": only}


def _by_seed(comparison: Comparison, method: str) -> dict[int, Any]:
    found = comparison.outcomes.get(method, {})
    return {seed: found[seed] for seed in comparison.seeds if seed in found}


def _difference_cells(difference: Difference, ran: int) -> list[str]:
    fewer = f" ({difference.seeds} seeds)" if 0 < difference.seeds < ran else ""
    bootstrap = difference.bootstrap
    return [difference.interval.in_points() + fewer, bootstrap.in_points().partition(" ")[2] if bootstrap else "-"]


def _with_spread(interval: Interval, bold: bool = False) -> str:
    mean = percent(interval.mean)
    half = (interval.high - interval.low) / 2
    return (f"**{mean}**" if bold and mean != "-" else mean) + ("" if math.isnan(half) else f" ± {percent(half)}")


def _ratio(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}"


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(markdown_code(f"{key}={json.dumps(value)}") for key, value in settings.items())


def _one_line(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
