"""Mixout: each step is taken with most of the encoder's weights put back to an anchor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deft_hf.methods.base import AT_LEAST_ONE, NEEDS_WHOLE, Ingredient, Launcher, Range, Run, setting
from deft_hf.methods.variant import Variant, values

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from deft_hf.methods.core.pathways import DualPathway

_TRIES = values("method.mixout_probability", 0.5, 0.8, 0.9)


@dataclass
class MixoutSettings:
    """Of Mixout."""

    mixout_probability: float = setting(
        0.0,
        "Share p of the encoder's weights (not norms and biases) that a step of joint training sees at their anchor, "
        "drawn anew every mixout_period steps. 0: none.",
        allowed=Range(lambda value: 0 <= value < 1, "a share from 0, below 1"),
        identity=True,
    )
    mixout_anchor: str = setting(
        "start",
        "What they are put back to: the start of the stage (Mixout), or the moving average (as GMixout does).",
        choices=("start", "average"),
        identity=True,
    )
    mixout_period: int = setting(1, "Steps between two draws.", allowed=AT_LEAST_ONE, identity=True)


class Mixout(Ingredient):
    """The loss is that of Φ + M / (1 - p) ⊙ (θ - Φ), M ~ Bernoulli(1 - p) (Lee et al., ICLR 2020, arXiv 1909.11299).

    Φ is the anchor. Its mean over masks is θ, which trains and is exported. The gradient is that of this formula, with
    its 1 / (1 - p). It is for pretrained weights, so that the decoder goes without.

    GMixout (Aminbeidokhti et al. 2025, arXiv 2510.06982) lets Φ follow θ as a moving average and keeps a mask for k
    steps. Only its abstract's description is followed here: that Φ is the run's own average, moved at every step and
    exported, and not at the end of each k, is ours.
    """

    name = "mixout"
    summary = "each step sees most of the encoder's weights at their start, or at their moving average"
    paper = "Lee et al. 2020, https://arxiv.org/abs/1909.11299"
    Settings = MixoutSettings
    settings: MixoutSettings
    variants = {
        "mixout": Variant(
            "joint with Mixout of the encoder (Lee et al. 2020)",
            {"method.name": "joint", "method.mixout_probability": 0.8},
            tries=_TRIES,
        ),
        "gmixout": Variant(
            "joint with Mixout to its own moving average, which is exported (after Aminbeidokhti et al. 2025)",
            {
                "method.name": "joint",
                "method.average": "ema",
                "method.mixout_probability": 0.8,
                "method.mixout_anchor": "average",
                "method.mixout_period": 10,
                "method.evaluate_usual": True,
            },
            tries=_TRIES,
        ),
    }

    def __init__(self, settings: MixoutSettings) -> None:
        super().__init__(settings)
        self._start: dict[str, Tensor] | None = None  # of the stage that what follows is of
        self._weights: dict[str, nn.Parameter] = {}
        self._view: nn.Module

    @property
    def is_on(self) -> bool:
        return self.settings.mixout_probability > 0

    @property
    def reads_start(self) -> bool:
        return self.is_on and self.settings.mixout_anchor == "start"

    def problems(self, run: Run) -> Iterator[str]:
        if run.method.stages[-1] != "joint":
            yield "mixout_probability goes with method joint or lp_ft"
        if self.settings.mixout_anchor == "average" and run.average is None:
            yield "mixout_anchor average needs an average: set average: ema"

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.shards_parameters:
            yield f"mixout_probability {NEEDS_WHOLE}"

    def view(self, pathways: DualPathway) -> nn.Module:
        import torch

        from deft_hf.models.views import exchange, sharing

        own = self.settings
        if self._start is not pathways.initial:  # of a stage that began, or was resumed
            weights = {id(parameter) for parameter in pathways.decayed("encoder")}
            self._weights = {name: p for name, p in pathways.usual.named_parameters() if id(p) in weights}
            self._start, self._view = pathways.initial, sharing(pathways.usual)
        average = dict(pathways.generalized.named_parameters()) if own.mixout_anchor == "average" else {}
        # The same on every rank, for every pass of a step, and after a resume.
        draw = pathways.seed * 1_000_003 + int(pathways.updates) // own.mixout_period
        generator = torch.Generator(pathways.updates.device).manual_seed(draw)
        anchors = average or pathways.initial
        share = own.mixout_probability
        exchange(self._view, {n: mixed(p, anchors[n].detach(), share, generator) for n, p in self._weights.items()})
        return self._view


def mixed(weights: Tensor, anchor: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Φ + M / (1 - p) ⊙ (θ - Φ), differentiable in θ.

    Args:
        weights (`Tensor`):
            θ.
        anchor (`Tensor`):
            Φ, of the same shape.
        probability (`float`):
            p, the share of elements that are put back to the anchor.
        generator (`torch.Generator`):
            Draws M, on the device of `weights`.
    """
    import torch

    anchor = torch.empty_like(weights).copy_(anchor)  # in the layout of the weights, which decides how sums round
    mask = torch.empty_like(weights).bernoulli_(1 - probability, generator=generator).div_(1 - probability)
    return torch.addcmul(anchor, mask, weights - anchor)
