"""timm's models as backbones: their config, their pixels' mean and deviation, and their weights, all of them checked.

A timm model is stored in one of three layouts: timm's own (`conv1.weight`), that of transformers' wrapper
(`timm_model.conv1.weight`), or that of transformers' backbone class (`_backbone.conv1.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, TimmBackboneConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    is_timm_available,
)
from transformers.utils.hub import get_checkpoint_shard_files

from deft_hf.models.new_tensors import summary
from deft_hf.utils.errors import UserError, first_line

_WRAPPED, _BACKBONE = "timm_model.", "_backbone."


def timm_config(name: str, stored: Mapping[str, Any]) -> TimmBackboneConfig:
    """The config of a timm model as a backbone that gives its last four feature maps.

    Args:
        name (`str`):
            A Hub name or a folder, for messages.
        stored (`Mapping[str, Any]`):
            What its `config.json` holds, in timm's layout or that of transformers' wrapper.

    Raises:
        UserError: If timm is not installed, does not know the architecture, or has it for one image size alone.
    """
    check_timm(name)
    import timm

    architecture = stored.get("architecture")
    try:
        with torch.device("meta"):
            stages = timm.create_model(architecture, features_only=True).feature_info.info
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"model.backbone: {name} is of timm's architecture {architecture!r}, which gives no feature maps in "
            f"timm {timm.__version__} ({first_line(error)})."
        ) from error
    if len({stage["reduction"] for stage in stages}) == 1:
        raise UserError(
            f"model.backbone: {name} is a ViT, which timm ties to one image size; take it from transformers (DINOv2, "
            "DINOv3), or a timm model with several resolutions."
        )
    last_four = list(range(max(len(stages) - 4, 0), len(stages)))
    # It takes the argument by its keywords, of which its annotations do not know.
    return TimmBackboneConfig(backbone=architecture, out_indices=last_four)  # type: ignore[call-arg]


def check_timm(name: str) -> None:
    """Check that timm is installed.

    Raises:
        UserError: If it is not.
    """
    if not is_timm_available():
        raise UserError(
            f"model.backbone: {name} is a model of timm, which is not installed: pip install timm, and the "
            "torchvision that goes with torch."
        )


def load_timm_backbone(name: str, config: TimmBackboneConfig, revision: str) -> PreTrainedModel:
    """A timm backbone with the weights of a checkpoint, each of its tensors compared with what the file holds.

    Args:
        name (`str`):
            A Hub name or a folder.
        config (`TimmBackboneConfig`):
            Of the backbone.
        revision (`str`):
            Branch, tag or commit on the Hub.

    Raises:
        UserError: If the checkpoint has no weights, or lacks tensors of the backbone.
        OSError: If it cannot be read.
    """
    import timm
    from transformers import TimmBackbone

    stored = stored_tensors(name, revision)
    backbone = TimmBackbone(config)
    body: Any = backbone._backbone
    try:
        if any(key.startswith(_BACKBONE) for key in stored):
            body.load_state_dict({key.removeprefix(_BACKBONE): value for key, value in stored.items()}, strict=False)
        else:
            # Not through the backbone class, which sets BatchNorm's statistics back after timm has read them.
            read = timm.create_model(
                config.backbone,
                pretrained=True,
                pretrained_cfg_overlay={
                    "state_dict": {key.removeprefix(_WRAPPED): value for key, value in stored.items()}
                },
                features_only=True,
                in_chans=config.num_channels,
                out_indices=config.out_indices,
                output_stride=config.output_stride,
            )
            body.load_state_dict(read.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"model.backbone: the weights of {name} do not fit timm's {config.backbone} ({first_line(error)})."
        ) from error
    if lost := _not_stored(body.state_dict(), stored):
        raise UserError(
            f"model.backbone: {name} lacks {len(lost)} of {len(body.state_dict())} tensors of timm's "
            f"{config.backbone}: {summary(lost, body.state_dict())}. There would be nothing to retain; give a "
            f"checkpoint of the same architecture. The first tensors that it holds: {', '.join(list(stored)[:3])}."
        )
    return backbone


def stored_tensors(name: str, revision: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by the names that its files have.

    Args:
        name (`str`):
            A Hub name or a folder.
        revision (`str`):
            Branch, tag or commit on the Hub.

    Raises:
        UserError: If it has no weights.
        OSError: If they cannot be read.
    """
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if file := _found(name, single, revision):
            return _read(file)
        if shards := _found(name, index, revision):
            files, _ = get_checkpoint_shard_files(name, shards, revision=revision)
            return {key: value for file in files for key, value in _read(file).items()}
    raise UserError(f"model.backbone: {name} has no {SAFE_WEIGHTS_NAME}.")


def _found(name: str, file: str, revision: str) -> str | None:
    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)


def _read(file: str) -> dict[str, Tensor]:
    if file.endswith(".safetensors"):
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)  # a pickle: nothing but tensors is read of it


def _not_stored(tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors whose values the file does not hold under any name: timm renames and reshapes some."""
    by_size: dict[int, list[Tensor]] = {}
    for value in stored.values():
        by_size.setdefault(value.numel(), []).append(value.flatten())
    return [
        name
        for name, value in tensors.items()
        if value.is_floating_point()
        and not any(torch.equal(value.flatten(), other.to(value.dtype)) for other in by_size.get(value.numel(), ()))
    ]
