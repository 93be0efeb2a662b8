"""Moving averages whose decay changes over the run, with the share of the initialisation of a constant one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.stages import Part


@dataclass(frozen=True)
class CosineEMA(EMA):
    """In update t of T the decay is m^w_t; w follows half a cosine, from one of 0 and 2 to the other.

        w_t = 1 + s cos(π (t - 1/2) / T),  s = 1 where the decay rises, -1 where it falls

    The weights sum to T, so that after the run m^T of the initialisation is left, as with a constant decay m: what
    differs is when the average moves. The shape is that of BYOL's target network, τ = 1 - (1 - τ_base)
    (cos(π k / K) + 1) / 2 (Grill et al., NeurIPS 2020, arXiv 2006.07733, section 3.3), which rises. That the
    cosine is in the exponent, and that it may fall, is ours; no paper has such a decay for DeFT.

    Args:
        steps (`int`, *optional*, defaults to `1`):
            T, the updates of the stage; the decay stays at its last value after them.
    """

    steps: int = 1

    sign: ClassVar[int]
    needs_count: ClassVar[bool] = True

    def weight(self, part: Part, updates: int) -> float:
        exponent = 1 + self.sign * math.cos(math.pi * (min(updates, self.steps) - 0.5) / self.steps)
        return 1.0 - getattr(self, part) ** exponent

    def share_left(self, part: Part, updates: int) -> float:
        # Σ cos(π (i - 1/2) / T) for i up to t is sin(π t / T) / (2 sin(π / (2 T))).
        place = math.pi * min(updates, self.steps) / self.steps
        bent = self.sign * math.sin(place) / (2 * math.sin(math.pi / (2 * self.steps)))
        return getattr(self, part) ** max(min(updates, self.steps) + bent, 0.0)


class RisingEMA(CosineEMA):
    """The average moves most at the start of the run and comes to rest at its end."""

    sign = 1


class FallingEMA(CosineEMA):
    """The average rests at the initialisation at first and moves most at the end."""

    sign = -1
