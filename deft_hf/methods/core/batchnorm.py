"""BatchNorm statistics of the model that is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorm_modules(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm modules of `model` that keep running statistics, by name."""
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm))
    return {name: module for name, module in modules if module.track_running_stats}


def mend_momentum(model: nn.Module) -> list[str]:
    """Turn TensorFlow's BatchNorm momentum into PyTorch's, in place; returns the names of the modules mended.

    Some ports (MobileNetV1/V2, EfficientNet of transformers) hand TensorFlow's momentum (0.997: keep 99.7 %) to
    PyTorch, where it means "forget 99.7 %": the running statistics are those of the last batch. A momentum above 0.5
    is taken as TensorFlow's and replaced by its complement, at least 0.01.
    """
    mended = []
    for name, module in batchnorm_modules(model).items():
        if module.momentum is not None and module.momentum > 0.5:
            module.momentum = max(1.0 - module.momentum, 0.01)
            mended.append(name)
    return mended


@torch.no_grad()
def reestimate(
    model: nn.Module, batches: Iterable[Tensor | Any], forward: Callable[[nn.Module, Tensor], Any] | None = None
) -> None:
    """Re-estimate the running statistics of every BatchNorm as the mean over `batches`, all else in eval mode.

    An average of weights has statistics that none of the averaged models had, so they are estimated on source data, as
    SWA does (Izmailov et al., UAI 2018, arXiv 1803.05407, section 3.2).

    Args:
        model (`nn.Module`):
            Model that takes images; its modes are restored.
        batches (`Iterable[Tensor | Any]`):
            Float tensors (N, 3, H, W) on the model's device, at least one.
        forward (`Callable[[nn.Module, Tensor], Any]`, *optional*):
            Runs the model on a batch; by default the batch is its only argument.
    """
    modules = list(batchnorm_modules(model).values())
    modes = {module: module.training for module in model.modules()}
    momenta = [module.momentum for module in modules]
    try:
        model.eval()
        for module in modules:
            module.reset_running_stats()
            module.momentum = None  # a cumulative average instead of an exponential one
            module.train()
        for pixel_values in batches:
            forward(model, pixel_values) if forward else model(pixel_values)
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        for each, mode in modes.items():
            each.training = mode


@torch.no_grad()
def average_over_ranks(model: nn.Module) -> None:
    """Make the running statistics the same on every rank: their mean. Without a process group nothing happens."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for module in batchnorm_modules(model).values():
        for statistic in (module.running_mean, module.running_var):
            if statistic is not None:
                dist.all_reduce(statistic)
                statistic /= dist.get_world_size()
