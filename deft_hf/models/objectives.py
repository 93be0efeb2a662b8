"""How a kind of model turns a batch into a loss, and its outputs into semantic logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deft_hf.data.constants import IGNORE_INDEX

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
        """Items of `batch`, int64, of any shape."""

    def logits(self, outputs: Any) -> Tensor:
        """Semantic logits (N, C, h, w), of any resolution."""


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
        labels = batch["labels"]
        logits = self.logits(self.forward(model, batch["pixel_values"]))
        if logits.dtype in (torch.float16, torch.bfloat16):
            # A sum over millions of pixels overflows fp16 and stalls in bf16.
            logits = logits.float()
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        # A step without any valid pixel has loss 0, not 0 / 0.
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") / items.clamp(min=1)

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Valid pixels of `batch`, an int64 scalar on the labels' device."""
        return (batch["labels"] != IGNORE_INDEX).sum()

    def logits(self, outputs: Any) -> Tensor:
        """Semantic logits (N, C, h, w) as the model gives them."""
        return outputs if isinstance(outputs, Tensor) else outputs.logits
