"""Selective projection decay: a pull toward the initialisation only where a step and the drift disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from deft_hf.methods.base import NEEDS_WHOLE, NOT_NEGATIVE, Ingredient, Launcher, setting
from deft_hf.methods.variant import Variant, values

if TYPE_CHECKING:
    from torch import Tensor

    from deft_hf.methods.core.pathways import DualPathway


@dataclass
class SPDSettings:
    """Of selective projection decay."""

    projection_weight: float = setting(
        0.0,
        "Weight λ of selective projection decay on the encoder; set encoder_weight_decay to 0 with it.",
        allowed=NOT_NEGATIVE,
        identity=True,
    )


class SPD(Ingredient):
    """Selective projection decay of the encoder (Tian et al., NeurIPS 2024, algorithm 1)."""

    name = "spd"
    summary = "a projection toward the initialisation where a step and the drift disagree"
    paper = "Tian et al. 2024, https://arxiv.org/abs/2411.01713"
    Settings = SPDSettings
    settings: SPDSettings
    variants = {
        "spd": Variant(
            "joint with selective projection decay of the encoder (Tian et al. 2024)",
            {"method.name": "joint", "method.projection_weight": 1.0, "method.encoder_weight_decay": 0.0},
            tries=values("method.projection_weight", 0.3, 1.0, 3.0),
        ),
        "deft_spd": Variant(
            "DeFT with selective projection decay of its usual encoder (ours)",
            {
                "method.name": "deft",
                "method.projection_weight": 1.0,
                "method.encoder_weight_decay": 0.0,
                "method.evaluate_usual": True,
            },
            tries=values("method.projection_weight", 0.3, 1.0, 3.0),
        ),
    }

    @property
    def is_on(self) -> bool:
        return self.settings.projection_weight > 0

    @property
    def reads_start(self) -> bool:
        return self.is_on

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.hides_gradients:
            yield "projection_weight reads gradients, which DeepSpeed keeps to itself: leave one of them out"
        if launcher.shards_parameters:
            yield f"projection_weight {NEEDS_WHOLE}"

    def before_step(self, pathways: DualPathway) -> None:
        self._drift = drift(pathways.trained("encoder"), pathways.start("encoder"))

    def after_step(self, pathways: DualPathway) -> None:
        weight = self.settings.projection_weight
        project(pathways.trained("encoder"), pathways.start("encoder"), self._drift, weight)


class Drift(NamedTuple):
    """What has to be known of the parameters before an optimizer step; one scalar tensor per parameter.

    Attributes:
        distances (`list[Tensor]`):
            ||θ - θ_init||_2.
        alignments (`list[Tensor]`):
            -<g, θ - θ_init>; negative where going down the gradient g leads back to the initialisation.
    """

    distances: list[Tensor]
    alignments: list[Tensor]


def drift(parameters: Sequence[Tensor], initial: Sequence[Tensor]) -> Drift:
    """The drift of parameters that have their gradients, before the optimizer moves them.

    Args:
        parameters (`Sequence[Tensor]`):
            Float tensors with `grad`; without one they count as having gradient 0.
        initial (`Sequence[Tensor]`):
            Tensors of the same shapes on the same device.
    """
    import torch

    distances, alignments = [], []
    with torch.no_grad():
        for parameter, start in zip(parameters, initial, strict=True):
            moved = parameter - start
            distances.append(moved.norm())
            alignments.append(moved.new_zeros(()) if parameter.grad is None else -(parameter.grad * moved).sum())
    return Drift(distances, alignments)


def project(parameters: Sequence[Tensor], initial: Sequence[Tensor], before: Drift, weight: float) -> None:
    """Selective projection decay after an optimizer step, in place and per tensor.

        if -<g, θ_prev - θ_init> < 0:   θ <- θ - λ r (θ - θ_init)
        r = clip((||θ - θ_init|| - ||θ_prev - θ_init||) / ||θ - θ_init||, 0, 1)

    It takes the place of weight decay (Tian et al., "Rethinking weight decay for robust fine-tuning of foundation
    models", NeurIPS 2024, arXiv 2411.01713, algorithm 1).

    Args:
        parameters (`Sequence[Tensor]`):
            The tensors that the optimizer has moved.
        initial (`Sequence[Tensor]`):
            θ_init, of the same shapes on the same device.
        before (`Drift`):
            What `drift` found before the step.
        weight (`float`):
            λ; 1 takes back the whole growth of the distance.
    """
    import torch

    with torch.no_grad():
        for parameter, start, distance, alignment in zip(parameters, initial, *before, strict=True):
            moved = parameter - start
            now = moved.norm()
            ratio = ((now - distance) / now.clamp(min=torch.finfo(now.dtype).tiny)).clamp(0, 1)
            parameter.sub_(moved * torch.where(alignment < 0, weight * ratio, 0.0))
