"""Directional gradient projection: a gradient loses what leads away from the initialisation, as far as that helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deft_hf.methods.base import NEEDS_WHOLE, NOT_NEGATIVE, Ingredient, Launcher, setting
from deft_hf.methods.variant import Variant, values

if TYPE_CHECKING:
    from torch import Tensor

    from deft_hf.methods.core.pathways import DualPathway

BETAS = (0.9, 0.999)


@dataclass
class DiGraPSettings:
    """Of directional gradient projection."""

    gradient_projection_rate: float = setting(
        0.0,
        "Learning rate μ of the strengths of directional gradient projection on the encoder, one a tensor; set "
        "encoder_weight_decay to 0 with it. 0: no projection.",
        allowed=NOT_NEGATIVE,
        identity=True,
    )


class DiGraP(Ingredient):
    """Directional gradient projection of the encoder (Huang et al., ICLR 2025, arXiv 2502.15895, algorithm 1).

    It keeps one more copy of the encoder, by which the strengths are learned.
    """

    name = "digrap"
    summary = "gradients are projected where they lead away from the initialisation, by a strength that is learned"
    paper = "Huang et al. 2025, https://arxiv.org/abs/2502.15895"
    Settings = DiGraPSettings
    settings: DiGraPSettings
    variants = {
        "digrap": Variant(
            "joint with directional gradient projection of the encoder (Huang et al. 2025)",
            {"method.name": "joint", "method.gradient_projection_rate": 1e-2, "method.encoder_weight_decay": 0.0},
            tries=values("method.gradient_projection_rate", 1e-3, 1e-2, 1e-1),
        )
    }

    def __init__(self, settings: DiGraPSettings) -> None:
        super().__init__(settings)
        self._start: dict[str, Tensor] | None = None  # of the stage that the strengths are of
        self._loaded: Mapping[str, Tensor] = {}
        self.strengths: Strengths

    @property
    def is_on(self) -> bool:
        return self.settings.gradient_projection_rate > 0

    @property
    def reads_start(self) -> bool:
        return self.is_on

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.hides_gradients:
            yield "gradient_projection_rate changes gradients, which DeepSpeed keeps to itself: leave one of them out"
        if launcher.shards_parameters:
            yield f"gradient_projection_rate {NEEDS_WHOLE}"

    def before_step(self, pathways: DualPathway) -> None:
        parameters = pathways.trained("encoder")
        if self._start is not pathways.initial:
            self._start, self.strengths = pathways.initial, Strengths.of(parameters)
            for name, tensor in self._loaded.items():
                self.strengths.tensors()[name].copy_(tensor)
            self._loaded = {}
        self.strengths.project(parameters, pathways.start("encoder"), self.settings.gradient_projection_rate)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._start is None else self.strengths.tensors()

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._start, self._loaded = None, tensors


@dataclass
class Strengths:
    """What directional gradient projection knows of each tensor, of gradient g1 and g2 = θ - θ_init.

        ω_1 = 0,  ω_t = clip(Adam(ω_(t-1), ∇ω_t, μ, t), 0, 1),  ∇ω_t = normalised g1_t · proj_(t-1)
        proj_t = (g1 · g2 / ||g2||²) g2
        g = g1 - ω_t proj_t  where g1 · g2 < 0, that is where going down leads away from θ_init; else g = g1

    (Huang et al., ICLR 2025, algorithm 1). How ∇ω is normalised is ours: it is the cosine of g1_t and proj_(t-1), in
    which the learning rate, a factor of the paper's, drops out.

    Attributes:
        scalars (`Tensor`):
            (4, tensors): ω, its two moments, and the sign of g1 · g2 in the last step.
        drifts (`list[Tensor]`):
            g2 of the last step.
        steps (`Tensor`):
            t, int64.
    """

    scalars: Tensor
    drifts: list[Tensor]
    steps: Tensor

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> Strengths:
        """At the start of a stage."""
        import torch

        drifts = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
        scalars = drifts[0].new_zeros(4, len(drifts))
        return cls(scalars, drifts, torch.zeros((), dtype=torch.int64))

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        drifts = {f"drift.{index}": drift for index, drift in enumerate(self.drifts)}
        return {"scalars": self.scalars, "steps": self.steps, **drifts}

    def project(self, parameters: Sequence[Tensor], initial: Sequence[Tensor], rate: float) -> None:
        """Learn from the gradients of `parameters`, then project these in place; before the optimizer's step."""
        import torch

        self.steps += 1
        t, (first, second) = int(self.steps), BETAS
        strength, mean, square, sign = self.scalars
        with torch.no_grad():
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            tiny = torch.finfo(strength.dtype).tiny
            if t > 1:
                pairs = list(zip(gradients, self.drifts, strict=True))
                cosines = torch.stack([(g * d).sum() / (g.norm() * d.norm()).clamp(min=tiny) for g, d in pairs])
                slope = torch.nan_to_num(sign * cosines, 0.0, 0.0, 0.0)  # of a step that will be skipped: none
                mean.mul_(first).add_(slope, alpha=1 - first)
                square.mul_(second).addcmul_(slope, slope, value=1 - second)
                strength -= rate * (mean / (1 - first**t)) / ((square / (1 - second**t)).sqrt() + 1e-8)
                strength.clamp_(0, 1)
            for index, (parameter, start, gradient) in enumerate(zip(parameters, initial, gradients, strict=True)):
                drift = self.drifts[index].copy_(parameter - start)
                dot = (gradient * drift).sum()
                sign[index] = torch.nan_to_num(dot.sign())
                share = torch.where(dot < 0, strength[index] * dot / drift.square().sum().clamp(min=tiny), 0.0)
                gradient.sub_(share * drift)
