"""A pretrained backbone under a newly initialized segmentation head.

The models are transformers' own (`backbone_config`), or of one file that is saved beside the weights, so that exports
load without deft_hf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from deft_hf.data.labels import LabelSpace
from deft_hf.models.heads import ANY_NUMBER, HEADS
from deft_hf.models.new_tensors import summary
from deft_hf.models.opening import refuse_adapters, refuse_kernels
from deft_hf.models.timm_backbones import check_timm, load_timm_backbone, timm_config
from deft_hf.models.torchvision_resnets import load_resnet, resnet_config
from deft_hf.utils.errors import UserError

_TIMM, _TIMM_FILE = "timm_backbone", "timm_wrapper"
_STRIDES = ("feature_strides", "common_stride")


def under_head(
    name: str,
    head: str,
    labels: LabelSpace,
    revision: str | None = None,
    changes: Mapping[str, Any] | None = None,
    head_changes: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """The backbone of a checkpoint under a newly initialized head for the classes.

    The head reads four feature maps unless `changes` says otherwise: of a hierarchical backbone those of its last four
    stages, of a ViT those after each quarter of its blocks. A ViT has one resolution, that of its patches. UperNet and
    Mask2Former use it directly and predict at that stride (Mask2Former with one map as the level that masks are
    read from, three in its deformable attention), while DPT makes a pyramid from 4 times to half the resolution, as
    BEiT's own neck does (`add_fpn`, on by default here). The auxiliary head, which is not trained, is left out.
    DeepLabV3+ takes ResNets alone, dilates the last stages, and reads the first map and the last.

    Args:
        name (`str`):
            A Hub name or a folder of a backbone, or of a whole model of its type (a classifier, say).
        head (`str`):
            Name of a head in `HEADS`.
        labels (`LabelSpace`):
            Classes to predict.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        changes (`Mapping[str, Any]`, *optional*):
            Fields of the backbone's config to override, such as `out_indices`.
        head_changes (`Mapping[str, Any]`, *optional*):
            Fields of the head's config to override, such as `hidden_size`.

    Returns:
        `tuple[PreTrainedModel, list[str]]`: The model in float32, and the names of its tensors that the checkpoint did
        not have.

    Raises:
        UserError: If the type has no backbone class, the head cannot take it, a field is unknown, or the checkpoint
            lacks tensors of the backbone.
        OSError, ValueError: If `from_pretrained` cannot read the checkpoint.
    """
    spec, revision = HEADS[head], revision or "main"
    config = backbone_config(name, head, revision, changes or {})
    with torch.random.fork_rng(devices=[]):  # so that later draws do not depend on how many tensors are missing
        backbone, added = _load_backbone(name, config, revision)
    if spec.reads_tokens:
        _check_tokens(backbone)
    model = spec.model_class(head_config(head, backbone.config, labels, head_changes or {})).float()
    model.get_submodule(spec.backbone).load_state_dict(backbone.state_dict())
    pretrained = {f"{spec.backbone}.{key}" for key in backbone.state_dict() if key not in added}
    return model, [key for key in model.state_dict() if key not in pretrained]


def backbone_config(name: str, head: str, revision: str, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """The backbone's config with the features that the head reads; see `under_head`."""
    refuse_adapters(name, revision)
    stored, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    refuse_kernels(name, stored)
    model_type = stored.get("model_type")
    if model_type == _TIMM_FILE and HEADS[head].only == "resnet":
        config: PreTrainedConfig = resnet_config(name, stored)
    elif model_type == _TIMM_FILE:
        config = timm_config(name, stored)
    elif model_type in CONFIG_MAPPING and model_type in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        if model_type == _TIMM:
            check_timm(name)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    else:
        known = ", ".join(sorted({*MODEL_FOR_BACKBONE_MAPPING_NAMES} - {_TIMM}))
        raise UserError(
            f"model.backbone: {name} is of type {model_type}, of which transformers has no backbone class. "
            f"Types that have one: {known}; timm's models too. A whole segmentation model is a model.checkpoint."
        )
    _check_fields(config, changes, "model.config")
    fields = dict(changes)
    if is_vit(config):
        if hasattr(config, "reshape_hidden_states"):
            fields.setdefault("reshape_hidden_states", not HEADS[head].reads_tokens)
        if hasattr(config, "add_fpn"):
            fields.setdefault("add_fpn", not HEADS[head].reads_tokens)
    stages = {"out_indices", "out_features", "stage_names"}
    kept = {key: value for key, value in config.to_dict().items() if key not in stages}
    try:
        if config.model_type != _TIMM and not changes.keys() & stages:
            # After the other changes, and before BEiT's neck, which needs to know its four features.
            plain = {"add_fpn": False} if "add_fpn" in fields else {}
            fields["out_indices"] = _default_features(type(config).from_dict(kept | fields | plain))
        config = type(config).from_dict(
            {**config.to_dict(), **fields} if config.model_type == _TIMM else kept | fields
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"model.config: {error}") from error
    _check_features(config, head)
    if HEADS[head].reads_tokens and not hasattr(config, "num_register_tokens"):
        config.num_register_tokens = 0  # the head reads it
    return config


