"""torchvision's ResNets, as timm keeps their weights on the Hub, in the classes and names of transformers.

Neither timm nor torchvision is needed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ResNetBackbone, ResNetConfig

from deft_hf.models.new_tensors import summary
from deft_hf.models.timm_backbones import stored_tensors
from deft_hf.utils.errors import UserError

_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": [2, 2, 2, 2], **_BASIC},
    "resnet34": {"depths": [3, 4, 6, 3], **_BASIC},
    "resnet50": {"depths": [3, 4, 6, 3]},
    "resnet101": {"depths": [3, 4, 23, 3]},
    "resnet152": {"depths": [3, 8, 36, 3]},
}


def resnet_config(name: str, stored: Mapping[str, Any]) -> ResNetConfig:
    """The config of a ResNet that is stored as a model of timm.

    Args:
        name (`str`):
            A Hub name or a folder, for the message.
        stored (`Mapping[str, Any]`):
            What its `config.json` holds.

    Raises:
        UserError: If it is no plain ResNet.
    """
    architecture = stored.get("architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"model.backbone: {name} is of timm's architecture {architecture!r}; of timm's, this head takes "
            f"{', '.join(ARCHITECTURES)}."
        )
    return ResNetConfig.from_dict(ARCHITECTURES[architecture])


def load_resnet(name: str, config: PreTrainedConfig, revision: str) -> PreTrainedModel:
    """The backbone with the weights of a checkpoint of timm.

    Args:
        name (`str`):
            A Hub name or a folder.
        config (`PreTrainedConfig`):
            Of the backbone.
        revision (`str`):
            Branch, tag or commit on the Hub.

    Raises:
        UserError: If tensors are missing or have other sizes.
        OSError: If it cannot be read.
    """
    backbone = ResNetBackbone(config).to(torch.float32)  # type: ignore[arg-type]  # transformers wraps it
    stored = {key.removeprefix("timm_model."): value for key, value in stored_tensors(name, revision).items()}
    tensors = backbone.state_dict()
    places = {key: _torchvision_name(key) for key in tensors}
    # A counter that older files do not have, and nothing reads.
    lost = [
        key
        for key, place in places.items()
        if not key.endswith("num_batches_tracked") and getattr(stored.get(place), "shape", None) != tensors[key].shape
    ]
    if lost:
        raise UserError(
            f"model.backbone: {name} lacks {summary(lost, tensors)} of its ResNet, or has other sizes: there would be "
            "nothing to retain. Give a checkpoint of the same architecture."
        )
    backbone.load_state_dict({key: stored.get(place, tensors[key]) for key, place in places.items()})
    return backbone


def _torchvision_name(name: str) -> str:
    words = name.split(".")
    norm, end = words[-2] == "normalization", words[-1]
    if words[0] == "embedder":
        return f"{'bn1' if norm else 'conv1'}.{end}"
    stage, block = int(words[2]) + 1, words[4]
    if words[5] == "shortcut":
        return f"layer{stage}.{block}.downsample.{int(norm)}.{end}"
    return f"layer{stage}.{block}.{'bn' if norm else 'conv'}{int(words[6]) + 1}.{end}"
