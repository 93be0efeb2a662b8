"""LDT: DeFT's two branches, cut by how much the gradients of each layer vary, and not between encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deft_hf.methods.base import Launcher, Method, Range, Run, setting
from deft_hf.methods.core.layers import LayerEMA, Layers
from deft_hf.methods.core.stages import PARTS, Span, Stage
from deft_hf.methods.variant import Settings, Variant, values
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from deft_hf.methods.core.pathways import DualPathway

_OWN: Settings = {"method.name": "ldt", "method.evaluate_usual": True}


@dataclass
class LDTSettings:
    """Of LDT alone."""

    unstable_ratio: float = setting(
        0.7,
        "Share of the trained tensors that are unstable, those whose gradients vary most. The paper: 0.7 for "
        "segmentation, 0.4 to 0.5 elsewhere.",
        allowed=Range(lambda value: 0 < value < 1, "a share between 0 and 1"),
        identity=True,
    )
    variance_steps: int = setting(
        32,
        "Batches, each of an optimizer step, whose gradients are compared after the decoder warm-up; nothing moves.",
        allowed=Range(lambda value: value >= 2, "2 or more"),
        identity=True,
    )
    branches: str = setting(
        "both",
        "What a step passes a batch through: both branches (LDT), or one of them in turn (single, after LDT-S), which "
        "costs less than a step of joint.",
        choices=("both", "single"),
        identity=True,
    )


class LDT(Method):
    """Layer-decomposition training (Tang et al., ICLR 2026).

    After the decoder warm-up the variance of each layer's gradient is measured, with nothing moved; the layers that
    vary most are unstable (U), the others stable (S). Then, with ~ for the copies that only averages move,

        stable branch    loss(S, U~)    trains S
        unstable branch  loss(S~, U)    trains U
        after the step   θ~ <- W θ~ + (1 - W) θ,   W = base + growth · rank of the layer's variance in its group / size
        export           S~ and U~

    with base 0.99 and growth 0.01 for stable layers, 0.999 and 0.001 for unstable ones (`average: layer_ema`).

    Known are the paper's equations by a summary of it and what its code does for super-resolution. As there, a layer
    is a parameter tensor, and its variance is over batches and elements. Ours are: a batch is that of an optimizer
    step, over all ranks, and its gradient is the optimizer's, clipped where `max_grad_norm` says so; W is quoted at
    `ema_decay_steps`, as every decay here, and applied after each step (their code: each tenth); the decoder warm-up
    and the rates by encoder and decoder are DeFT's. Each branch keeps its own BatchNorm statistics; the exported ones
    are re-estimated, or with `batchnorm: reference` those of the stable branch.

    LDT-S freezes the groups in turn within one network; how often they change is not at hand. With `branches: single`
    they do at each step, stable layers first. It keeps both components, so that it saves time and activations, not
    memory for weights.
    """

    name = "ldt"
    summary = (
        "decoder warm-up, a measurement, then stable and unstable layers apart; the generalized ones are exported"
    )
    paper = "Tang et al. 2026, https://openreview.net/forum?id=jLpjcY1iry"
    stages = ("warmup", "measure", "decoupled")
    default_average = "layer_ema"
    Settings = LDTSettings
    settings: LDTSettings
    variants = {
        "ldt": Variant(
            "two branches cut by the variance of gradients, a decay for each layer (after Tang et al. 2026)",
            _OWN,
            tries=values("method.unstable_ratio", 0.4, 0.5, 0.7),
        ),
        "ldt_ema": Variant("LDT with DeFT's EMA for all layers", {**_OWN, "method.average": "ema"}, like="ldt"),
        "ldt_single": Variant(
            "LDT, one branch a step in turn (after LDT-S, Tang et al. 2026)",
            {**_OWN, "method.branches": "single"},
            like="ldt",
        ),
    }

    def __init__(self, settings: LDTSettings) -> None:
        super().__init__(settings)
        self._sums: Tensor | None = None  # by layer, of its gradients' elements and of their squares
        self._count: int | None = None  # batches of which they are; `None` before the measurement
        self.layers: Layers | None = None  # once it is over

    @property
    def course(self) -> tuple[Stage, ...]:
        return (*self.stages[:-1], "alternating") if self.settings.branches == "single" else self.stages

    @property
    def lengths(self) -> Mapping[Stage, int]:
        return {"measure": self.settings.variance_steps}

    def problems(self, run: Run) -> Iterator[str]:
        if run.average is None:
            yield "method ldt needs an average: leave average out"

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.hides_gradients or launcher.shards_parameters:
            yield (
                "method ldt compares whole gradients of each layer, which DeepSpeed and FSDP2 do not leave in one "
                "place: use recipes/accelerate/ddp.yaml"
            )

    def enter(self, pathways: DualPathway, span: Span, new: bool) -> None:
        if span.stage == "measure" and (new or self._count is None):
            self._sums, self._count = None, 0
        if span.stage not in ("decoupled", "alternating"):
            return
        names = list(pathways.initial)
        if len(names) < 2:
            raise UserError(f"method ldt: found {len(names)} trained tensor, expected two groups of them: train more")
        self.layers = Layers.by_variance(self._variances(pathways, names), self.settings.unstable_ratio)
        pathways.divide(self.layers)
        if isinstance(average := pathways.average, LayerEMA):
            decays = self.layers.decays(average.steps, average.quoted_steps)
            parts = {part: [name for name in names if pathways.family.part_of(name) == part] for part in PARTS}
            pathways.average = replace(
                average,
                layers={part: [decays[name] for name in own] for part, own in parts.items()},
                sizes={part: [pathways.initial[name].numel() for name in own] for part, own in parts.items()},
            )

    def _variances(self, pathways: DualPathway, names: list[str]) -> dict[str, float]:
        if self._count is None:  # a step is timed, and nothing trained: some of each part in either group
            return {name: float(index % 10) for index, name in enumerate(names)}
        if self._sums is None or self._count < 2:
            raise UserError(
                f"method ldt: found {self._count} batches with finite gradients, expected 2 or more: raise "
                "variance_steps, or use bf16 in the place of fp16"
            )
        total, squares = self._sums
        elements = self._count * total.new_tensor([pathways.initial[name].numel() for name in names])
        found = (squares - total.square() / elements) / (elements - 1)
        return dict(zip(names, found.tolist(), strict=True))

    def before_step(self, pathways: DualPathway) -> None:
        if pathways.stage != "measure":
            return
        import torch

        usual = dict(pathways.usual.named_parameters())
        found = [(usual[name], usual[name].grad) for name in pathways.initial]
        gradients = [torch.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in found]
        sums = torch.stack([each.sum() for each in gradients]), torch.stack(torch._foreach_norm(gradients)).square()
        new = torch.stack(sums).cpu().double()
        if new.isfinite().all():  # else the loss scaler skips the step
            self._sums = new if self._sums is None else self._sums + new
            self._count = (self._count or 0) + 1

    def after_step(self, pathways: DualPathway) -> None:
        if pathways.stage == "measure":  # take the step back
            import torch

            usual, start = (dict(m.named_parameters()) for m in (pathways.usual, pathways.generalized))
            with torch.no_grad():
                for name in pathways.initial:
                    usual[name].copy_(start[name])

    def tensors(self) -> dict[str, Tensor]:
        import torch

        return {} if self._sums is None else {"sums": self._sums, "count": torch.tensor(self._count or 0)}

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._sums, self._count = tensors["sums"], int(tensors["count"])

    def facts(self) -> dict[str, Any]:
        return {} if self.layers is None else {"unstable_layers": [*self.layers.unstable]}
