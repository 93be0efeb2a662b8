"""The Hub's `mean_iou` metric without a download and without PNG encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from numpy.typing import ArrayLike

from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.utils.errors import UserError

_DESCRIPTION = (
    "Mean intersection over union of semantic segmentation maps, from one confusion matrix over all of their pixels."
)

_INPUTS = """
Args:
    predictions (`list` of integer arrays or tensors):
        Predicted class ids, one map of shape (height, width) an image; images may differ in size.
    references (`list` of integer arrays or tensors):
        True ids, each of the size of its prediction.
    num_labels (`int`):
        Number of classes.
    ignore_index (`int`):
        Pixels whose reference has this id (after `label_map` and `reduce_labels`) do not count.
    nan_to_num (`float`, *optional*):
        Number that replaces NaN in every score.
    label_map (`dict[int, int]`, *optional*):
        Raw reference id -> class id. Looks at raw ids only, so `{0: 1, 1: 2}` never sends a 0 to 2.
    reduce_labels (`bool`, defaults to `False`):
        Makes reference id 0 the id 255 and lowers all others but 255 by one (after `label_map`).

Returns:
    `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats), `per_category_iou`, `per_category_accuracy`
    (float64 arrays of `num_labels` entries, NaN where 0 pixels stand over 0).
"""

# An id that no class can have, so that any `ignore_index`, class ids too, reaches ConfusionMatrix as the same mark.
_IGNORED = -1

# A table of all id pairs between the smallest and the largest is faster than sorting the pixels up to this many cells.
_LARGEST_TABLE = 2**22


class MeanIoU(evaluate.Metric):
    """Drop-in for `evaluate.load("mean_iou")`: the same arguments, keys and numbers, offline and many times faster.

    `add` and `add_batch` keep counts of id pairs instead of images (the arguments that say what the ids mean are known
    only in `compute`), so memory does not grow with the number of images. See
    https://huggingface.co/spaces/evaluate-metric/mean_iou for the original.

    In one point it is stricter: a reference that is neither a class nor `ignore_index`, or a prediction that is no
    class, raises a [`UserError`] where the original drops the pixel.

    Example:

    ```python
    >>> from deft_hf import MeanIoU

    >>> metric = MeanIoU()
    >>> metric.add(prediction=[[0, 1], [1, 1]], reference=[[0, 1], [0, 255]])
    >>> scores = metric.compute(num_labels=2, ignore_index=255)
    >>> scores["per_category_iou"].tolist()
    [0.5, 0.5]

    ```
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.num_process > 1:
            raise UserError(
                f"MeanIoU counts in one process, but num_process is {self.num_process}. "
                "Across processes use deft_hf.scoring.confusion.ConfusionMatrix and its all_reduce()."
            )
        self._pairs: Counter[tuple[int, int]] = Counter()
        self._images = 0

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
            reference_urls=["https://huggingface.co/spaces/evaluate-metric/mean_iou"],
        )

    def __len__(self) -> int:
        return self._images

    def add(self, *, prediction: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor) -> None:
        """Count one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Sequence, references: Sequence) -> None:
        """Count a batch of images."""
        pairs, images = _count_pairs(predictions, references)
        self._pairs.update(pairs)
        self._images += images

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Score everything added so far (and these maps), then reset."""
        if predictions is not None or references is not None:
            self.add_batch(
                predictions=() if predictions is None else predictions,
                references=() if references is None else references,
            )
        pairs, self._pairs, self._images = self._pairs, Counter(), 0
        return _scores(pairs, **kwargs)

    def _compute(self, predictions: Sequence, references: Sequence, **kwargs: Any) -> dict[str, Any]:
        # Many tutorials call this directly, to avoid the encoding.
        return _scores(_count_pairs(predictions, references)[0], **kwargs)


def _count_pairs(predictions: Sequence, references: Sequence) -> tuple[Counter[tuple[int, int]], int]:
    """How often each pair (reference id, predicted id) occurs, and in how many images."""
    pairs: Counter[tuple[int, int]] = Counter()
    images = 0
    if len(predictions) != len(references):
        raise UserError(
            f"Found {len(predictions)} predictions for {len(references)} references; each image needs both."
        )
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, truth = _ids(prediction, "prediction"), _ids(reference, "reference")
        if predicted.shape != truth.shape:
            raise UserError(
                f"Image {images}: the prediction has the shape {predicted.shape} and the reference {truth.shape}; "
                "they must be the same. Resize the logits to the reference's size before the argmax."
            )
        images += 1
        if truth.size == 0:
            continue
        low_truth, low_predicted = int(truth.min()), int(predicted.min())
        width = int(predicted.max()) - low_predicted + 1
        cells = ((truth - low_truth) * width + (predicted - low_predicted)).ravel()
        if (int(truth.max()) - low_truth + 1) * width <= _LARGEST_TABLE:
            table = np.bincount(cells)
            cells = table.nonzero()[0]
            times = table[cells]
        else:
            cells, times = np.unique(cells, return_counts=True)
        for cell, count in zip(cells.tolist(), times.tolist(), strict=True):
            pairs[cell // width + low_truth, cell % width + low_predicted] += count
    return pairs, images


def _ids(image: ArrayLike | torch.Tensor, name: str) -> np.ndarray:
    ids = np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image)
    if ids.dtype.kind not in "iub":
        raise UserError(f"A {name} has the type {ids.dtype}; expected integer class ids (the argmax of the logits).")
    return ids.astype(np.int64)


def _scores(
    pairs: Counter[tuple[int, int]],
    *,
    num_labels: int,
    ignore_index: int,
    nan_to_num: float | None = None,
    label_map: Mapping[int, int] | None = None,
    reduce_labels: bool = False,
) -> dict[str, Any]:
    def class_of(raw: int) -> int:
        label = (label_map or {}).get(raw, raw)
        if reduce_labels and label != 255:
            label = 255 if label == 0 else label - 1
        return _IGNORED if label == ignore_index else label

    matrix = ConfusionMatrix(num_labels, ignore_index=_IGNORED)
    if pairs:
        rows = torch.tensor([[class_of(raw), predicted, times] for (raw, predicted), times in pairs.items()])
        matrix.update(predictions=rows[:, 1], labels=rows[:, 0], times=rows[:, 2])
    computed = matrix.compute()
    scores = {
        "mean_iou": np.float64(torch.tensor(computed.iou, dtype=torch.float64).nanmean()),
        "mean_accuracy": np.float64(computed.mean_accuracy),
        "overall_accuracy": np.float64(computed.pixel_accuracy),
        "per_category_iou": np.array(computed.iou),
        "per_category_accuracy": np.array(computed.accuracy),
    }
    if nan_to_num is not None:
        scores = {name: np.nan_to_num(score, nan=nan_to_num) for name, score in scores.items()}
    return scores
