"""A loss whose graph is gone before the next one is built, though one backward serves both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def can_be_staged(parameters: Sequence[Tensor]) -> bool:
    """Whether gradients of `parameters`, which are whole, can be taken ahead of the backward.

    Not in float16, whose gradients vanish but for the scale that the backward starts with; nor in a compiled step,
    which takes its gradients as a whole; nor where a hook changes a gradient, which it would do twice.
    """
    if not parameters or not torch.is_grad_enabled() or any(each._backward_hooks for each in parameters):
        return False
    device = parameters[0].device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return not half and not torch.compiler.is_compiling()


def staged(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """A loss, of which the gradients are taken at once and handed on by the backward.

    What autograd keeps for a second loss so does not come on top of what it keeps for this one. The gradients are
    those of one backward through both graphs, bit for bit if that starts with a power of two (1, a scale, 2 ranks).
    Hooks of `Tensor.register_hook` on a parameter would be called twice; those that wait until its gradient is
    accumulated are called once.

    Args:
        loss (`Callable[[], Tensor]`):
            Computes the loss, a float scalar.
        parameters (`Sequence[Tensor]`):
            Leaves that take a gradient of it; nothing else does.

    Returns:
        `Tensor`: The loss, a scalar whose graph is those gradients alone.
    """
    value = loss()
    # A backward stands outside of autocast, which would round the gradients of what a model computes in float32.
    with torch.autocast(value.device.type, enabled=False):
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    # Parameters that take none are in no graph, as they would be with one backward: DDP asks which ones there are.
    found = [(each, gradient) for each, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    return _HandOn.apply(value.detach(), [gradient for _, gradient in found], *(each for each, _ in found))


class _HandOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, scaled = ctx.gradients, []
        # On a GPU the host would wait for the scale; on a CPU a model's decoder is spared being copied.
        if outer[0].device.type == "cpu" and outer[0].item() == 1:
            scaled, gradients[:] = gradients[:], []
        # Not in place: two parameters may share the tensor of their gradient, and an expanded one takes no writing.
        # Each goes as soon as it is scaled, so that no more than one is in memory twice.
        while gradients:
            scaled.append(gradients.pop(0) * outer[0])
        return None, None, *scaled
