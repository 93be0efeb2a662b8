"""Results as Markdown tables, figures and JSON.

Results have one shape everywhere: `results[method][domain]` is a [`Scores.to_dict`], with methods in the order of the
report. Scores that were read back from JSON, where NaN is null, are accepted too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import LabelSpace
from deft_hf.scoring.bootstrap import Intervals
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.metrics import ALWAYS, METRICS, Metric, metrics
from deft_hf.utils.text import figure_text, markdown_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
MOST_PANELS = 24
"""Domains that a picture with a panel or a row for each shows at most; the time to lay it out grows fast."""
MOST_BARS = 60
"""Domains that a picture of bars shows at most."""
_MOST_SIDE = 2048  # pixels of a picture that goes into a panel
INTERVALS = "In brackets: 95 % bootstrap intervals over the images of a domain, for this one training run."
PanelRow = tuple[str, np.ndarray, np.ndarray, Mapping[str, np.ndarray]]


# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart, in an order
# that keeps neighbours far apart in lightness too, for print.
METHOD_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")


def unseen_mean(scores: Mapping[str, Mapping[str, Any]], unseen: Sequence[str], key: str = "mean_iou") -> float:
    """Mean over the unseen domains of one method's mean IoU, or another score, each domain counting once.

    NaN where one of them has no score: means over different domains cannot be compared.

    Args:
        scores (`Mapping`):
            Scores of one method by domain: `results[method]`.
        unseen (`Sequence[str]`):
            Names of the unseen domains.
        key (`str`, *optional*, defaults to `"mean_iou"`):
            The score.
    """
    return float(np.mean([_score(scores, domain, key) for domain in unseen])) if unseen else math.nan


def domain_table(
    results: Results,
    source: Sequence[str],
    unseen: Sequence[str],
    intervals: Mapping[str, Intervals | None] | None = None,
    metric: Metric = METRICS["iou"],
) -> str:
    """A Markdown table of mean IoU in per cent, one row per method: source domains, unseen domains and their mean.

    The best mean over the unseen domains is bold; a missing score is a dash. Without unseen domains there is no mean.

    Args:
        results (`Results`):
            Scores by method and domain.
        source (`Sequence[str]`):
            Names of the source domains.
        unseen (`Sequence[str]`):
            Names of the unseen domains.
        intervals (`Mapping[str, Intervals | None]`, *optional*):
            By method, 95 % intervals over images, which stand in brackets behind the scores.
        metric (`Metric`, *optional*, defaults to `METRICS['iou']`):
            Another metric than mean IoU.
    """
    key = metric.key
    known = {method: (intervals or {}).get(method) or {} for method in results}
    header = ["method", *(f"{markdown_text(domain)} (source)" for domain in source), *map(markdown_text, unseen)]
    domains = [*source, *unseen]
    rows = [
        [
            markdown_text(method),
            *(
                _scored(_score(scores, domain, key), known[method].get("domains", {}).get(domain), key)
                for domain in domains
            ),
        ]
        for method, scores in results.items()
    ]
    if unseen:
        header.append("unseen mean")
        means = [unseen_mean(scores, unseen, key) for scores in results.values()]
        # By what is printed: two methods with the same rounded number are both the best.
        best = min if metric.lower_is_better else max
        printed = percent(best((mean for mean in means if not math.isnan(mean)), default=math.nan))
        for row, mean, found in zip(rows, means, known.values(), strict=True):
            cell = _scored(mean, found.get("unseen_mean"), key)
            row.append(f"**{cell}**" if percent(mean) == printed != "-" else cell)
    return markdown_table(header, rows)


def further_tables(
    results: Results,
    source: Sequence[str],
    unseen: Sequence[str],
    intervals: Mapping[str, Intervals | None] | None = None,
) -> dict[str, str]:
    """By title, a [`domain_table`] of each further metric that the results have."""
    found = {key for scores in results.values() for values in scores.values() for key in values}
    further = [metric for name, metric in metrics().items() if name not in ALWAYS and metric.key in found]
    titles = {metric.name: f"mean {metric.title}" if metric.by_class else metric.title for metric in further}
    return {
        titles[metric.name][0].upper() + titles[metric.name][1:]: domain_table(
            results, source, unseen, intervals, metric
        )
        for metric in further
    }


def class_table(results: Results, domain: str, names: Sequence[str]) -> str:
    """A Markdown table of one domain's IoU in per cent: one row per class, one column per method, the mean last.

    Further metrics of classes have columns of their own. A class that neither occurs in the domain nor is predicted
    has dashes and is not in the mean.
    """
    further = [metric for metric in metrics().values() if metric.by_class and metric.name not in ALWAYS]
    columns: dict[str, list[str]] = {}
    for metric in (METRICS["iou"], *further):
        for method, scores in results.items():
            if metric.name in scores.get(domain, {}):
                title = markdown_text(method if metric.name == "iou" else f"{method}, {metric.title}")
                values = [_number(value) for value in scores[domain][metric.name]]
                columns[title] = [*map(percent, values), percent(_score(scores, domain, metric.key))]
    rows = zip(*([*map(markdown_text, names), "mean"], *columns.values()), strict=True)
    return markdown_table(["class", *columns], [*map(list, rows)])


def save_panels(
    path: str | os.PathLike, rows: Sequence[PanelRow], labels: LabelSpace, domains: int | None = None
) -> None:
    """Draw a grid of examples: image, truth and one column per method, with the mean IoU of each single prediction.

    Pixels that the truth ignores are black in the truth's column; every prediction is shown whole.

    Args:
        path (`str` or `PathLike`):
            PNG file; its folder is created.
        rows (`Sequence[PanelRow]`):
            `(domain, image, truth, {method: prediction})` with the image as uint8 (H, W, 3), truth and predictions as
            ids (h, w), and the same methods in every row. Rows may differ in size.
        labels (`LabelSpace`):
            Colours and names of the classes.
        domains (`int`, *optional*):
            How many domains there are, where `rows` has only the first of them: the picture says so.
    """
    columns = ["image", "truth", *rows[0][3]]
    shown = sorted({int(i) for _, _, truth, found in rows for ids in (truth, *found.values()) for i in np.unique(ids)})
    legend_rows = math.ceil(len(shown) / (2 * len(columns)))
    cell_width = 2.6
    heights = [cell_width * truth.shape[0] / truth.shape[1] + 0.25 for _, _, truth, _ in rows]
    size = (cell_width * len(columns) + 0.4, sum(heights) + 0.25 * legend_rows + 0.9)
    figure = new_figure(size)
    which = "each domain" if (domains or 0) <= len(rows) else f"the first {len(rows)} of {domains} domains"
    figure.suptitle(f"Examples of {which}, and how well each method segments them", fontsize=12)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set_title(column, fontsize=11, fontweight="bold")
    for axes, (domain, image, truth, predictions) in zip(grid, rows, strict=True):
        axes[0].set_ylabel(figure_text(domain, 20), fontsize=11, fontweight="bold")
        axes[0].imshow(of_a_panel(image))
        axes[1].imshow(labels.colorize(of_a_panel(truth)), interpolation="nearest")
        for axis, method in zip(axes[2:], columns[2:], strict=True):
            axis.imshow(labels.colorize(of_a_panel(predictions[method])), interpolation="nearest")
            axis.set_xlabel(image_caption(predictions[method], truth, labels), fontsize=10)
        for axis in axes:
            axis.set(xticks=[], yticks=[])

    figure.legend(
        handles=[class_patch(index, labels) for index in shown],
        loc="outside lower center",
        ncols=math.ceil(len(shown) / legend_rows),
        fontsize=10,
        frameon=False,
    )
    save_figure(figure, path)


def save_domain_bars(path: str | os.PathLike, results: Results, source: Sequence[str], unseen: Sequence[str]) -> None:
    """Draw mean IoU in per cent as bars: one group per domain, one colour per method, source domains first.

    Args:
        path (`str` or `PathLike`):
            PNG file; its folder is created.
        results (`Results`):
            As for [`domain_table`].
        source (`Sequence[str]`):
            As for [`domain_table`].
        unseen (`Sequence[str]`):
            As for [`domain_table`].
    """
    count, everywhere = len(source) + len(unseen), unseen
    source, unseen = source[:MOST_BARS], unseen[: max(0, MOST_BARS - len(source))]
    domains = [*source, *unseen]
    groups = [*domains, "mean"] if len(everywhere) > 1 else domains
    names = [figure_text(group) for group in groups]
    group_width = max(1.3, 0.5 * len(results), 0.11 * max(map(len, names)))
    figure = new_figure((max(6.0, 1.2 + group_width * len(groups)), 4.4))
    note = f": the first {len(domains)} of {count}" if count > len(domains) else ""
    figure.suptitle(f"Segmentation quality on source and on unseen domains{note}", fontsize=12)
    axes = figure.subplots()
    bar_width = 0.8 / len(results)
    for index, (method, scores) in enumerate(results.items()):
        heights = [100 * _mean_iou(scores, domain) for domain in domains]
        if len(everywhere) > 1:
            heights.append(100 * unseen_mean(scores, everywhere))
        places = np.arange(len(groups)) + (index - (len(results) - 1) / 2) * bar_width
        color = METHOD_COLORS[index % len(METHOD_COLORS)]
        bars = axes.bar(places, np.nan_to_num(heights), bar_width * 0.92, label=method, color=color)
        axes.bar_label(bars, ["-" if math.isnan(h) else f"{h:.1f}" for h in heights], padding=2, fontsize=9)

    axes.set_xticks(range(len(groups)), names)
    axes.set_ylabel("mean IoU, per cent")
    axes.set_ylim(0, 1.18 * max(10, axes.dataLim.y1))  # room for the numbers and, above them, the kind of domain
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    _name_span(axes, "source", 0, len(source))
    _name_span(axes, "unseen", len(source), len(domains))
    _name_span(axes, "all unseen", len(domains), len(groups))
    figure.legend(loc="outside lower center", ncols=min(len(results), 6), frameon=False)
    save_figure(figure, path)


def save_json(path: str | os.PathLike, obj: Any) -> None:
    """Write JSON; arrays, tensors and their scalars become plain numbers, NaN becomes null.

    The file is replaced atomically: a reader sees the old content or the new one, also after a crash.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # A file name that is no UTF-8 has lone surrogates, which become what JSON writes for them: \udcff.
        part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of that (width, height) in inches; loads matplotlib, which who trains does without."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG; its folder is created."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Beyond 2^16 pixels a side matplotlib draws nothing.
    figure.savefig(path, dpi=min(150, 60_000 / max(figure.get_size_inches())), format="png")


