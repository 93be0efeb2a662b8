"""L2-SP and DeFT's distance regulariser: squared distances to the initialisation as a penalty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deft_hf.methods.base import NEEDS_WHOLE, NOT_NEGATIVE, Ingredient, Launcher, setting
from deft_hf.methods.core.stages import PARTS, Part
from deft_hf.methods.variant import Settings, Variant, values

if TYPE_CHECKING:
    from torch import Tensor

    from deft_hf.methods.core.pathways import DualPathway


_OWN: Settings = {
    "method.distance_weight": 1e-2,
    "method.decoder_distance_weight": 0.0,
    "method.decoder_norm_weight": 1e-2,
    "method.decoder_weight_decay": 0.0,
    "method.encoder_weight_decay": 0.0,
}


@dataclass
class DistanceSettings:
    """Of the penalties."""

    distance_weight: float = setting(
        0.0,
        "Weight λ of λ/2 ||θ - θ_init||² on the usual component.",
        allowed=NOT_NEGATIVE,
        identity=True,
    )
    decoder_distance_weight: float | None = setting(
        None, "λ of the decoder. Default: distance_weight.", allowed=NOT_NEGATIVE, identity=True
    )
    decoder_norm_weight: float = setting(
        0.0,
        "Weight β of β/2 ||θ||² on the usual decoder's weights, not its norms and biases; with a distance_weight on "
        "the encoder alone, L2-SP.",
        allowed=NOT_NEGATIVE,
        identity=True,
    )


class L2SP(Ingredient):
    """λ/2 ||θ - θ_init||² on either part and β/2 ||θ||² on the decoder (Li et al., ICML 2018, eq. 3).

    The DeFT paper names a "simple distance regularization" without giving its form in public; this one is our reading.
    """

    name = "l2_sp"
    summary = "squared distance to the initialisation as a penalty"
    paper = "Li et al. 2018, https://arxiv.org/abs/1802.01483"
    Settings = DistanceSettings
    settings: DistanceSettings
    variants = {
        "l2_sp": Variant(
            "joint with the encoder's squared distance to its start as a penalty (Li et al. 2018)",
            {"method.name": "joint", **_OWN},
            tries=values("method.distance_weight", 1e-3, 1e-2, 1e-1),
        ),
        "deft_l2_sp": Variant(
            "DeFT with L2-SP on its usual component (ours)",
            {"method.name": "deft", **_OWN, "method.evaluate_usual": True},
            tries=values("method.distance_weight", 1e-3, 1e-2, 1e-1),
        ),
    }

    @property
    def weights(self) -> dict[Part, float]:
        """λ by part."""
        own = self.settings
        decoder = own.distance_weight if own.decoder_distance_weight is None else own.decoder_distance_weight
        return dict(zip(PARTS, (own.distance_weight, decoder), strict=True))

    @property
    def is_on(self) -> bool:
        return self.reads_start or self.settings.decoder_norm_weight > 0

    @property
    def reads_start(self) -> bool:
        return any(self.weights.values())

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.shards_parameters and self.reads_start:
            yield f"distance_weight {NEEDS_WHOLE}"
        if launcher.shards_parameters and self.settings.decoder_norm_weight > 0:
            yield f"decoder_norm_weight {NEEDS_WHOLE}"

    def penalties(self, pathways: DualPathway) -> Iterator[Tensor]:
        import torch

        from deft_hf.methods.core.distance import squared_distance

        for part, weight in self.weights.items():
            if weight:
                yield weight / 2 * squared_distance(pathways.trained(part), pathways.start(part))
        if self.settings.decoder_norm_weight:
            norms = [parameter.float().pow(2).sum() for parameter in pathways.decayed("decoder")]
            yield self.settings.decoder_norm_weight / 2 * torch.stack(norms).sum()
