"""A finished segmentation model, from the Hub or a folder, with one message for what can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from deft_hf.models.families import FAMILIES, SegmentationFamily, refuse
from deft_hf.utils.errors import UserError, first_line


def auto_class(config: PreTrainedConfig) -> type[Any]:
    """The Auto class of transformers whose `from_pretrained` opens a segmentation model with `config`.

    Raises:
        UserError: If it is no segmentation model, or of a type that deft_hf does not support.
    """
    refuse(config.model_type)
    if config.model_type in FAMILIES:
        return getattr(transformers, FAMILIES[config.model_type].objective.auto_class)
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return transformers.AutoModelForSemanticSegmentation
    if type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return transformers.AutoModelForUniversalSegmentation
    raise UserError(
        f"a {config.model_type} model is no semantic segmentation model of transformers. Known types: "
        f"{', '.join(sorted(FAMILIES))}; others that AutoModelForSemanticSegmentation or "
        "AutoModelForUniversalSegmentation opens."
    )


def open_model(name: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A finished segmentation model, in float32 and eval mode; code of the repository is never run.

    Args:
        name (`str` or `Path`):
            A Hub name or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `PreTrainedModel`: the model, all of its weights read from the files.

    Raises:
        UserError: If it cannot be read, is no segmentation model, or lacks weights.
    """
    name = str(Path(name).expanduser())
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is said below
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
        model, keys = auto_class(config).from_pretrained(
            name, revision=revision or "main", dtype=torch.float32, output_loading_info=True
        )
    except UserError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(unreadable(name, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    lost = sorted({*keys["missing_keys"], *(str(key) for key in keys["mismatched_keys"])})
    if lost:
        raise UserError(
            f"{name} lacks {len(lost)} tensors of a {type(model).__name__}, {lost[0]} first: it is no finished "
            "segmentation model. Fine-tune it first, or give one that was."
        )
    return model.eval()


def inference_family(model: PreTrainedModel) -> SegmentationFamily:
    """How semantic logits come out of a model; for a type that is not in the table, they are its `logits`.

    Raises:
        UserError: If the outputs are masks and the model type is not in the table.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES and type(model.config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        raise UserError(
            f"deft_hf does not know how a {model_type} model's masks become classes of pixels. Known types: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES.get(model_type, SegmentationFamily(encoder=""))


def unreadable(name: str, error: Exception) -> str:
    """Why a model cannot be read and what to do, in one message."""
    link: Any = error
    while link is not None and not isinstance(link, GatedRepoError):
        link = link.__cause__ or link.__context__
    if link is not None:
        return (
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in (hf auth login, or "
            "HF_TOKEN) with the account that did."
        )
    return (
        f"{name} cannot be read ({first_line(error)}). Give a Hub name that can be reached, or a folder with "
        "config.json and model.safetensors."
    )
