"""The best, the median and the worst image of each domain, and a picture of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deft_hf.data.labels import LabelSpace
from deft_hf.scoring.metrics import METRICS
from deft_hf.scoring.report import class_patch, new_figure, percent, save_figure
from deft_hf.utils.text import figure_text

MOST_DOMAINS = 8
"""Domains that the picture shows at most."""
_WIDTH = 320  # pixels


class Example(NamedTuple):
    """An image of a domain with its truth and a prediction.

    Attributes:
        kind (`str`):
            `best`, `median` or `worst`.
        key (`str`):
            Id of the image.
        mean_iou (`float`):
            Of this image alone.
        image (`np.ndarray`):
            uint8 (H, W, 3).
        truth (`np.ndarray`):
            Train ids, 255 where ignored, (H, W).
        prediction (`np.ndarray`):
            Class ids (H, W).
    """

    kind: str
    key: str
    mean_iou: float
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def extremes(counts: Tensor, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By `best`, `median` and `worst`, id (`image`) and `mean_iou` of an image; fewer of fewer than three images.

    Args:
        counts (`Tensor`):
            `class_counts` of each image, integer (images, 3, C); an image without a labelled pixel is left out.
        keys (`Sequence[str]`):
            Ids of the images.
    """
    scores = METRICS["iou"].mean(counts)
    labelled = counts[:, 1].sum(-1) > 0
    order = [index for index in torch.argsort(scores, stable=True).tolist() if labelled[index]]
    if not order:
        return {}
    found = {"best": order[-1], "worst": order[0], "median": order[len(order) // 2]}
    distinct = {index: kind for kind, index in reversed(found.items())}
    return {
        kind: {"image": keys[index], "mean_iou": float(scores[index])}
        for kind in ("best", "median", "worst")
        for index in [found[kind]]
        if distinct[index] == kind
    }


def save_overlays(
    path: str | os.PathLike, rows: Mapping[str, Sequence[Example]], labels: LabelSpace, domains: int
) -> None:
    """Draw predictions, and below them the truth, over their images.

    Args:
        path (`str` or `PathLike`):
            PNG file; its folder is created.
        rows (`Mapping[str, Sequence[Example]]`):
            By domain, its images.
        labels (`LabelSpace`):
            Names and colours of the classes.
        domains (`int`):
            How many domains there are; the picture says so where it has fewer.
    """
    columns = max(map(len, rows.values()))
    cell = 2.1  # small: the page of a run holds the picture
    heights = [cell * max(one.truth.shape[0] / one.truth.shape[1] for one in row) for row in rows.values()]
    shown = sorted({int(i) for row in rows.values() for one in row for i in np.union1d(one.truth, one.prediction)})
    legend_rows = math.ceil(len(shown) / (2 * columns))
    figure = new_figure((cell * columns + 0.5, sum(2 * height + 0.6 for height in heights) + 0.25 * legend_rows + 0.6))
    few = f" (the first {len(rows)} of {domains} domains)" if domains > len(rows) else ""
    figure.suptitle(f"Best, median and worst image: prediction above, truth below{few}", fontsize=11)
    ratios = [height for height in heights for _ in range(2)]
    grid = figure.subplots(2 * len(rows), columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (domain, row) in enumerate(rows.items()):
        for column, one in enumerate(row):
            above, below = grid[2 * index][column], grid[2 * index + 1][column]
            above.imshow(_overlay(one.image, one.prediction, labels))
            below.imshow(_overlay(one.image, one.truth, labels))
            name = f"{figure_text(domain, 20)}, {one.kind}: {percent(one.mean_iou)} %"
            above.set_title(f"{name}\n{figure_text(one.key, 40)}", fontsize=7)
    figure.legend(
        handles=[class_patch(index, labels) for index in shown],
        loc="outside lower center",
        ncols=math.ceil(len(shown) / legend_rows),
        fontsize=8,
        frameon=False,
    )
    save_figure(figure, path)


def _overlay(image: np.ndarray, ids: np.ndarray, labels: LabelSpace) -> Image.Image:
    """The colours of classes over an image, half and half; ignored pixels show the image, darker."""
    size = (_WIDTH, max(1, round(_WIDTH * ids.shape[0] / ids.shape[1])))
    size = size if ids.shape[1] > _WIDTH else ids.shape[::-1]
    painted = Image.fromarray(labels.colorize(ids))
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return Image.blend(small, painted.resize(size, Image.Resampling.NEAREST), 0.5)
