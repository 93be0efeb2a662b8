"""Tiny random models, one per family, for tests. Seven classes, side 64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    ConvNextConfig,
    Data2VecVisionConfig,
    Data2VecVisionForSemanticSegmentation,
    DetrConfig,
    Dinov2Config,
    DPTConfig,
    DPTForSemanticSegmentation,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTV2Config,
    MobileViTV2ForSemanticSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    Sapiens2Config,
    Sapiens2ForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    Tipsv2DptConfig,
    Tipsv2DptForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from deft_hf.data.collate import MaskTargets
from deft_hf.models.own import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

NUM_LABELS = 7
SIDE = 64
STAGES = ["stage1", "stage2", "stage3", "stage4"]


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


def deeplabv3plus(**overrides) -> PreTrainedModel:
    bottlenecks = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 2], out_features=["stage1", "stage4"]
    )
    config = DeepLabV3PlusConfig(bottlenecks, hidden_size=16, low_level_size=8, num_labels=NUM_LABELS, **overrides)
    return DeepLabV3PlusForSemanticSegmentation(config)


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


def beit(config=BeitConfig, model=BeitForSemanticSegmentation) -> PreTrainedModel:
    return model(
        config(
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
    )


def data2vec_vision() -> PreTrainedModel:
    return beit(Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation)


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


def backbone(kind: str = "swin") -> PreTrainedConfig:
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "out_features": STAGES}
    if kind == "resnet":
        return ResNetConfig(embedding_size=8, layer_type="basic", **sizes)
    if kind == "convnext":
        return ConvNextConfig(num_stages=4, **sizes)
    if kind == "dinov2":
        return Dinov2Config(
            image_size=SIDE,
            patch_size=16,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            out_features=STAGES,
            reshape_hidden_states=True,
        )
    return SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        drop_path_rate=0.0,
        out_features=STAGES,
    )


# Five queries for seven classes: some images have more targets than can be matched.
MASK_HEAD = {
    "hidden_dim": 32,
    "num_queries": 5,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "train_num_points": 64,
    "num_labels": NUM_LABELS,
}


def mask2former(kind: str = "swin", **overrides) -> PreTrainedModel:
    config = Mask2FormerConfig(
        backbone_config=backbone(kind), feature_size=32, mask_feature_size=32, **{**MASK_HEAD, **overrides}
    )
    return Mask2FormerForUniversalSegmentation(config)


def maskformer(kind: str = "swin", **overrides) -> PreTrainedModel:
    decoder = DetrConfig(
        d_model=32, decoder_layers=2, num_queries=5, decoder_attention_heads=2, decoder_ffn_dim=32, dropout=0.0
    )
    config = MaskFormerConfig(
        backbone_config=backbone(kind),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=NUM_LABELS,
        **{"use_auxiliary_loss": True, **overrides},
    )
    return MaskFormerForInstanceSegmentation(config)


def oneformer(kind: str = "swin", **overrides) -> PreTrainedModel:
    config = OneFormerConfig(
        backbone_config=backbone(kind), conv_dim=32, mask_dim=32, query_dec_layers=1, **{**MASK_HEAD, **overrides}
    )
    return OneFormerForUniversalSegmentation(config)


def eomt(config=EomtConfig, model=EomtForUniversalSegmentation) -> PreTrainedModel:
    return model(
        config(
            image_size=SIDE,
            patch_size=16,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            mlp_ratio=2,
            intermediate_size=32,
            num_blocks=2,
            num_upscale_blocks=1,
            num_queries=5,
            train_num_points=64,
            num_labels=NUM_LABELS,
        )
    )


def eomt_dinov3() -> PreTrainedModel:
    return eomt(EomtDinov3Config, EomtDinov3ForUniversalSegmentation)


BUILDERS = {
    "segformer": segformer,
    "mobilenet_v2": mobilenet_v2,
    "upernet": upernet,
    "deeplabv3plus": deeplabv3plus,
    "dpt": dpt,
    "beit": beit,
    "data2vec-vision": data2vec_vision,
    "mobilevit": mobilevit,
    "mobilevitv2": mobilevitv2,
    "sapiens2": sapiens2,
    "tipsv2_dpt": tipsv2_dpt,
    "mask2former": mask2former,
    "maskformer": maskformer,
    "oneformer": oneformer,
    "eomt": eomt,
    "eomt_dinov3": eomt_dinov3,
}
# Of plain SGD, where the tests' usual one is too large for the loss of a random model.
RATES = {"tipsv2_dpt": 1e-5, "mask2former": 1e-3, "maskformer": 1e-3, "oneformer": 1e-3}
RATES |= {"eomt": 1e-3, "eomt_dinov3": 1e-3}
PIXEL_DECODERS = ("mask2former", "maskformer", "oneformer")
MASKS = (*PIXEL_DECODERS, "eomt", "eomt_dinov3")


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


def with_masks(items: dict[str, torch.Tensor]) -> dict:
    """A batch with the targets of mask classification."""
    return MaskTargets(lambda batch: batch)(items)


def extra_inputs(model: nn.Module, images: int = 2) -> dict:
    """What a model wants beside images: OneFormer the padded tokens of "the task is semantic"."""
    if model.config.model_type == "oneformer":
        tokens = F.pad(torch.tensor([49406, 518, 10549, 533, 29119, 1550, 49407]), (0, 70))
        return {"task_inputs": tokens.expand(images, -1)}
    return {"output_hidden_states": True} if model.config.model_type == "maskformer" else {}


def own_loss(model: nn.Module, items: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean loss of a batch, without deft_hf."""
    if model.config.model_type in MASKS:
        masks = [labels[None] == labels.unique()[:, None, None] for labels in items["labels"]]
        masks = [mask[labels.unique() != 255].float() for mask, labels in zip(masks, items["labels"], strict=True)]
        classes = [labels.unique()[labels.unique() != 255] for labels in items["labels"]]
        targets = {"mask_labels": masks, "class_labels": classes}
        return model(pixel_values=items["pixel_values"], **targets, **extra_inputs(model, len(masks))).loss.squeeze()
    logits = model(pixel_values=items["pixel_values"]).logits
    logits = F.interpolate(logits, size=items["labels"].shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, items["labels"], ignore_index=255)


_draw = torch.rand


def same_points(*size, **kwargs) -> torch.Tensor:
    """`torch.rand` whose draws are the same for each mask, so that they do not depend on what else is in a batch."""
    if "generator" in kwargs:
        return _draw(*size, **kwargs)
    return _draw(1, *size[1:], generator=torch.Generator().manual_seed(0)).expand(size).clone()
