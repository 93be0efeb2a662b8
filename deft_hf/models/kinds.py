"""What kind of network an encoder is, which says at what rates it can be trained."""

from __future__ import annotations

from typing import Any, Literal

Kind = Literal["convolutional", "transformer"]

# Encoders whose blocks are normalized by BatchNorm. ConvNeXt, which has LayerNorm, is trained as transformers are.
_CONVOLUTIONAL = (
    "bit",
    "efficientnet",
    "hgnet_v2",
    "mobilenet_v1",
    "mobilenet_v2",
    "regnet",
    "resnet",
    "rt_detr_resnet",
)
_CONVOLUTIONAL_OF_TIMM = (
    "densenet", "dla", "efficientnet", "ghostnet", "hardcorenas", "hrnet", "inception", "mixnet", "mnasnet",
    "mobilenet", "regnet", "repvgg", "res2net", "resnest", "resnet", "resnext", "rexnet", "seresnet",
    "tf_efficientnet", "tf_mobilenet", "vgg", "wide_resnet", "xception",
)  # fmt: skip


def encoder_kind(config: Any) -> Kind:
    """The kind of a model's encoder, by the model's config; no model is opened.

    Args:
        config (`PreTrainedConfig`):
            Config of a segmentation model or of a backbone.

    Returns:
        `str`: `convolutional` for networks with BatchNorm, `transformer` for all others, ConvNeXt and unknown ones
        too: rates that are right for transformers are too low for the former, but spoil neither.
    """
    config = getattr(config, "backbone_config", None) or config
    architecture = str(getattr(config, "architecture", None) or getattr(config, "backbone", None) or "")
    known = getattr(config, "model_type", "") in _CONVOLUTIONAL
    return "convolutional" if known or architecture.startswith(_CONVOLUTIONAL_OF_TIMM) else "transformer"
