"""A loss whose graph is gone before the next one is built, though one backward serves both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def staged(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """A loss, of which the gradients are taken at once and handed on by the backward.

    What autograd keeps for a second loss so does not come on top of what it keeps for this one. The gradients are
    those that a backward of both would give, bit for bit.

    Args:
        loss (`Callable[[], Tensor]`):
            Computes the loss, a scalar.
        parameters (`Sequence[Tensor]`):
            What takes a gradient of it; nothing else does.
    """
    value = loss()
    return _HandOn.apply(value.detach(), torch.autograd.grad(value, parameters, allow_unused=True), *parameters)


class _HandOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        # Let go of, so that what accumulates gradients can take these and need not copy them.
        gradients, ctx.gradients = ctx.gradients, ()
        return None, None, *(None if each is None else each.mul_(outer[0]) for each in gradients)
