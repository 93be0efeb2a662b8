"""The heads that a backbone can get: one row each, which recipes and `deft_hf.models.backbones` read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

ANY_NUMBER = 100


@dataclass(frozen=True)
class Head:
    """A segmentation model that takes backbones of transformers.

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
        only (`str`, *optional*):
            The one type of backbones that it takes; by default any.
        home (`str`, *optional*, defaults to `"transformers"`):
            Module that has both classes.
    """

    config: str
    model: str
    backbone: str
    levels: range
    reads_tokens: bool = False
    only: str | None = None
    home: str = "transformers"

    @property
    def config_class(self) -> Any:
        """The class that `config` names."""
        return getattr(import_module(self.home), self.config)

    @property
    def model_class(self) -> Any:
        """The class that `model` names."""
        return getattr(import_module(self.home), self.model)


HEADS = {
    "upernet": Head("UperNetConfig", "UperNetForSemanticSegmentation", "backbone", range(2, ANY_NUMBER)),
    # transformers' DPT heads of type "dpt" have a ViT of their own; this one takes any ViT.
    "dpt": Head("Tipsv2DptConfig", "Tipsv2DptForSemanticSegmentation", "backbone", range(4, 5), reads_tokens=True),
    "mask2former": Head(
        "Mask2FormerConfig",
        "Mask2FormerForUniversalSegmentation",
        "model.pixel_level_module.encoder",
        range(4, 5),
    ),
    # It reads the first and the last feature map.
    "deeplabv3plus": Head(
        "DeepLabV3PlusConfig",
        "DeepLabV3PlusForSemanticSegmentation",
        "backbone",
        range(2, 5),
        only="resnet",
        home="deft_hf.models.own",
    ),
}
