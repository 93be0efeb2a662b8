"""What training costs in floating-point operations, counted on the model at hand.

Counted are matrix products and convolutions, where nearly all operations are; norms, activations, resizing and the
moving average are not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deft_hf.methods.core.pathways import DualPathway, Stage
from deft_hf.models.families import Batch, SegmentationFamily


def step_flops(pathways: DualPathway, batch: Batch) -> int:
    """Floating-point operations of one forward and backward of the current stage on `batch`.

    With encoder passes E and decoder passes D (a backward costs two forwards: one for gradients of the inputs, one
    for those of the weights) a step costs, but for the input gradients of the layers that stand first in what is
    trained,

    | stage | operations |
    |---|---|
    | `warmup` | E + 3 D |
    | `decoupled` | 4 E + 5 D: the encoder pathway 3 E + 2 D, the decoder pathway E + 3 D |
    | `split` | 2 E + 2.5 D, half of `decoupled`, for an even batch of four images or more |
    | `joint`, `measure` | 3 E + 3 D |
    | `alternating` | the mean of its two steps, half of `decoupled` |

    and of what `DualPathway.divide` has divided, `decoupled` costs 5 E + 5 D: either branch a forward and the
    gradients of inputs down to the first of its layers, both together those of all weights.

    Attention is counted as the products that define it, whichever kernel a device has for it; those need memory for
    whole attention maps. Counts grow in proportion to the images, so that a small batch will do.

    Gradients are cleared before and after. Parameters, buffers, modes and random states are left as they were.

    Args:
        pathways (`DualPathway`):
            Components, in any mode; counted in training mode.
        batch (`Batch`):
            `pixel_values` (N, 3, H, W) float and `labels` (N, H, W) int64, on the model's device.
    """
    device = pathways.updates.device
    modes = {module: module.training for module in pathways.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in pathways.buffers()]
    turn = pathways.turn
    turns = (0, 1) if pathways.stage == "alternating" else (turn,)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
    )
    # The total is enough, and telling modules apart fails where a model runs some without gradients (Mask2Former).
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]  # it is only entered and left
    try:
        pathways.train()
        pathways.zero_grad(set_to_none=True)
        # The flash kernel of CPUs is not counted at all, and those of GPUs with what they compute twice.
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type),
            sdpa_kernel(SDPBackend.MATH),
            torch.enable_grad(),
            counter,
        ):
            for pathways.turn in turns:
                pathways(**batch)["loss"].backward()
    finally:
        pathways.turn = turn
        pathways.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops() // len(turns)


class _NoModules(nullcontext):
    """In the place of `torch.utils.module_tracker.ModuleTracker`: everything is counted for the whole."""

    parents: ClassVar = {"Global"}


def method_flops(
    model: nn.Module, family: SegmentationFamily, stages: Sequence[tuple[Stage, int]], batch: Batch
) -> int:
    """Floating-point operations of a whole training run: the sum over its stages of steps x operations of a step.

    Args:
        model (`nn.Module`):
            A segmentation model, on the device that counts; copied, not changed.
        family (`SegmentationFamily`):
            Its encoder/decoder split and objective.
        stages (`Sequence[tuple[Stage, int]]`):
            Pairs of a stage and its optimizer steps.
        batch (`Batch`):
            What one optimizer step passes through the model, or the same share of it for all runs that are compared;
            see `step_flops`.
    """
    pathways = DualPathway(copy.deepcopy(model), family)
    cost: dict[Stage, int] = {}
    for stage, _ in stages:
        if stage not in cost:
            pathways.enter(stage)
            cost[stage] = step_flops(pathways, batch)
    return sum(steps * cost[stage] for stage, steps in stages)


def equal_compute_steps(
    flops: int, model: nn.Module, family: SegmentationFamily, batch: Batch, stage: Stage = "joint"
) -> int:
    """How many whole steps of a stage `flops` floating-point operations buy.

    Args:
        flops (`int`):
            What a run costs, as `method_flops` counts it on the same `batch`.
        model (`nn.Module`):
            Model that is to be fine-tuned, without adapters.
        family (`SegmentationFamily`):
            As for `method_flops`.
        batch (`Batch`):
            As for `method_flops`.
        stage (`Stage`, *optional*, defaults to `"joint"`):
            The stage; ordinary fine-tuning by default.
    """
    return flops // method_flops(model, family, [(stage, 1)], batch)


def _convolution_backward_flops(
    gradient: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **kwargs: Any,
) -> int:
    """As many operations as the forward for each of the gradients `wanted` of inputs and weight; arguments are shapes.

    torch's own formula takes the weight gradient of a grouped convolution for that of an ungrouped one, `groups` times
    too much (https://github.com/pytorch/pytorch/pull/183405): a MobileNet would train at ten times its forward.
    """
    places = prod((inputs if transposed else gradient)[2:])
    return 2 * inputs[0] * places * prod(weight) * sum(wanted[:2])
