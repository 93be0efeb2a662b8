"""Cross-entropy at the size of the labels without logits of that size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deft_hf.data.constants import IGNORE_INDEX

# Fewer classes leave so little to a pixel that finding its class takes longer than the memory that is saved.
_LEAST_CLASSES = 16
# Of the logits of a block, which are then still in a CPU's cache when they are read again.
_BLOCK_BYTES = 1 << 20


def at_label_size(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, C, h, w) resized to labels (N, H, W): (N, C, H, W), bilinear, float32 or float64."""
    # A sum over millions of pixels overflows fp16 and stalls in bf16.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def cross_entropy_sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the cross-entropy of each pixel, of logits that are resized to the labels' size.

    With many classes the resized logits are by far the largest tensor of a step. They are made, scored and let go of a
    block of rows at a time, and the gradient of the given logits is taken on the way, which is equal to rounding.

    Args:
        logits (`Tensor`):
            Float (N, C, h, w), of any resolution.
        labels (`Tensor`):
            Class ids, int64 (N, H, W), 255 = ignored.
        weights (`Tensor`, *optional*):
            What each pixel counts, (N, H, W), 0 where it is ignored; by default 1 each.

    Returns:
        `Tensor`: A scalar, float32, or float64 where the logits are.
    """
    if logits.shape[1] >= _LEAST_CLASSES and not torch.compiler.is_compiling():
        return _ByRows.apply(logits, labels, weights)
    resized = at_label_size(logits, labels)
    if weights is None:
        return F.cross_entropy(resized, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    losses = F.cross_entropy(resized, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses * weights.to(losses.dtype)).sum()


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        height, width = labels.shape[-2:]
        rows = max(1, _BLOCK_BYTES // (logits.shape[1] * width * dtype.itemsize))
        total = torch.zeros((), dtype=dtype, device=logits.device)
        gradient = torch.zeros_like(logits, dtype=dtype) if ctx.needs_input_grad[0] else None
        for image in range(len(logits)):
            for first in range(0, height, rows):
                block = slice(first, min(first + rows, height))
                truth = labels[image : image + 1, None, block]
                counts = (
                    truth != IGNORE_INDEX if weights is None else weights[image : image + 1, None, block].to(dtype)
                )
                low, source = _sources(logits.shape[2], height, block.start, block.stop, logits.device, dtype)
                used = slice(low, low + source.span)
                into = None if gradient is None else gradient[image, :, used]
                total += _block(logits[image : image + 1, :, used].to(dtype), truth, counts, source, into)
        ctx.save_for_backward(*(() if gradient is None else (gradient,)))
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer[0]).to(ctx.dtype), None, None


class _Rows:
    """Between which two rows of its logits each row of a block lies, and how far towards the second."""

    def __init__(
        self, above: list[int], below: list[int], share: list[float], device: torch.device, dtype: Any
    ) -> None:
        self.span = below[-1] + 1
        self.above = torch.tensor(above, device=device)
        self.below = torch.tensor(below, device=device)
        self.share = torch.tensor(share, dtype=dtype, device=device)[:, None]


@lru_cache(maxsize=1024)
def _sources(
    height: int, wanted: int, start: int, stop: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, _Rows]:
    """Where rows `start` to `stop` of `wanted` come from in `height`; as `F.interpolate`, corners not aligned."""
    places = [max((row + 0.5) * height / wanted - 0.5, 0.0) for row in range(start, stop)]
    above = [int(place) for place in places]
    below = [min(row + 1, height - 1) for row in above]
    low = above[0]
    share = [place - row for place, row in zip(places, above, strict=True)]
    return low, _Rows([row - low for row in above], [row - low for row in below], share, device, dtype)


def _block(part: Tensor, truth: Tensor, counts: Tensor, source: _Rows, gradient: Tensor | None) -> Tensor:
    """The loss of a block of one image, whose gradient is added to `gradient` (C, rows of `part`, w)."""
    resize, resize_back = torch.ops.aten.upsample_bilinear2d, torch.ops.aten.upsample_bilinear2d_backward
    tall = torch.lerp(part.index_select(2, source.above), part.index_select(2, source.below), source.share)
    size = list(truth.shape[-2:])
    logs = torch.log_softmax(resize(tall, size, False), 1)
    classes = truth.masked_fill(truth == IGNORE_INDEX, 0)
    loss = -(logs.gather(1, classes) * counts).sum()
    if gradient is not None:
        slope = logs.exp_().scatter_add_(1, classes, logs.new_full((), -1).expand(classes.shape)).mul_(counts)
        slope = resize_back(slope, size, list(tall.shape), False)[0]
        second = slope * source.share
        gradient.index_add_(1, source.above, slope - second).index_add_(1, source.below, second)
    return loss
