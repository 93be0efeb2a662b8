"""A streamed confusion matrix and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.utils.errors import UserError

_PIXELS = 1 << 22  # that are counted at a time


@dataclass(frozen=True)
class Scores:
    """Scores of one domain, all in [0, 1], NaN where there was nothing to score.

    Attributes:
        mean_iou (`float`):
            Mean of `iou` over the classes that occur in the truth or in the predictions; NaN where the truth has fewer
            than two classes, over which it is no score: calling every pixel that class would give 1.
        pixel_accuracy (`float`):
            Share of valid pixels that are predicted correctly.
        mean_accuracy (`float`):
            Mean of `accuracy` over the classes that occur in the truth.
        iou (`list[float]`):
            Intersection over union per class, NaN for a class that is neither in the truth nor predicted.
        accuracy (`list[float]`):
            Share of each class's pixels that are predicted correctly (recall), NaN for an absent class.
        absent (`list[str]` or `list[int]`):
            The classes without a single truth pixel, by name where names were given and by id otherwise.
        pixels (`int`):
            Number of valid pixels (truth is not the ignore index).
        more (`dict[str, float | list[float]]`, *optional*, defaults to `{}`):
            Further metrics of [`~deft_hf.scoring.metrics`], by name: numbers, and lists with one entry a class.
    """

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: list[float]
    accuracy: list[float]
    absent: list[str] | list[int]
    pixels: int
    more: dict[str, float | list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain lists and numbers; further metrics stand among them."""
        values = asdict(self)
        return values | values.pop("more")


def class_counts(confusion: Tensor) -> Tensor:
    """What most scores follow from: hits, pixels in the truth and pixels predicted of each class.

    Args:
        confusion (`Tensor`):
            Confusion matrices, integer (..., C, C), rows are truth.

    Returns:
        `Tensor`: of the same type, shape `(..., 3, C)`.
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], -2)


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union by class, float64 (..., C), of `class_counts`; NaN where a class is nowhere."""
    hits, truth, predicted = counts.double().unbind(-2)
    return hits / (truth + predicted - hits)


def class_accuracy(counts: Tensor) -> Tensor:
    """Share of each class's pixels that are predicted right, float64 (..., C), of `class_counts`; NaN without any."""
    hits, truth, _ = counts.double().unbind(-2)
    return hits / truth


