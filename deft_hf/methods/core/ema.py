"""The average behind the generalized component: DeFT's plain one from the initial snapshot, and its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Average = Literal["ema", "debiased_ema", "swa"]


def run_decay(decay: float, steps: int, quoted_steps: int | None) -> float:
    """The decay for a run of `steps` that keeps the share of the initialisation which `decay` leaves at
    `quoted_steps`.

    With decay m, the share of the initialisation left after t updates is m^t, so m only means something together with
    the length of the run: m_run = m^(quoted_steps / steps), which gives m_run^steps = m^quoted_steps.

    Args:
        decay: decay as quoted, in [0, 1].
        steps: optimizer steps of the run's averaged stage, at least 1.
        quoted_steps: the steps that `decay` is quoted at (the authors: 0.9999 at 80,000); `None` takes `decay` as it
            is.
    """
    return decay if quoted_steps is None else decay ** (quoted_steps / steps)


def share_left(decay: float, updates: int) -> float:
    """Weight of the initialisation in the plain average after `updates` updates: decay^updates."""
    return decay**updates


def weight_of_newest(average: Average, decay: float, updates: int, start: int = 0) -> float:
    """Weight w of the current parameters in the update number `updates`: average <- average + w (current - average).

    | average | w at update t | the average of t updates |
    |---|---|---|
    | `ema` | 1 - m | m^t θ_0 + (1 - m) Σ m^(t-i) θ_i: biased toward the initialisation, DeFT's |
    | `debiased_ema` | (1 - m) / (1 - m^t) | (1 - m) Σ m^(t-i) θ_i / (1 - m^t): nothing of the initialisation (the bias correction of Adam, Kingma and Ba 2015, section 3) |
    | `swa` | 1 / (t - start), 1 up to the start | the mean of θ_(start+1) ... θ_t (Izmailov et al., UAI 2018, arXiv 1803.05407, algorithm 1, an average at each step) |

    Args:
        average: the kind.
        decay: m in [0, 1]; `swa` has none.
        updates: t, from 1.
        start: updates of `swa` in which the average is the current parameters.
    """  # noqa: E501 (a table cannot be wrapped)
    if average == "swa":
        return 1.0 / max(updates - start, 1)
    if average == "debiased_ema":
        return (1.0 - decay) / (1.0 - decay**updates) if decay < 1 else 1.0 / updates
    return 1.0 - decay


@torch.no_grad()
def update_average(average: Sequence[Tensor], current: Sequence[Tensor], weight: float) -> None:
    """In place: average <- (1 - weight) * average + weight * current, in one fused call.

    The update that DeFT's generalized component gets after each optimizer step (Pahk et al., ICLR 2025, section on the
    EMA biased toward the initialisation).

    Args:
        average: float32 tensors (or float64). In bf16 a step of 1e-4 vanishes.
        current: tensors of the same shapes, any float dtype.
        weight: weight of `current`, in [0, 1]; see `weight_of_newest`.
    """
    if average:
        torch._foreach_lerp_(list(average), [tensor.to(average[0].dtype) for tensor in current], weight)
