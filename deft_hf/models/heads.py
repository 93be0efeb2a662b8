"""The heads that a backbone can get: one row each, which recipes and `deft_hf.models.backbones` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """A segmentation model of transformers that takes any backbone.

    Args:
        config (`str`):
            Class of the model's configuration.
        model (`str`):
            Class of the model.
        backbone (`str`):
            Dotted path of the backbone in the model.
        levels (`range`):
            Numbers of feature maps that the head accepts.
        reads_tokens (`bool`, *optional*, defaults to `False`):
            It takes a ViT's tokens, the class token among them, and makes a pyramid of them by itself.
    """

    config: str
    model: str
    backbone: str
    levels: range
    reads_tokens: bool = False

    @property
    def config_class(self) -> Any:
        """The class of transformers that `config` names."""
        return _of_transformers(self.config)

    @property
    def model_class(self) -> Any:
        """The class of transformers that `model` names."""
        return _of_transformers(self.model)


HEADS = {
    "upernet": Head("UperNetConfig", "UperNetForSemanticSegmentation", "backbone", range(2, 100)),
    # transformers' DPT heads of type "dpt" have a ViT of their own; this one takes any ViT.
    "dpt": Head("Tipsv2DptConfig", "Tipsv2DptForSemanticSegmentation", "backbone", range(4, 5), reads_tokens=True),
    "mask2former": Head(
        "Mask2FormerConfig",
        "Mask2FormerForUniversalSegmentation",
        "model.pixel_level_module.encoder",
        range(4, 5),
    ),
}


def _of_transformers(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
