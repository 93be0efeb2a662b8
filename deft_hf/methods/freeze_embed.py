"""Freeze-embed: everything is fine-tuned but the layer that reads the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deft_hf.methods.base import Ingredient, Run, setting
from deft_hf.methods.variant import Variant, encoder_rates
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from deft_hf.models.families import SegmentationFamily


@dataclass
class FreezeEmbedSettings:
    """Of freeze-embed."""

    freeze_embedding: bool = setting(
        False,
        "Leave the encoder's first layer, the patch embedding or stem with the norm after it, as it was pretrained.",
        identity=True,
        state=True,
    )


class FreezeEmbed(Ingredient):
    """The embedding layer stays as it was pretrained (Kumar et al. 2022).

    The paper's case is SGD, under which that layer's gradients are far larger than those of the rest. What the layer
    is in a model of ours is our reading: the convolution that takes the image, and the norm right after it, if there
    is one. Position embeddings and class tokens train on. The running statistics of a BatchNorm go on in training
    mode, as those of a frozen encoder do here.
    """

    name = "freeze_embed"
    summary = "the patch embedding, or the stem, stays as it was pretrained"
    paper = "Kumar et al. 2022, https://arxiv.org/abs/2211.09359"
    Settings = FreezeEmbedSettings
    settings: FreezeEmbedSettings
    variants = {
        "freeze_embed": Variant(
            "joint with the patch embedding or stem frozen (Kumar et al. 2022)",
            {"method.name": "joint", "method.freeze_embedding": True},
            tries=encoder_rates,
        ),
        "deft_freeze_embed": Variant(
            "DeFT with the patch embedding or stem frozen",
            {"method.name": "deft", "method.freeze_embedding": True, "method.evaluate_usual": True},
            like="deft",
        ),
    }

    @property
    def is_on(self) -> bool:
        return self.settings.freeze_embedding

    def problems(self, run: Run) -> Iterator[str]:
        if not run.method.trains_encoder():
            yield f"method {run.method.name} trains nothing of the encoder: leave freeze_embedding out"

    def adapt(self, model: nn.Module, family: SegmentationFamily) -> SegmentationFamily:
        return replace(family, frozen=family.frozen | embedding(model, family))


def embedding(model: nn.Module, family: SegmentationFamily) -> frozenset[str]:
    """Names of the parameters of the layer that reads the image: the encoder's first convolution and its norm.

    Raises:
        UserError: No convolution of the encoder takes three channels.
    """
    from torch import nn

    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if family.part_of(f"{name}.") == "encoder" and not any(module.children())
    ]
    for place, (_, module) in enumerate(leaves):
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            layers = [leaves[place], *(leaf for leaf in leaves[place + 1 : place + 2] if _is_norm(leaf[1]))]
            return frozenset(f"{name}.{own}" for name, layer in layers for own, _ in layer.named_parameters())
    raise UserError(
        f"freeze_embedding: found no convolution of three channels in encoder {family.encoder!r}: leave it out, or "
        "freeze the layer yourself (requires_grad_(False))."
    )


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and all(parameter.ndim == 1 for parameter in own)
