"""How a kind of model turns a batch into a loss, and its outputs into semantic logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.models.row_loss import at_label_size, cross_entropy_sum

Batch = Mapping[str, Any]


class Objective(Protocol):
    """How one kind of segmentation model is trained and read.

    A loss is divided by the *items* of a whole optimizer step, over accumulation and ranks, so that the losses of its
    parts add up to that of one large batch. Items are what the loss averages over: valid pixels for per-pixel heads,
    target masks and queries for mask classification. They are counted by batch, and counts add up.

    Attributes:
        auto_class (`ClassVar[str]`):
            Name of the Auto class of transformers that loads a checkpoint of this kind.
        outputs (`ClassVar[tuple[str, ...]]`):
            Names of the model outputs from which the semantic logits are computed.
        needs_masks (`ClassVar[bool]`):
            Whether `loss` needs `mask_labels` and `class_labels` in the batch.
    """

    auto_class: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    needs_masks: ClassVar[bool]

    def inputs(self, config: Any) -> dict[str, Any]:
        """Further inputs of the model by argument name; a list stands for one row per image."""

    def forward(self, model: nn.Module, pixel_values: Tensor) -> Any:
        """The model's outputs for `pixel_values` (N, 3, H, W)."""

    def loss(self, model: nn.Module, batch: Batch, items: Tensor) -> Tensor:
        """Share of `batch` in the loss of an optimizer step that has `items` in all, a float32 scalar."""

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Items of `batch`, numbers in a tensor of any shape."""

    def logits(self, outputs: Any) -> Tensor:
        """Semantic logits (N, C, h, w), of any resolution."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes that semantic logits (N, C, h, w) stand for, of the same shape."""

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Semantic logits of which `probabilities` gives these back."""

    def set_loss(self, device: torch.device) -> SetLoss:
        """The loss of a whole set, to be summed up on `device` while the set is scored."""


class SetLoss(Protocol):
    """The training loss of a whole set as if it were one batch, from the forward passes that score it.

    Attributes:
        totals (`Tensor`):
            Sums over the images seen so far, one dimension; those of several ranks add up.
    """

    totals: Tensor

    def watching(self, pixel_values: Tensor, labels: Tensor) -> Any:
        """An objective for the forward pass of a batch, in which its loss is noted.

        Args:
            pixel_values (`Tensor`):
                Images (N, 3, h, w).
            labels (`Tensor`):
                Class ids, int64 (N, H, W), 255 = ignored.
        """

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take over the batch's logits (N, C, H, W), float32, at the size of its labels."""

    def mean(self, totals: Tensor) -> float:
        """The loss of a set with such `totals`; NaN where it has no valid pixel."""


def zeros(count: int, device: torch.device) -> Tensor:
    """Sums that stay exact over millions of pixels, as far as `device` has them."""
    return torch.zeros(count, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


class PixelSetLoss:
    """Mean cross-entropy over the valid pixels of a set, a [`SetLoss`].

    Args:
        objective (`PerPixel`):
            Makes the logits.
        device (`torch.device`):
            Of the sums.
    """

    def __init__(self, objective: PerPixel, device: torch.device) -> None:
        self.objective = objective
        self.totals = zeros(2, device)

    def watching(self, pixel_values: Tensor, labels: Tensor) -> Any:
        """The objective as it is: the logits are all that is needed."""
        return self.objective

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add the cross-entropy of each valid pixel, image by image: a copy of all logits would be as large again."""
        for each, truth in zip(logits, labels.to(logits.device), strict=True):
            self.totals[0] += F.cross_entropy(each[None], truth[None], ignore_index=IGNORE_INDEX, reduction="sum")
            self.totals[1] += (truth != IGNORE_INDEX).sum()

    def mean(self, totals: Tensor) -> float:
        """Sum by count; NaN where no pixel is valid."""
        loss, pixels = totals.tolist()
        return loss / pixels if pixels else math.nan


class PerPixel:
    """Cross-entropy on every pixel whose label is not 255, with the logits resized to the label's size."""

    auto_class: ClassVar[str] = "AutoModelForSemanticSegmentation"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    needs_masks: ClassVar[bool] = False

    def inputs(self, config: Any) -> dict[str, Any]:
        """No further inputs."""
        return {}

    def forward(self, model: nn.Module, pixel_values: Tensor) -> Any:
        """The model's outputs for `pixel_values` (N, 3, H, W)."""
        return model(pixel_values)

    def loss(self, model: nn.Module, batch: Batch, items: Tensor) -> Tensor:
        """Sum of the cross-entropy over the valid pixels of `batch` by `items`; exactly 0 without any.

        Args:
            model (`nn.Module`):
                Model whose outputs have `logits` of shape (N, C, h, w), at any resolution.
            batch (`Batch`):
                `pixel_values` (N, 3, H, W) float and `labels` (N, H, W) int64.
            items (`Tensor`):
                Valid pixels of the optimizer step, a scalar.
        """
        logits = self.logits(self.forward(model, batch["pixel_values"]))
        # A step without any valid pixel has loss 0, not 0 / 0.
        return cross_entropy_sum(logits, batch["labels"]) / items.clamp(min=1)

    def logits_of_labels(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, C, H, W) of `batch` at the size of its labels, float32 or float64."""
        return at_label_size(self.logits(self.forward(model, batch["pixel_values"])), batch["labels"])

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Valid pixels of `batch`, an int64 scalar on the labels' device."""
        return (batch["labels"] != IGNORE_INDEX).sum()

    def logits(self, outputs: Any) -> Tensor:
        """Semantic logits (N, C, h, w) as the model gives them."""
        return outputs if isinstance(outputs, Tensor) else outputs.logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Their softmax."""
        return logits.softmax(1)

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Their logarithm."""
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    def set_loss(self, device: torch.device) -> SetLoss:
        """Mean cross-entropy over the valid pixels of a set."""
        return PixelSetLoss(self, device)
