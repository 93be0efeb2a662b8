"""What a report of a bug needs: versions, devices and settings."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import default_config_file
from huggingface_hub import get_token

import deft_hf.utils.errors
from deft_hf.publish.card import shareable
from deft_hf.publish.push import without_token
from deft_hf.runs.provenance import git_state, hardware, versions

_FURTHER = (
    "huggingface_hub",
    "safetensors",
    "hf_xet",
    "peft",
    "deepspeed",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
)
_VARIABLES = (
    "ACCELERATE_",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "HF_HUB_",
    "LOCAL_RANK",
    "NCCL_",
    "OMP_NUM_THREADS",
    "PYTORCH_",
    "RANK",
    "TORCH_",
    "TRANSFORMERS_OFFLINE",
    "WORLD_SIZE",
)


def environment() -> dict[str, Any]:
    """Versions, devices, git state and settings; folders are cut to their last name, tokens left out."""
    return {
        "versions": {**versions(), **{name: found for name in _FURTHER if (found := _version(name))}},
        "platform": platform.platform(),
        "hardware": hardware(),
        "devices": _devices(),
        "distributed": {
            "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
            "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
        },
        "git": git_state(Path(deft_hf.utils.errors.__file__).parent),
        "hub_token": "set" if get_token() else "not set",
        "accelerate_config": _accelerate_config(),
        "variables": {name: _clean(os.environ[name]) for name in sorted(os.environ) if name.startswith(_VARIABLES)},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        {
            "name": device.name,
            "gib": round(device.total_memory / 2**30, 1),
            "capability": f"{device.major}.{device.minor}",
        }
        for device in found
    ]


def _accelerate_config() -> Any:
    path = Path(default_config_file)
    try:
        return yaml.safe_load(_clean(path.read_text("utf-8")))
    except OSError:
        return None
    except yaml.YAMLError:
        return "cannot be read"


def _clean(text: str) -> str:
    return shareable(without_token(text))
