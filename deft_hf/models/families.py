"""What deft_hf knows about architectures, in one table: where the encoder ends, and how logits and loss are computed.

Nothing else in the project asks which architecture a model has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.models.masks import MaskClassification, layer_outputs, semantic_task, semantic_task_tokenizer
from deft_hf.models.objectives import Batch, Objective, PerPixel
from deft_hf.utils.errors import UserError

__all__ = [
    "FAMILIES",
    "IGNORE_INDEX",
    "SegmentationFamily",
    "fixed_size",
    "objective_of",
    "patch_size",
    "refuse",
    "resolve_family",
    "seen_multiple",
    "untouched_parameters",
]


@dataclass(frozen=True)
class SegmentationFamily:
    """Where one architecture's encoder is, and how it is trained and read.

    Args:
        encoder (`str`):
            Dotted path of the encoder; every parameter outside it belongs to the decoder.
        never_trained (`tuple[str, ...]`, *optional*, defaults to `()`):
            Patterns (`fnmatch`) of parameters that no gradient reaches, such as an auxiliary head that the method does
            not use or a last norm that the decoder does not read. They are frozen.
        blocks (`str`, *optional*):
            Dotted path of the encoder's transformer blocks where the decoder reads only those up to the last of
            `config.out_indices`; the blocks after it are never trained either.
        objective (`Objective`, *optional*, defaults to `PerPixel()`):
            How the loss and the logits are computed.
        config (`Mapping[str, Any]`, *optional*, defaults to `{}`):
            Values that fields of the model's config must have.
        also (`tuple[str, ...]`, *optional*, defaults to `()`):
            Dotted paths of further modules that belong to the encoder.
        side (`str`, *optional*):
            Field of the config that holds the side of the images, in pixels, for models that accept only square images
            of one size.
        processor (`str`, *optional*, defaults to `"SegformerImageProcessorPil"`):
            Class of transformers that exports get as their image processor. It must be able to prepare images as
            evaluation does; its post-processing is what `pipeline("image-segmentation")` calls.
        tokenizer (`Callable[[], PreTrainedTokenizerFast]`, *optional*):
            Makes the tokenizer that the pipeline needs beside the processor.
        frozen (`frozenset[str]`, *optional*):
            Names of parameters that the caller froze.
    """

    encoder: str
    never_trained: tuple[str, ...] = ()
    blocks: str | None = None
    objective: Objective = PerPixel()
    config: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    side: str | None = None
    processor: str = "SegformerImageProcessorPil"
    tokenizer: Callable[[], Any] | None = None
    frozen: frozenset[str] = frozenset()

    @property
    def encoders(self) -> tuple[str, ...]:
        """Dotted paths of all submodules that make up the encoder."""
        return (self.encoder, *self.also)

    def semantic_logits(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """Raw semantic logits (N, C, h, w) of `model` for `pixel_values` (N, 3, H, W)."""
        return self.objective.logits(self.objective.forward(model, pixel_values))

    def part_of(self, name: str) -> str:
        """`"encoder"` or `"decoder"`: the part that the parameter or buffer `name` belongs to."""
        return "encoder" if name.startswith(tuple(f"{path}." for path in self.encoders)) else "decoder"

    def is_trained(self, name: str) -> bool:
        """Whether a gradient can reach the parameter `name`."""
        return name not in self.frozen and not any(fnmatchcase(name, pattern) for pattern in self.never_trained)

    def without_frozen(self, model: nn.Module) -> SegmentationFamily:
        """Itself, or with what the caller of `model` froze (`requires_grad_(False)`), which stays as it is."""
        frozen = frozenset(n for n, p in model.named_parameters() if not p.requires_grad and self.is_trained(n))
        return replace(self, frozen=self.frozen | frozen) if frozen else self


def _unread(backbone: str) -> tuple[str, ...]:
    """Patterns of parameters of transformers' backbone classes that a head does not read.

    These are tokens for masked images, and the last norms of models whose backbone class has a norm per feature map.
    """
    unread = ("*embeddings.mask_token", "swin.layernorm.*", "model.layernorm.*", "bit.norm.*")
    return tuple(f"{backbone}.{name}" for name in unread)


_PIXEL_ENCODER = "model.pixel_level_module.encoder"

FAMILIES: dict[str, SegmentationFamily] = {
    "beit": SegmentationFamily("beit", ("auxiliary_head.*",), blocks="beit.layers", processor="BeitImageProcessorPil"),
    "data2vec-vision": SegmentationFamily(
        "data2vec_vision",
        ("auxiliary_head.*",),
        blocks="data2vec_vision.encoder.layer",
        processor="BeitImageProcessorPil",
    ),
    "deeplabv3plus": SegmentationFamily("backbone"),
    "dpt": SegmentationFamily(
        "dpt",
        ("auxiliary_head.*", "dpt.layernorm.*", "neck.fusion_stage.layers.0.residual_layer1.*"),
        processor="DPTImageProcessorPil",
    ),
    # No encoder and decoder, as queries go through the last blocks together with the patches: what is pretrained
    # against queries, upscaling and heads is a split of our own (benchmarks/eomt_split.py).
    # Its own image processor keeps the aspect ratio of an image, or its post-processing fails; MaskFormer's serves the
    # same outputs.
    "eomt": SegmentationFamily(
        "layers",
        objective=MaskClassification(),
        also=("embeddings", "layernorm"),
        side="image_size",
        processor="MaskFormerImageProcessorPil",
    ),
    "eomt_dinov3": SegmentationFamily(
        "layers",
        objective=MaskClassification(),
        also=("embeddings", "layernorm"),
        side="image_size",
        processor="MaskFormerImageProcessorPil",
    ),
    "mask2former": SegmentationFamily(
        _PIXEL_ENCODER,
        _unread(_PIXEL_ENCODER),
        objective=MaskClassification(),
        processor="Mask2FormerImageProcessorPil",
    ),
    "maskformer": SegmentationFamily(
        _PIXEL_ENCODER,
        _unread(_PIXEL_ENCODER),
        objective=MaskClassification("decoder_config.num_queries", layer_outputs),
        processor="MaskFormerImageProcessorPil",
    ),
    "mobilenet_v2": SegmentationFamily(
        "mobilenet_v2", ("mobilenet_v2.conv_1x1.*",), processor="MobileNetV2ImageProcessorPil"
    ),
    # Their own image processor does not normalize.
    "mobilevit": SegmentationFamily("mobilevit"),
    "mobilevitv2": SegmentationFamily("mobilevitv2"),
    "oneformer": SegmentationFamily(
        _PIXEL_ENCODER,
        (*_unread(_PIXEL_ENCODER), "criterion.logit_scale"),
        objective=MaskClassification(inputs=semantic_task),
        # Its text branch serves a loss between the images of a batch, and `is_training` switches dropout on for good.
        config={"is_training": False},
        processor="OneFormerImageProcessorPil",
        tokenizer=semantic_task_tokenizer,
    ),
    # Theirs need torchvision.
    "sapiens2": SegmentationFamily("model"),
    "segformer": SegmentationFamily("segformer"),
    "tipsv2_dpt": SegmentationFamily("backbone", _unread("backbone")),
    "upernet": SegmentationFamily("backbone", ("auxiliary_head.*", *_unread("backbone"))),
}


# What no encoder can be named for.
REFUSED = {"videomt": "it takes videos, and deft_hf trains on single images"}


def objective_of(model_type: str) -> Objective:
    """The objective of a model type; of one that the table does not know, per pixel."""
    return FAMILIES[model_type].objective if model_type in FAMILIES else PerPixel()


def fixed_size(config: Any) -> tuple[int, int] | None:
    """Height and width of the only images that a model with `config` takes; None where they may have any size."""
    family = FAMILIES.get(config.model_type)
    return None if family is None or family.side is None else (getattr(config, family.side),) * 2


def patch_size(config: Any) -> int:
    """What the sides of images must be multiples of for a model to see all of them: a plain ViT's patch, else 1.

    Args:
        config (`PreTrainedConfig`):
            Of a whole model or of a backbone.
    """
    encoder = getattr(config, "backbone_config", None) or config
    sizes = [getattr(encoder, name, None) for name in ("patch_size", "hidden_size", "num_hidden_layers")]
    plain = all(isinstance(size, int) for size in sizes) and not hasattr(encoder, "depths")
    return encoder.patch_size if plain else 1


def seen_multiple(model: nn.Module, encoder: str) -> int:
    """What the sides of images must be multiples of for each pixel to be in a patch.

    As `patch_size`; besides that of ConvNeXt, which pads nothing, and of timm's models, whose configs do not tell it
    and whose first convolution does.

    Args:
        model (`nn.Module`):
            A segmentation model.
        encoder (`str`):
            Path of its encoder.
    """
    config = getattr(model, "config", None)
    backbone: Any = getattr(config, "backbone_config", None)
    model_type = getattr(backbone, "model_type", None)
    if model_type in ("convnext", "convnextv2"):
        return backbone.patch_size
    if model_type != "timm_backbone":
        return patch_size(config)
    layers = model.get_submodule(encoder).modules()
    stem = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    patches = stem is not None and stem.kernel_size == stem.stride and stem.padding == (0, 0)
    return max(stem.stride) if stem is not None and patches else 1


def resolve_family(model: nn.Module, encoder: str | None = None) -> SegmentationFamily:
    """The family of `model`, looked up by `model.config.model_type`.

    Args:
        model (`nn.Module`):
            A Hugging Face segmentation model, or a plain PyTorch one with `encoder`.
        encoder (`str`, *optional*):
            Dotted path of the encoder, for a model that the table does not know, or to split a known one elsewhere.

    Raises:
        UserError: If the type is unknown and no `encoder` was given; the model has a config that it cannot be trained
            with; `encoder` is no submodule, or holds all parameters or none; encoder and decoder share a parameter.

    Example:

    ```python
    >>> from deft_hf import resolve_family
    >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation

    >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3))
    >>> family = resolve_family(model)
    >>> family.encoder
    'segformer'
    >>> family.part_of("decode_head.classifier.weight")
    'decoder'

    ```
    """
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    refuse(model_type)
    family = FAMILIES.get(model_type)
    if encoder is not None:
        family = replace(family, encoder=encoder, also=()) if family else SegmentationFamily(encoder)
    if family is None:
        raise UserError(
            f"model type {model_type!r} is unknown: name its encoder (`encoder=` in Python, `model.encoder` in a "
            "recipe). "
            f"Children of the model: {_children(model)}. Known types: {', '.join(sorted(FAMILIES))}."
        )
    for name, value in family.config.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{name} of this {model_type} model is {getattr(config, name)}, and deft_hf trains it with "
                f"{value}: load it with `{name}={value}`."
            )
    _check_split(model, family)
    if family.blocks is not None:
        # `out_indices` counts hidden states from 1, the embeddings first: index i is what block i - 2 (from 0) puts
        # out.
        blocks: Any = model.get_submodule(family.blocks)
        unread = range(max(config.out_indices) - 1, len(blocks))
        patterns = tuple(f"{family.blocks}.{index}.*" for index in unread)
        family = replace(family, never_trained=family.never_trained + patterns)
    return family


def refuse(model_type: str) -> None:
    """Stops at a model type that deft_hf will not train.

    Raises:
        UserError: If deft_hf does not support the model type.
    """
    if model_type in REFUSED:
        raise UserError(f"model type {model_type!r} is not supported: {REFUSED[model_type]}.")


def _check_split(model: nn.Module, family: SegmentationFamily) -> None:
    try:
        encoders = [model.get_submodule(path) for path in family.encoders]
    except AttributeError:
        raise UserError(f"encoder {family.encoder!r} is not in the model. Its children: {_children(model)}.") from None
    inside = {id(parameter) for encoder in encoders for parameter in encoder.parameters()}
    outside = {
        name: id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if family.part_of(name) == "decoder"
    }
    shared = [name for name, key in outside.items() if key in inside]
    if shared:
        raise UserError(f"encoder {family.encoder!r} shares {shared[0]!r} with the decoder: they cannot be decoupled.")
    if not inside or not outside:
        raise UserError(
            f"encoder {family.encoder!r} holds {'no' if not inside else 'every'} parameter of the model: "
            f"nothing to decouple. Children of the model: {_children(model)}."
        )


def _children(model: nn.Module) -> str:
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return ", ".join(f"{name} ({size:,} parameters)" for name, size in sizes.items()) or "none"


def untouched_parameters(model: nn.Module, family: SegmentationFamily, batch: Batch) -> list[str]:
    """Names of the parameters that get no gradient from a loss on `batch`, which `never_trained` must list.

    Gradients are cleared before and after.
    """
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        family.objective.loss(model, batch, family.objective.count(model, batch)).backward()
    names = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return names
