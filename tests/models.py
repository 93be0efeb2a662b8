"""Tiny random models, one per family, for tests. Seven classes, side 64."""

from __future__ import annotations

import torch
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    ConvNextConfig,
    Data2VecVisionConfig,
    Data2VecVisionForSemanticSegmentation,
    DPTConfig,
    DPTForSemanticSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTV2Config,
    MobileViTV2ForSemanticSegmentation,
    PreTrainedModel,
    Sapiens2Config,
    Sapiens2ForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Tipsv2DptConfig,
    Tipsv2DptForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

NUM_LABELS = 7
SIDE = 64


def segformer(**overrides) -> PreTrainedModel:
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=NUM_LABELS,
        **overrides,
    )
    return SegformerForSemanticSegmentation(config)


def mobilenet_v2(**overrides) -> PreTrainedModel:
    config = MobileNetV2Config(
        depth_multiplier=0.25, output_stride=16, num_labels=NUM_LABELS, classifier_dropout_prob=0.0, **overrides
    )
    return MobileNetV2ForSemanticSegmentation(config)


def upernet() -> PreTrainedModel:
    backbone = ConvNextConfig(
        num_stages=4,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=NUM_LABELS, auxiliary_in_channels=16, auxiliary_channels=8
    )
    return UperNetForSemanticSegmentation(config)


def dpt() -> PreTrainedModel:
    config = DPTConfig(
        image_size=SIDE,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
        num_labels=NUM_LABELS,
    )
    return DPTForSemanticSegmentation(config)


def beit() -> PreTrainedModel:
    config = BeitConfig(
        image_size=SIDE,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        num_labels=NUM_LABELS,
        use_relative_position_bias=True,
    )
    return BeitForSemanticSegmentation(config)


def data2vec_vision() -> PreTrainedModel:
    config = Data2VecVisionConfig(
        image_size=SIDE,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        num_labels=NUM_LABELS,
        use_relative_position_bias=True,
    )
    return Data2VecVisionForSemanticSegmentation(config)


def mobilevit() -> PreTrainedModel:
    config = MobileViTConfig(
        image_size=SIDE,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
        aspp_out_channels=16,
        num_labels=NUM_LABELS,
    )
    return MobileViTForSemanticSegmentation(config)


def mobilevitv2() -> PreTrainedModel:
    config = MobileViTV2Config(image_size=SIDE, width_multiplier=0.25, aspp_out_channels=16, num_labels=NUM_LABELS)
    return MobileViTV2ForSemanticSegmentation(config)


def sapiens2() -> PreTrainedModel:
    config = Sapiens2Config(
        image_size=SIDE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_config={"upsample_out_channels": [16], "conv_out_channels": [8]},
        num_labels=NUM_LABELS,
    )
    return Sapiens2ForSemanticSegmentation(config)


def tipsv2_dpt() -> PreTrainedModel:
    backbone = {
        "model_type": "tipsv2_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    }
    config = Tipsv2DptConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, num_labels=NUM_LABELS
    )
    return Tipsv2DptForSemanticSegmentation(config)


BUILDERS = {
    "segformer": segformer,
    "mobilenet_v2": mobilenet_v2,
    "upernet": upernet,
    "dpt": dpt,
    "beit": beit,
    "data2vec-vision": data2vec_vision,
    "mobilevit": mobilevit,
    "mobilevitv2": mobilevitv2,
    "sapiens2": sapiens2,
    "tipsv2_dpt": tipsv2_dpt,
}


WITHOUT_DROPOUT = {"segformer": {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}, "mobilenet_v2": {}}


def build(model_type: str, **overrides) -> PreTrainedModel:
    """A tiny model of `model_type`, the same weights at every call."""
    torch.manual_seed(0)
    return BUILDERS[model_type](**overrides)


def batch(size: int = 2, side: int = SIDE, ignored: float = 0.1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random images (size, 3, side, side) and labels with a share of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_LABELS, (size, side, side), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return {"pixel_values": torch.randn(size, 3, side, side, generator=generator), "labels": labels}
