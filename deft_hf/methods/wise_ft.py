"""WiSE-FT: the trained weights on the line to where the last stage started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deft_hf.methods.base import NEEDS_WHOLE, Ingredient, Launcher, Run
from deft_hf.methods.core.stages import PARTS
from deft_hf.methods.settings import CommonSettings
from deft_hf.methods.variant import Variant, warmups

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deft_hf.methods.core.pathways import DualPathway

ALPHAS = tuple(tenth / 10 for tenth in range(11))


class WiSEFT(Ingredient):
    """θ = (1 - α) θ_init + α θ, with the α of 0, 0.1, ... 1 that source validation likes best.

    Wortsman et al., CVPR 2022, section 3; where several are best, the largest. Switched on by
    `component: interpolated`.
    """

    name = "wise_ft"
    summary = "the trained weights interpolated with their start; the point is chosen on source validation"
    paper = "Wortsman et al. 2022, https://arxiv.org/abs/2109.01903"
    Settings = CommonSettings
    settings: CommonSettings
    variants = {
        "wise_ft": Variant(
            "lp_ft, interpolated with its start (Wortsman et al. 2022); the point is chosen on source validation",
            {"method.name": "lp_ft", "method.component": "interpolated"},
            tries=warmups,
        )
    }

    def __init__(self, settings: CommonSettings) -> None:
        super().__init__(settings)
        self.found: dict[float, float] = {}  # mean IoU on source validation by α, once it was chosen

    @property
    def is_on(self) -> bool:
        return self.settings.component == "interpolated"

    @property
    def chooses_weights(self) -> bool:
        return True

    def problems(self, run: Run) -> Iterator[str]:
        if not run.method.trains_encoder():
            yield f"method {run.method.name} leaves the encoder where it was: there is nothing to interpolate"
        if run.average is not None:
            yield "component interpolated goes with average: none"

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.shards_parameters:
            yield f"component: interpolated {NEEDS_WHOLE}"

    def choose(self, pathways: DualPathway, score: Callable[[], float]) -> None:
        model, initial = pathways.exported, pathways.initial
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if name in initial}
        self.found = {}
        for alpha in ALPHAS:
            interpolate(model, initial, trained, alpha)
            self.found[alpha] = score()
        interpolate(model, initial, trained, best_point(self.found))

    def facts(self) -> dict[str, Any]:
        if not self.found:
            return {}
        share = 1 - best_point(self.found)
        return {
            "initial_share": dict.fromkeys(PARTS, share),
            "interpolation": {str(alpha): value for alpha, value in self.found.items()},
        }


def interpolate(model: nn.Module, initial: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> None:
    """In place: θ <- (1 - α) θ_init + α θ_trained, for the parameters of `model` that `trained` names.

    Args:
        model (`nn.Module`):
            Its other parameters and its buffers stay as they are.
        initial (`Mapping[str, Tensor]`):
            θ_init by name, on any device.
        trained (`Mapping[str, Tensor]`):
            The trained parameters by name, on the model's device.
        alpha (`float`):
            Share of the trained weights, from 0 to 1.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.copy_(torch.lerp(initial[name].to(parameter), trained[name], alpha))


def best_point(found: Mapping[float, float]) -> float:
    """The α with the best score; where several have it, the largest."""
    return max(found, key=lambda alpha: (found[alpha], alpha))