def head_config(
    head: str, backbone: PreTrainedConfig, labels: LabelSpace, changes: Mapping[str, Any]
) -> PreTrainedConfig:
    """The whole model's config; see `under_head`."""
    spec = HEADS[head]
    own: dict[str, Any] = {"num_labels": labels.num_labels, "id2label": labels.id2label, "label2id": labels.label2id}
    if head == "upernet":
        own["use_auxiliary_head"] = False
    if head == "mask2former" and is_vit(backbone) and not getattr(backbone, "add_fpn", False):
        # The decoder takes from these only how many of the maps are levels above the deformable attention's three:
        # log2(feature_strides / common_stride), one.
        own |= {"feature_strides": [backbone.patch_size] * 4, "common_stride": backbone.patch_size // 2}
    defaults = spec.config_class(backbone_config=backbone)
    _check_fields(defaults, changes, "model.head_config")
    if taken := sorted({*own, "backbone_config"} & {*changes} - {"use_auxiliary_head", *_STRIDES}):
        raise UserError(f"model.head_config.{taken[0]}: it follows from data.labels and model.backbone; take it out.")
    try:
        return spec.config_class(backbone_config=backbone, **own | dict(changes))
    except (ValueError, TypeError) as error:
        raise UserError(f"model.head_config: {error}") from error


def is_vit(config: PreTrainedConfig) -> bool:
    """Whether a backbone has a single resolution: each stage is a block, and all have the same width."""
    stages = getattr(config, "stage_names", None) or []
    return (
        isinstance(getattr(config, "patch_size", None), int)
        and len(stages) == 1 + getattr(config, "num_hidden_layers", -1)
        and isinstance(getattr(config, "hidden_size", None), int)
        and not hasattr(config, "depths")
    )


def _default_features(config: PreTrainedConfig) -> list[int]:
    last = len(config.stage_names) - 1
    if not is_vit(config):
        return list(range(max(last - 3, 0), last + 1))
    return [max(1, round(last * quarter / 4)) for quarter in (1, 2, 3, 4)]


def _check_features(config: PreTrainedConfig, head: str) -> None:
    indices, levels, only = list(config.out_indices), HEADS[head].levels, HEADS[head].only
    if only is not None and config.model_type != only:
        raise UserError(f"model.head: {head} takes backbones of type {only} alone, found {config.model_type}.")
    stages = getattr(config, "stage_names", None) or []  # timm's are known once the model is built
    if len(indices) not in levels:
        last = f" to {levels[-1]}" if levels[-1] < ANY_NUMBER else " or more"
        many = f"{levels[0]}" if len(levels) == 1 else f"{levels[0]}{last}"
        raise UserError(f"model.config.out_indices: found {indices}, but the head {head} reads {many} feature maps.")
    if HEADS[head].reads_tokens and not is_vit(config):
        raise UserError(
            f"model.head: {head} is for backbones of one resolution (ViT, DINOv2), {config.model_type} has several; "
            "take upernet."
        )
    if stages and indices[-1] % len(stages) != len(stages) - 1:
        raise UserError(
            f"model.config.out_indices: found {indices}, of {len(stages)} stages from 0. What comes after "
            "the last would never be trained: name the last stage too, or shorten the backbone (num_hidden_layers)."
        )


@torch.no_grad()
def _check_tokens(backbone: PreTrainedModel) -> None:
    """Check that the backbone returns the class token next to the patch tokens, since DPT reads it."""
    config = backbone.config
    tokens = backbone.eval()(torch.zeros(1, 3, *[4 * config.patch_size] * 2)).feature_maps[0]
    if tokens.shape[1:] != (1 + config.num_register_tokens + 16, config.hidden_size):
        raise UserError(
            f"model.head: dpt reads the class token, which the backbone of type {config.model_type} does not hand "
            "out; take upernet."
        )


def _check_fields(config: PreTrainedConfig, changes: Mapping[str, Any], key: str) -> None:
    known = config.to_dict()
    if unknown := [field for field in changes if field not in known]:
        raise UserError(
            f"{key}.{unknown[0]}: a {config.model_type} config has no such field; it has {', '.join(sorted(known))}."
        )


def _load_backbone(name: str, config: PreTrainedConfig, revision: str) -> tuple[PreTrainedModel, set[str]]:
    """The backbone, and the names of its tensors that are new because no plain model of its type has them."""
    if isinstance(config, TimmBackboneConfig):
        return load_timm_backbone(name, config, revision), set()
    if PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type") == _TIMM_FILE:
        return load_resnet(name, config, revision), set()
    # The concrete class: `AutoBackbone.from_pretrained` asks the Hub, for a folder too.
    cls: Any = getattr(transformers, MODEL_FOR_BACKBONE_MAPPING_NAMES[config.model_type])
    backbone, keys = cls.from_pretrained(
        name,
        config=config,
        revision=revision,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    new = {*keys["missing_keys"], *(key for key, *_ in keys["mismatched_keys"])}
    plain = _plain_names(config)
    prefix = f"{cls.base_model_prefix}."
    # A norm per feature map, a neck: what a backbone has beyond the model that was pretrained.
    added = {key for key in new if not plain & {key, key.removeprefix(prefix)}}
    lost = [key for key in backbone.state_dict() if key in new - added and not key.endswith("mask_token")]
    if lost:
        raise UserError(
            f"model.backbone: {name} lacks {summary(lost, backbone.state_dict())} of a {cls.__name__}, or has other "
            "sizes: there would be nothing to retain. Give a checkpoint of the same architecture."
        )
    return backbone, new


def _plain_names(config: PreTrainedConfig) -> set[str]:
    with torch.device("meta"):
        plain: nn.Module = AutoModel.from_config(config)
    return set(plain.state_dict())
