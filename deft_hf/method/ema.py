"""The moving average behind the generalized component: plain, from the initial snapshot, not bias-corrected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def run_decay(decay: float, steps: int, quoted_steps: int | None) -> float:
    """The decay for a run of `steps` that keeps the share of the initialisation which `decay` leaves at
    `quoted_steps`.

    With decay m, the share of the initialisation left after t updates is m^t, so m only means something together with
    the
    length of the run: m_run = m^(quoted_steps / steps), which gives m_run^steps = m^quoted_steps.

    Args:
        decay: decay as quoted, in [0, 1].
        steps: optimizer steps of the run's averaged stage, at least 1.
        quoted_steps: the steps that `decay` is quoted at (the authors: 0.9999 at 80,000); `None` takes `decay` as it
            is.
    """
    return decay if quoted_steps is None else decay ** (quoted_steps / steps)


def share_left(decay: float, updates: int) -> float:
    """Weight of the initialisation in the average after `updates` updates: decay^updates."""
    return decay**updates


@torch.no_grad()
def update_average(average: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """In place: average <- decay * average + (1 - decay) * current, in one fused call.

    The update that DeFT's generalized component gets after each optimizer step (Pahk et al., ICLR 2025, section on the
    EMA biased toward the initialisation).

    Args:
        average: float32 tensors (or float64). In bf16 a step of 1e-4 vanishes.
        current: tensors of the same shapes, any float dtype.
        decay: weight of the old average, in [0, 1].
    """
    if average:
        torch._foreach_lerp_(list(average), [tensor.to(average[0].dtype) for tensor in current], 1.0 - decay)
