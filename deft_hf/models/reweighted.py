"""Per-pixel losses for rare classes: class weights, online hard example mining, and Dice beside the cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.models.objectives import Batch, PerPixel
from deft_hf.models.row_loss import cross_entropy_sum


@dataclass(frozen=True)
class ReweightedPerPixel(PerPixel):
    """Cross-entropy in which some pixels count more than others, and a Dice loss beside it.

    With the weight w_y of the class y of each valid pixel and its cross-entropy l, over an optimizer step

        loss = Σ_kept w_y l / Σ_valid w_y  +  dice_weight * mean over images of (1 - Dice)

    Every term is a sum over images of what one image gives by itself, divided by items of the whole step. So 8 batches
    of 1 are one batch of 8, on any number of ranks, as for the plain loss.

    * *Class weights* are those of `torch.nn.functional.cross_entropy(weight=..., reduction="mean")`.
    * *OHEM* (Shrivastava et al., CVPR 2016, https://arxiv.org/abs/1604.03540; for segmentation as in mmsegmentation):
      a pixel is kept while the model gives its class a probability below the threshold, and so are the hardest pixels
      of its image, `min_kept` of them. mmsegmentation chooses the latter over a batch, which depends on how a step is
      cut into batches. What is not kept counts in the denominator, as there.
    * *Dice* of an image: the mean over the classes that it shows of 2 Σ p g / (Σ p + Σ g), with probabilities p and
      truth g over its valid pixels (Milletari et al., 3DV 2016, https://arxiv.org/abs/1606.04797, without squares).
      Images without a valid pixel do not count.

    The loss of evaluation stays the plain cross-entropy, which compares with other runs.

    Args:
        class_weights (`tuple[float, ...]`, *optional*):
            One a class; 1 for all by default.
        ohem_threshold (`float`, *optional*):
            Probability from which on a pixel is easy; no mining by default.
        ohem_min_kept (`float`, *optional*, defaults to `0.0625`):
            So many pixels of each image are kept at least; below 1, a share of all its pixels.
        dice_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the Dice loss.
    """

    class_weights: tuple[float, ...] | None = None
    ohem_threshold: float | None = None
    ohem_min_kept: float = 1 / 16
    dice_weight: float = 0.0

    def loss(self, model: nn.Module, batch: Batch, items: Tensor) -> Tensor:
        """Share of `batch` in the loss of an optimizer step, see the class; `items` as from `count`."""
        labels = batch["labels"]
        if self.ohem_threshold is None and not self.dice_weight and self.class_weights is not None:
            logits = self.logits(self.forward(model, batch["pixel_values"]))
            counted = cross_entropy_sum(logits, labels, self._weights(labels))
            return counted / items[0].to(counted.device, counted.dtype).clamp(min=torch.finfo(counted.dtype).tiny)
        logits = self.logits_of_labels(model, batch)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
        counted = losses if self.class_weights is None else losses * self._weights(labels).to(losses.dtype)
        if self.ohem_threshold is not None:
            counted = counted * self._kept(losses.detach())
        weight, images = items.to(losses.device, losses.dtype).unbind()
        # A step without any valid pixel has loss 0, not 0 / 0.
        loss = counted.sum() / weight.clamp(min=torch.finfo(losses.dtype).tiny)
        if self.dice_weight:
            loss = loss + self.dice_weight * dice_losses(logits, labels).sum() / images.clamp(min=1)
        return loss

    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Weight of the valid pixels of `batch`, and its images that have one: (2,) float64 (MPS: float32)."""
        labels = batch["labels"]
        valid = labels != IGNORE_INDEX
        weight = valid.sum() if self.class_weights is None else self._weights(labels).sum()
        exact = _exact(labels.device)
        return torch.stack([weight.to(exact), valid.flatten(1).any(1).sum().to(exact)])

    def _weights(self, labels: Tensor) -> Tensor:
        """The weight of each pixel; 0 where it is ignored."""
        assert self.class_weights is not None
        return _table(self.class_weights, labels.device)[labels]

    def _kept(self, losses: Tensor) -> Tensor:
        """Which pixels are kept, bool (N, H, W); ignored ones, whose loss is 0, do not matter."""
        assert self.ohem_threshold is not None
        each = losses.flatten(1)
        least = self.ohem_min_kept if self.ohem_min_kept >= 1 else self.ohem_min_kept * each.shape[1]
        hardest = each.topk(min(math.ceil(least), each.shape[1])).values[:, -1]
        return (losses > -math.log(self.ohem_threshold)) | (losses >= hardest[:, None, None])


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@cache  # a copy to the device at each step would make the host wait for it
def _table(class_weights: tuple[float, ...], device: torch.device) -> Tensor:
    """By label, its weight; 0 for those that are ignored."""
    ignored = (0.0,) * (IGNORE_INDEX + 1 - len(class_weights))
    return torch.tensor(class_weights + ignored, dtype=_exact(device), device=device)


def dice_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice of each image (N,), 0 for those without a valid pixel; see [`ReweightedPerPixel`].

    Args:
        logits (`Tensor`):
            Float (N, C, H, W).
        labels (`Tensor`):
            Class ids, int64 (N, H, W), 255 = ignored.
    """
    valid = (labels != IGNORE_INDEX)[:, None].to(logits.dtype)
    probabilities = logits.softmax(1) * valid
    index = labels.masked_fill(labels == IGNORE_INDEX, 0)[:, None]
    truth = torch.zeros_like(probabilities).scatter_(1, index, valid)
    overlap, total, size = (
        each.flatten(2).sum(-1) for each in (probabilities * truth, probabilities + truth, truth.detach())
    )
    shown = size > 0
    losses = (1 - 2 * overlap / total.clamp(min=1)) * shown
    return losses.sum(1) / shown.sum(1).clamp(min=1)