def percent(score: float) -> str:
    """A score in [0, 1] as per cent with one decimal, NaN as a dash."""
    return "-" if math.isnan(score) else f"{100 * score:.1f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is left-aligned; the others, numbers, are right-aligned."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (header, ruler, *rows))
    return "\n".join(f"| {line} |" for line in lines)


def _number(score: float | None) -> float:
    return math.nan if score is None else float(score)


def _mean_iou(scores: Mapping[str, Mapping[str, Any]], domain: str) -> float:
    return _score(scores, domain, "mean_iou")


def _score(scores: Mapping[str, Mapping[str, Any]], domain: str, key: str) -> float:
    return _number(scores[domain].get(key)) if domain in scores else math.nan


def _scored(score: float, interval: Mapping[str, Sequence[float | None]] | None, key: str) -> str:
    """A score in per cent, and its interval in brackets where both are known."""
    low, high = map(_number, (interval or {}).get(key, (None, None)))
    known = not (math.isnan(score) or math.isnan(low))
    return percent(score) + (f" [{percent(low)}, {percent(high)}]" if known else "")


def of_a_panel(image: Image.Image | np.ndarray) -> np.ndarray:
    """A picture, or ids, as an array (H, W, ...) for [`save_panels`]: smaller where far larger than a panel."""
    every = -(-max(np.shape(image)[:2] if isinstance(image, np.ndarray) else image.size) // _MOST_SIDE)
    if isinstance(image, np.ndarray):
        return image[::every, ::every]
    return np.asarray(image.reduce(every) if every > 1 else image)


def image_caption(prediction: np.ndarray, truth: np.ndarray, labels: LabelSpace) -> str:
    """How well one image is segmented, and over how many classes: a mean over the few that it has says less.

    Args:
        prediction (`np.ndarray`):
            Class ids, shape `(h, w)`.
        truth (`np.ndarray`):
            Train ids of the same shape, 255 where ignored.
        labels (`LabelSpace`):
            Names of the classes.
    """
    matrix = ConfusionMatrix(labels.num_labels)
    matrix.update(torch.as_tensor(prediction), torch.as_tensor(truth))
    scores = matrix.compute()
    present = [index for index in range(labels.num_labels) if index not in set(scores.absent)]
    if not present:
        return "no labelled pixel"
    if len(present) == 1:
        return f"IoU {percent(scores.iou[present[0]])} %, one class"
    counted = sum(not math.isnan(iou) for iou in scores.iou)
    return f"mean IoU {percent(scores.mean_iou)} %, {counted} classes"


def class_patch(index: int, labels: LabelSpace) -> Patch:
    """The entry of a class, or of ignored pixels, in a legend."""
    from matplotlib.patches import Patch

    if index == IGNORE_INDEX:
        return Patch(facecolor="black", label="ignored")
    red, green, blue = (channel / 255 for channel in labels.palette[index])
    return Patch(facecolor=(red, green, blue), edgecolor="0.5", linewidth=0.5, label=figure_text(labels.names[index]))


def _name_span(axes: Axes, name: str, start: int, end: int) -> None:
    """Writes `name` above the groups from `start` to `end` and rules them off from what is left of them."""
    if start == end:
        return
    if start > 0:
        axes.axvline(start - 0.5, color="0.6", linewidth=1, linestyle=(0, (4, 3)))
    middle = (start + end - 1) / 2
    axes.text(middle, 1.0, name, transform=axes.get_xaxis_transform(), ha="center", va="top", color="0.35")


def _plain(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, torch.Tensor | np.ndarray | np.generic):
        return _plain(obj.tolist())
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj
