"""The plain moving average behind the generalized component, and what every average is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deft_hf.methods.core.stages import PARTS, Part

if TYPE_CHECKING:
    from torch import Tensor


def run_decay(decay: float, steps: int, quoted_steps: int | None) -> float:
    """The decay for a run of `steps` that leaves the share of the initialisation as `decay` at `quoted_steps`.

    With decay m, the share of the initialisation left after t updates is m^t, so m only means something together with
    the length of the run: m_run = m^(quoted_steps / steps), which gives m_run^steps = m^quoted_steps.

    Args:
        decay (`float`):
            Decay as quoted, in [0, 1].
        steps (`int`):
            Optimizer steps of the run's averaged stage, at least 1.
        quoted_steps (`int`, *optional*):
            The steps that `decay` is quoted at (the authors: 0.9999 at 80,000); `None` takes `decay` as it is.
    """
    return decay if quoted_steps is None else decay ** (quoted_steps / steps)


def share_left(decay: float, updates: int) -> float:
    """Weight of the initialisation in the plain average after `updates` updates: decay^updates."""
    return decay**updates


@dataclass(frozen=True)
class EMA:
    """The plain exponential moving average that DeFT's generalized component follows, and the base of the others.

    After t updates from θ_0 it is m^t θ_0 + (1 - m) Σ m^(t-i) θ_i: not bias-corrected, which is what the paper means
    by "biased toward the initialisation" (Pahk et al., ICLR 2025).

    Args:
        encoder (`float`, *optional*, defaults to `0.0`):
            Decay m of the encoder, in [0, 1]; 0 follows at once.
        decoder (`float`, *optional*, defaults to `0.0`):
            Decay of the decoder.
    """

    encoder: float = 0.0
    decoder: float = 0.0

    needs_count: ClassVar[bool] = False
    """Whether `weight` depends on the number of updates, which the host has to read from the device."""

    @property
    def decays(self) -> dict[str, float] | None:
        """Decay per part; `None` for an average that has none."""
        return {part: getattr(self, part) for part in PARTS}

    def weight(self, part: Part, updates: int) -> float | list[float]:
        """Weight w of the current parameters in update number `updates`: average <- average + w (current - average).

        One for all tensors of the part, or one for each in the order of the model.

        Args:
            part (`str`):
                `encoder` or `decoder`.
            updates (`int`):
                Number of this update, from 1.
        """
        return 1.0 - getattr(self, part)

    def share_left(self, part: Part, updates: int) -> float:
        """Weight of the initialisation in the average after `updates` updates."""
        return share_left(getattr(self, part), updates)


def update_average(average: Sequence[Tensor], current: Sequence[Tensor], weight: float | Sequence[float]) -> None:
    """In place: average <- (1 - weight) * average + weight * current, in one fused call.

    The update that DeFT's generalized component gets after each optimizer step (Pahk et al., ICLR 2025, section on the
    EMA biased toward the initialisation).

    Args:
        average (`Sequence[Tensor]`):
            float32 tensors (or float64). In bf16 a step of 1e-4 vanishes.
        current (`Sequence[Tensor]`):
            Tensors of the same shapes, any float dtype.
        weight (`float` or `Sequence[float]`):
            Weight of `current`, in [0, 1], of all tensors or of each; see [`EMA.weight`].
    """
    import torch

    if average:
        with torch.no_grad():
            torch._foreach_lerp_(list(average), [tensor.to(average[0].dtype) for tensor in current], weight)
