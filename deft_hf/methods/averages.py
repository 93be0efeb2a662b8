"""How the generalized component follows the usual one: DeFT's plain average, and its rivals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from deft_hf.methods.base import AT_LEAST_ONE, SHARE, Ingredient, Range, Run, setting
from deft_hf.methods.core.cosine_ema import CosineEMA, FallingEMA, RisingEMA
from deft_hf.methods.core.ema import EMA, run_decay, share_left
from deft_hf.methods.core.layers import LayerEMA
from deft_hf.methods.core.stages import PARTS, Part
from deft_hf.methods.variant import Settings, Tries, Variant, values


@dataclass(frozen=True)
class DebiasedEMA(EMA):
    """(1 - m) Σ m^(t-i) θ_i / (1 - m^t): nothing of the initialisation is in it.

    The bias correction of Adam (Kingma and Ba, ICLR 2015, section 3).
    """

    needs_count: ClassVar[bool] = True

    def weight(self, part: Part, updates: int) -> float:
        decay = getattr(self, part)
        return (1.0 - decay) / (1.0 - decay**updates) if decay < 1 else 1.0 / updates

    def share_left(self, part: Part, updates: int) -> float:
        return share_left(0.0, updates)


@dataclass(frozen=True)
class SWA(EMA):
    """The mean of θ_(start+1) ... θ_t, the current parameters up to the start.

    Izmailov et al., UAI 2018, arXiv 1803.05407, algorithm 1, with an average at each step.

    Args:
        start (`int`, *optional*, defaults to `0`):
            Updates after which it starts to average.
    """

    start: int = 0

    needs_count: ClassVar[bool] = True

    @property
    def decays(self) -> None:
        return None

    def weight(self, part: Part, updates: int) -> float:
        return 1.0 / max(updates - self.start, 1)

    def share_left(self, part: Part, updates: int) -> float:
        return share_left(0.0, updates)


AVERAGES: dict[str, type[EMA]] = {
    "ema": EMA,
    "rising_ema": RisingEMA,
    "falling_ema": FallingEMA,
    "debiased_ema": DebiasedEMA,
    "swa": SWA,
    "layer_ema": LayerEMA,
}

MADE_OF = {
    "ema": "moving averages of encoder and decoder that stay biased toward their initialisation",
    "rising_ema": "moving averages of encoder and decoder that keep what the first steps found",
    "falling_ema": "moving averages of encoder and decoder that keep to their initialisation at first",
    "debiased_ema": "moving averages of encoder and decoder, corrected for where they started",
    "swa": "the means of encoder and decoder over the late steps",
    "layer_ema": "moving averages of encoder and decoder, the slower the more the gradients of a layer vary",
}
"""What the generalized component is, in the words of a model card."""


@dataclass
class AverageSettings:
    """Of the average."""

    average: str | None = setting(
        None,
        "How the generalized component follows the usual one: ema (DeFT's), rising_ema and falling_ema (a decay that "
        "rises to 1, or falls from it, over the stage and leaves the same share of the initialisation), debiased_ema "
        "(without that share), swa (the mean of the steps after swa_start, in which the learning rate stands "
        "still), layer_ema (LDT's, a decay for each layer) or none. Default: ema for deft, layer_ema for ldt, else "
        "none. With joint or lp_ft it is the control that averages without decoupling.",
        choices=("none", *AVERAGES),
        identity=True,
        state=True,
    )
    swa_start: float = setting(
        0.5,
        "Share of the last stage after which swa starts.",
        allowed=Range(lambda value: 0 <= value < 1, "a share from 0, below 1"),
    )
    ema_decay: float = setting(0.9999, "Decay of the generalized encoder, quoted at ema_decay_steps.", allowed=SHARE)
    decoder_ema_decay: float | None = setting(
        None, "Decay of the generalized decoder. Default: ema_decay.", allowed=SHARE
    )
    ema_decay_steps: int | None = setting(
        80_000,
        "Run length that the decays are quoted at; they are re-scaled to the run, "
        "m_run = m^(ema_decay_steps / steps). null takes them as they are.",
        allowed=Range(AT_LEAST_ONE.holds, "a number of steps, or null"),
    )


def _horizons(rate: float, steps: int) -> tuple[str, list[int]]:
    return "method.ema_decay_steps", [20_000, 80_000, 320_000]


HORIZONS: Tries = _horizons
AVERAGED: Settings = {"method.average": "ema", "method.evaluate_usual": True}
"""What a run without an average has beside its settings where its averaged rows are read from it."""


class Averaging(Ingredient):
    """The average of a run; DeFT has one by default."""

    name = "average"
    summary = "the generalized component follows the usual one by a moving average or a mean"
    paper = "SWA: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407"
    Settings = AverageSettings
    settings: AverageSettings
    variants = {
        "joint_ema": Variant("joint, averaged by DeFT's EMA", {"method.name": "joint", **AVERAGED}, tries=HORIZONS),
        "lp_ft_ema": Variant("lp_ft, averaged by DeFT's EMA", {"method.name": "lp_ft", **AVERAGED}, tries=HORIZONS),
        "swa": Variant(
            "joint, the mean of its late steps at a constant rate (Izmailov et al. 2018)",
            {"method.name": "joint", "method.average": "swa"},
            tries=values("method.swa_start", 0.25, 0.5, 0.75),
        ),
    }

    def __init__(self, settings: AverageSettings, default: str | None = None) -> None:
        super().__init__(settings)
        kind = default if settings.average is None else settings.average
        self.kind = None if kind == "none" else kind  # the key of `AVERAGES` in use

    def rule(self, steps: int) -> EMA | None:
        """The average of a stage of `steps` optimizer steps; `None` where nothing is averaged."""
        if self.kind is None:
            return None
        if AVERAGES[self.kind] is SWA:
            return SWA(start=self._start(steps))
        own = self.settings
        decoder = own.ema_decay if own.decoder_ema_decay is None else own.decoder_ema_decay
        decays = (run_decay(decay, steps, own.ema_decay_steps) for decay in (own.ema_decay, decoder))
        kind = AVERAGES[self.kind]
        of_run: dict[str, Any] = {"steps": steps} if issubclass(kind, CosineEMA | LayerEMA) else {}
        if issubclass(kind, LayerEMA):
            of_run["quoted_steps"] = own.ema_decay_steps
        return kind(**dict(zip(PARTS, decays, strict=True)), **of_run)

    def _start(self, steps: int) -> int:
        return math.floor(self.settings.swa_start * steps)

    @property
    def shifts_schedule(self) -> bool:
        return self.kind == "swa"

    def step_of_schedule(self, step: int, steps: int, warmup: int) -> int:
        # SWA averages at a constant rate; there is nothing to average where the rate falls to 0.
        return min(step, max(self._start(steps), warmup)) if self.shifts_schedule else step

    def record(self, steps: int) -> dict[str, Any]:
        """What two runs that share a checkpoint must have in common, for a last stage of `steps`."""
        rule = self.rule(steps)
        start = self.settings.swa_start if isinstance(rule, SWA) else None
        return {"average": self.kind, "decays": rule and rule.decays, "swa_start": start}

    def problems(self, run: Run) -> Iterator[str]:
        if run.average is not None and not run.method.trains_encoder():
            yield f"method {run.method.name} has no average: leave average out"
        elif self.kind == "layer_ema" and "measure" not in run.method.stages:
            yield f"average layer_ema is of layers that method {run.method.name} does not measure: choose ema"