class ConfusionMatrix:
    """Counts how often a pixel of class `i` was predicted as class `j`, batch by batch, in O(num_labels²) memory.

    For a class with row sum R (truth), column sum P (prediction) and diagonal T, IoU = T / (R + P - T) and accuracy =
    T / R, the definitions of PASCAL VOC (Everingham et al. 2015,
    section 4.1.2, https://doi.org/10.1007/s11263-014-0733-5) and of the Cityscapes scripts
    (https://github.com/mcordts/cityscapesScripts, `evalPixelLevelSemanticLabeling.py`), over all pixels of the domain
    at once.

    **Ignored pixels.** Where the truth is `ignore_index`, the pixel does not count, whatever was predicted.
    `ignore_index` marks unlabelled pixels and is never a class: with background = 0 as ignore index, a model that
    predicts "nucleus" everywhere would lose all its false positives and score an IoU of 1; that number is a recall.

    **Absent classes.** A class without a truth pixel in the domain is named in [`Scores.absent`]. Where it is not
    predicted either, its IoU is NaN (0 / 0) and it is left out of the mean. Where it *is* predicted, its IoU is 0 and
    counts, as in the Cityscapes scripts and every table made with them, so that numbers stay comparable.

    **Ids out of range.** A truth that is neither a class nor `ignore_index`, or a prediction that is no class on a
    valid pixel, is counted separately and makes [`compute`] raise; checking in [`update`] would synchronize with the
    device at every batch.

    Args:
        num_labels (`int`):
            Number of classes.
        ignore_index (`int`, *optional*, defaults to `255`):
            Truth id of unlabelled pixels, outside `0 .. num_labels - 1`.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Device of the counts; inputs are moved to it.

    Raises:
        UserError: If `ignore_index` is the id of a class.

    Example:

    ```python
    >>> import torch
    >>> from deft_hf import ConfusionMatrix

    >>> matrix = ConfusionMatrix(num_labels=2)
    >>> matrix.update(predictions=torch.tensor([[0, 1], [1, 1]]), labels=torch.tensor([[0, 1], [0, 255]]))
    >>> scores = matrix.compute(names=["road", "car"])
    >>> scores.iou
    [0.5, 0.5]
    >>> scores.pixels
    3

    ```
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX, device: str | torch.device = "cpu"):
        if 0 <= ignore_index < num_labels:
            raise UserError(
                f"ignore_index is {ignore_index}, which is one of the {num_labels} classes: false positives there "
                f"would go uncounted. Give unlabelled pixels an id outside 0..{num_labels - 1}."
            )
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        # Row C holds ignored pixels, row C + 1 truths out of range, column C predictions out of range.
        self._bins = torch.zeros(num_labels + 2, num_labels + 1, dtype=torch.int64, device=device)

    @property
    def counts(self) -> Tensor:
        """Valid pixels as an int64 tensor of shape `(num_labels, num_labels)`: rows are truth, columns predictions."""
        return self._bins[: self.num_labels, : self.num_labels]

    def update(self, predictions: Tensor, labels: Tensor, times: Tensor | None = None) -> None:
        """Add pixels to the counts, without synchronizing with the device.

        Args:
            predictions (`Tensor`):
                Predicted class ids, integer, any shape.
            labels (`Tensor`):
                True class ids or `ignore_index`, integer, same shape.
            times (`Tensor`, *optional*):
                How often each pair counts, int64, same shape; once by default.

        Raises:
            UserError: If the shapes differ or logits were given for class ids.
        """
        if predictions.shape != labels.shape:
            raise UserError(
                f"Predictions have the shape {tuple(predictions.shape)} and labels {tuple(labels.shape)}; they must "
                "be the same. Resize the logits to the label's own size before the argmax."
            )
        for name, ids in (("predictions", predictions), ("labels", labels)):
            if ids.is_floating_point():
                raise UserError(f"The {name} are {ids.dtype}; expected integer class ids (the argmax of the logits).")

        size, device = self.num_labels, self._bins.device
        if times is None and device.type == "cpu" and (pairs := _pairs_of_bytes(predictions, labels)) is not None:
            ids = torch.arange(256)
            row = torch.where(ids < size, ids, size + 1).masked_fill_(ids == self.ignore_index, size)
            index = row[:, None] * (size + 1) + ids.clamp_max(size)
            self._bins.view(-1).scatter_add_(0, index.flatten(), pairs)
            return
        truth = labels.to(device, torch.int64).flatten()
        predicted = predictions.to(device, torch.int64).flatten()
        row = torch.where((truth >= 0) & (truth < size), truth, size + 1)
        row.masked_fill_(truth == self.ignore_index, size)
        column = torch.where((predicted >= 0) & (predicted < size), predicted, size)
        index = row.mul_(size + 1).add_(column)
        if times is None:
            times = torch.ones((), dtype=torch.int64, device=device).expand_as(index)
        # Not torch.bincount: on CUDA it reads the largest id back to the host to size its output.
        self._bins.view(-1).scatter_add_(0, index, times.to(device).flatten())

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same classes."""
        if (self.num_labels, self.ignore_index) != (other.num_labels, other.ignore_index):
            raise ValueError(
                f"Cannot merge {other.num_labels} classes (ignore index {other.ignore_index}) into "
                f"{self.num_labels} (ignore index {self.ignore_index})."
            )
        self._bins += other._bins.to(self._bins.device)

    def all_reduce(self) -> None:
        """Sum the counts over all processes, in place. Call it once, after the last update."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._bins)

    def compute(self, names: Sequence[str] | None = None) -> Scores:
        """Compute the scores of everything counted so far.

        Args:
            names (`Sequence[str]`, *optional*):
                Class names, to list absent classes by name instead of by id.

        Raises:
            UserError: If truths or predictions out of range were counted.
        """
        bins = self._bins.cpu()
        self._raise_if_out_of_range(bins)
        counts = bins[: self.num_labels, : self.num_labels]
        truth, hits, pixels = counts.sum(1), counts.diagonal(), counts.sum()
        # int64 sums are exact; only the division is done in floating point. 0 / 0 is an absent class.
        by_class = class_counts(counts)
        accuracy, iou = class_accuracy(by_class), class_iou(by_class)
        absent = (truth == 0).nonzero().flatten().tolist()
        return Scores(
            mean_iou=iou.nanmean().item() if len(absent) < self.num_labels - 1 else math.nan,
            pixel_accuracy=(hits.sum().double() / pixels).item(),
            mean_accuracy=accuracy.nanmean().item(),
            iou=iou.tolist(),
            accuracy=accuracy.tolist(),
            absent=[names[i] for i in absent] if names is not None else absent,
            pixels=int(pixels),
        )

    def _raise_if_out_of_range(self, bins: Tensor) -> None:
        bad_truths = int(bins[-1].sum())
        bad_predictions = int(bins[: self.num_labels, -1].sum())
        last = self.num_labels - 1
        if bad_truths:
            raise UserError(
                f"{bad_truths:,} label pixels are neither one of the classes 0..{last} nor the ignore index "
                f"{self.ignore_index}. Map raw ids to train ids when the mask is decoded "
                "(deft_hf.data.labels.LabelSpace), or raise num_labels."
            )
        if bad_predictions:
            raise UserError(
                f"{bad_predictions:,} labelled pixels are predicted as something other than the classes 0..{last}. "
                "The model must have as many classes as the labels."
            )


def _pairs_of_bytes(predictions: Tensor, labels: Tensor) -> Tensor | None:
    """How often each pair of a truth and a prediction of 8 bits occurs, int64 (65536,); `None` where ids have more."""
    for ids in (labels, predictions):
        if not ids.numel() or ids.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
            return None
        if ids.dtype != torch.uint8:
            low, high = ids.aminmax()
            if low < 0 or high > 255:
                return None
    found = torch.zeros(65536, dtype=torch.int64)
    parts = (ids.flatten().split(_PIXELS) for ids in (labels, predictions))
    for truth, predicted in zip(*parts, strict=True):
        pairs = truth.cpu().to(torch.uint8).to(torch.int32).mul_(256).add_(predicted.cpu().to(torch.uint8))
        found += torch.bincount(pairs, minlength=65536)
    return found
