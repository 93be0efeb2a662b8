"""DeepLabV3+ (Chen et al., ECCV 2018, arXiv 1802.02611) on a ResNet of transformers.

This file needs torch and transformers alone. It is saved beside the weights of every model of its class, so that

    AutoModelForSemanticSegmentation.from_pretrained(NAME, trust_remote_code=True)

opens the model wherever deft_hf is not installed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, PreTrainedConfig, PreTrainedModel, ResNetConfig
from transformers.modeling_outputs import SemanticSegmenterOutput


class DeepLabV3PlusConfig(PreTrainedConfig):
    """Configuration of [`DeepLabV3PlusForSemanticSegmentation`].

    Args:
        backbone_config (`ResNetConfig` or `dict`, *optional*):
            The encoder, of whose feature maps the first and the last are read; a ResNet-50 by default.
        output_stride (`int`, *optional*, defaults to `16`):
            Stride of the last feature map, 16 or 8. Stages that would reduce it further are dilated instead.
        atrous_rates (`list[int]`, *optional*, defaults to `(6, 12, 18)`):
            Dilations of the pyramid at output stride 16; at 8 they are doubled.
        hidden_size (`int`, *optional*, defaults to `256`):
            Channels of the pyramid and of the decoder.
        low_level_size (`int`, *optional*, defaults to `48`):
            Channels that the first feature map is projected to.
        semantic_loss_ignore_index (`int`, *optional*, defaults to `255`):
            Label that the loss leaves out.
    """

    model_type = "deeplabv3plus"
    sub_configs_defaults = {"backbone_config": ResNetConfig}  # type: ignore[dict-item]  # the base class takes both

    def __init__(
        self,
        backbone_config: Any = None,
        output_stride: int = 16,
        atrous_rates: Any = (6, 12, 18),
        hidden_size: int = 256,
        low_level_size: int = 48,
        semantic_loss_ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride is {output_stride}: expected 8 or 16")
        if backbone_config is None:
            backbone_config = ResNetConfig.from_dict({"out_features": ["stage1", "stage4"]})
        elif isinstance(backbone_config, dict):
            backbone_config = ResNetConfig.from_dict(backbone_config)
        if backbone_config.model_type != "resnet":
            raise ValueError(f"backbone_config is of type {backbone_config.model_type}: expected a resnet")
        self.backbone_config = backbone_config
        self.output_stride = output_stride
        self.atrous_rates = list(atrous_rates)
        self.hidden_size = hidden_size
        self.low_level_size = low_level_size
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        super().__init__(**kwargs)


def _resize(features: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=True)


class _ConvLayer(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU; the size stays."""

    def __init__(self, channels: int, size: int, kernel: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(channels, size, kernel, padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(size),
            nn.ReLU(),
        )


class _AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: one 1x1 and three dilated 3x3 convolutions, and the mean of the image."""

    def __init__(self, channels: int, size: int, rates: list[int]) -> None:
        super().__init__()
        dilated = (_ConvLayer(channels, size, kernel=3, dilation=rate) for rate in rates)
        self.levels = nn.ModuleList([_ConvLayer(channels, size), *dilated])
        self.image_level = _ConvLayer(channels, size)
        self.projection = _ConvLayer((len(rates) + 2) * size, size)

    def forward(self, features: Tensor) -> Tensor:
        image = self.image_level(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[2:])
        return self.projection(torch.cat([*(level(features) for level in self.levels), image], dim=1))


class _DecodeHead(nn.Module):
    def __init__(self, config: DeepLabV3PlusConfig, low_channels: int, channels: int) -> None:
        super().__init__()
        size = config.hidden_size
        rates = [rate * 16 // config.output_stride for rate in config.atrous_rates]
        self.pyramid = _AtrousPyramid(channels, size, rates)
        self.low_level = _ConvLayer(low_channels, config.low_level_size)
        self.fusion = nn.Sequential(
            _ConvLayer(size + config.low_level_size, size, kernel=3), _ConvLayer(size, size, kernel=3)
        )
        self.classifier = nn.Conv2d(size, config.num_labels or 0, kernel_size=1)

    def forward(self, low_level: Tensor, features: Tensor) -> Tensor:
        pyramid = _resize(self.pyramid(features), low_level.shape[2:])
        return self.classifier(self.fusion(torch.cat([pyramid, self.low_level(low_level)], dim=1)))


def _dilate(backbone: Any, config: ResNetConfig, output_stride: int) -> None:
    """Dilate the stages beyond the output stride instead of letting them reduce the resolution, in place."""
    stride = 8 if config.downsample_in_first_stage else 4
    for stage in backbone.encoder.stages:
        if stride > output_stride:
            for layer in stage.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.stride = (1, 1)
                    if layer.kernel_size == (3, 3):
                        layer.dilation = layer.padding = (stride // output_stride,) * 2
        stride *= 2


class DeepLabV3PlusForSemanticSegmentation(PreTrainedModel):
    """DeepLabV3+: a ResNet with a dilated end, an atrous pyramid, and a decoder that reads an early feature map too.

    All resizing is bilinear with `align_corners=True`, as in the code that domain generalization is compared on.
    """

    config_class = DeepLabV3PlusConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    _no_split_modules = ["ResNetBottleNeckLayer", "ResNetBasicLayer"]

    def __init__(self, config: DeepLabV3PlusConfig) -> None:
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        _dilate(self.backbone, config.backbone_config, config.output_stride)
        channels = self.backbone.channels
        self.decode_head = _DecodeHead(config, channels[0], channels[-1])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits at the size of the images, and the loss if there are labels.

        Args:
            pixel_values (`Tensor`):
                Images, float (N, 3, H, W).
            labels (`Tensor`, *optional*):
                Class ids, int64 (N, H, W).
            output_hidden_states (`bool`, *optional*):
                Whether to return the feature maps of all stages too.
            return_dict (`bool`, *optional*):
                Whether to return a `SemanticSegmenterOutput` rather than a tuple.

        Returns:
            `SemanticSegmenterOutput`: `logits` (N, classes, H, W); `loss`, the mean cross-entropy over the labelled
            pixels; `hidden_states`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.decode_head(outputs.feature_maps[0], outputs.feature_maps[-1])
        logits = _resize(logits, pixel_values.shape[2:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels, ignore_index=self.config.semantic_loss_ignore_index)
        output = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
