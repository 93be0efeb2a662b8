"""Tables and pictures of places without labels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from deft_hf.data.labels import LabelSpace
from deft_hf.scoring.estimates import DEFAULT_METHOD, Estimate
from deft_hf.scoring.report import class_patch, markdown_table, new_figure, percent, save_figure
from deft_hf.utils.text import figure_text, markdown_text

Example = tuple[str, np.ndarray, Mapping[str, np.ndarray]]
"""An image of a place: its id, its pixels (H, W, 3), and by model the ids (H, W) that it predicts."""

READING = (
    "Nobody labelled these images, so nothing is scored on them. The estimate is made from the model's confidence, "
    "calibrated on source validation and corrupted copies of it; its interval (90 %) holds where the place differs "
    "from the source as a corrupted copy does, which a real place need not do. Where the copies speak against it, "
    "there is no number."
)


def estimate_table(estimates: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A Markdown table, one row for each model: what it probably scores here, beside its score on source validation.

    Args:
        estimates (`Mapping[str, Mapping[str, Estimate]]`):
            By model and estimator; `"source"` is the score of source validation.
    """
    rows = [
        [markdown_text(model), estimate_text(found[DEFAULT_METHOD]), percent(found["source"].mean_iou)]
        for model, found in estimates.items()
    ]
    return markdown_table(["method", "estimated mean IoU, per cent", "on source validation"], rows)


def class_estimate_table(estimates: Mapping[str, Mapping[str, Estimate]], names: Sequence[str]) -> str:
    """A Markdown table, one row for each class: its estimated IoU with the interval, by model.

    A class that a model neither predicts nor expects there has a dash, and so has a model without a trusted estimate.

    Args:
        estimates (`Mapping[str, Mapping[str, Estimate]]`):
            By model and estimator.
        names (`Sequence[str]`):
            Names of the classes.
    """
    found = {model: by_method[DEFAULT_METHOD] for model, by_method in estimates.items()}
    rows = [
        [markdown_text(name), *(_class_estimate(estimate, index) for estimate in found.values())]
        for index, name in enumerate(names)
    ]
    return markdown_table(["estimated IoU, per cent", *map(markdown_text, found)], rows)


def _class_estimate(estimate: Estimate, index: int) -> str:
    iou, (low, high) = estimate.per_class[index], estimate.class_intervals[index]
    if math.isnan(iou) or not estimate.trusted:
        return "-"
    return markdown_text(f"{percent(iou)} [{percent(low)}, {percent(high)}]")


def known_table(known: Mapping[str, Mapping[str, tuple[Estimate, float]]]) -> str:
    """A Markdown table of how far off such estimates are on domains with labels, one row for each domain and model.

    Args:
        known (`Mapping[str, Mapping[str, tuple[Estimate, float]]]`):
            By domain and model, the estimate, made without the labels, and the mean IoU on the same images.
    """
    rows = [
        [markdown_text(domain), markdown_text(model), estimate_text(estimate), percent(truth), _off(estimate, truth)]
        for domain, by_model in known.items()
        for model, (estimate, truth) in by_model.items()
    ]
    return markdown_table(["domain with labels", "method", "estimated", "mean IoU", "off by"], rows)


def _off(estimate: Estimate, truth: float) -> str:
    difference = 100 * (estimate.mean_iou - truth)
    return f"{difference:+.1f}" if estimate.trusted and math.isfinite(difference) else "-"


def estimate_text(estimate: Estimate) -> str:
    """The estimate with its interval in per cent, or why there is none."""
    return markdown_text(str(estimate))


def share_table(shares: Mapping[str, Sequence[float]], source: Sequence[float] | None, names: Sequence[str]) -> str:
    """A Markdown table, one row for each class: its share of the pixels in per cent, as each model predicts it.

    Args:
        shares (`Mapping[str, Sequence[float]]`):
            By model, the share of each class.
        source (`Sequence[float]`, *optional*):
            The share of each class in the truth of source validation.
        names (`Sequence[str]`):
            Names of the classes.
    """
    header = ["class", *map(markdown_text, shares), *(["truth of source validation"] if source else [])]
    rows = [
        [
            markdown_text(name),
            *(percent(share[index]) for share in shares.values()),
            *([percent(source[index])] if source else []),
        ]
        for index, name in enumerate(names)
    ]
    return markdown_table(header, rows)


def save_place_panels(
    path: str | os.PathLike, place: str, examples: Sequence[Example], scores: Mapping[str, float], labels: LabelSpace
) -> None:
    """Draw images of a place beside what each model predicts, from much disagreement to little.

    Args:
        path (`str` or `PathLike`):
            PNG file; its folder is created.
        place (`str`):
            Name of the place.
        examples (`Sequence[Example]`):
            The images with predictions of the same models; at least one.
        scores (`Mapping[str, float]`):
            By image, the share of the pixels on which the models differ; of one model its doubt.
        labels (`LabelSpace`):
            Colours and names of the classes.
    """
    models = list(examples[0][2])
    columns = ["image", *models]
    shown = sorted({int(one) for _, _, found in examples for ids in found.values() for one in np.unique(ids)})
    legend_rows = math.ceil(len(shown) / (2 * len(columns)))
    width = 2.6
    heights = [width * image.shape[0] / image.shape[1] + 0.25 for _, image, _ in examples]
    size = (width * len(columns) + 0.4, sum(heights) + 0.25 * legend_rows + 0.9)
    figure = new_figure(size)
    what = "where the methods differ most, first" if len(models) > 1 else "where the model is least sure, first"
    figure.suptitle(f"{figure_text(place, 30)}: {what}", fontsize=12)
    grid = figure.subplots(len(examples), len(columns), squeeze=False, height_ratios=heights)
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set_title(figure_text(column, 24), fontsize=11, fontweight="bold")
    word = "differ on" if len(models) > 1 else "doubt"
    for axes, (key, image, found) in zip(grid, examples, strict=True):
        axes[0].imshow(image)
        axes[0].set_xlabel(f"{figure_text(key, 24)}: {word} {percent(scores[key])} %", fontsize=9)
        for axis, model in zip(axes[1:], models, strict=True):
            axis.imshow(labels.colorize(found[model]), interpolation="nearest")
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
