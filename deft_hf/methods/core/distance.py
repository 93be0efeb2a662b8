"""Distance to the initialisation: as a regulariser, and as a figure to log."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def squared_distance(parameters: Iterable[Tensor], initial: Iterable[Tensor]) -> Tensor:
    """Sum over all tensors of ||parameter - initial||^2, a differentiable float32 scalar.

    Args:
        parameters (`Iterable[Tensor]`):
            Float tensors.
        initial (`Iterable[Tensor]`):
            Tensors of the same shapes, on any device.

    `weight / 2` times this is the distance regulariser of the usual component. The paper names a "simple distance
    regularization" without giving its form in public; this one (L2-SP: Li et al., ICML 2018, arXiv 1802.01483, eq. 2)
    is our reading.
    """
    total: Tensor | None = None
    for parameter, start in zip(parameters, initial, strict=True):
        term = (parameter.float() - start.to(parameter.device, torch.float32)).pow(2).sum()
        total = term if total is None else total + term
    return torch.zeros(()) if total is None else total
