"""Any segmentation model, from the Hub or a folder, with one message for what can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from deft_hf.models.families import FAMILIES, SegmentationFamily
from deft_hf.utils.errors import UserError


def auto_class(config: PreTrainedConfig) -> type:
    """The Auto class that opens a segmentation model of this kind.

    Raises:
        UserError: it is no segmentation model.
    """
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return AutoModelForSemanticSegmentation
    if type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        return AutoModelForUniversalSegmentation
    raise UserError(
        f"a {config.model_type} model is no semantic segmentation model of transformers: give one that "
        "AutoModelForSemanticSegmentation or AutoModelForUniversalSegmentation opens."
    )


def open_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """A trained segmentation model, in float32 and eval mode; code of the repository is never run.

    Raises:
        UserError: it cannot be read, is no segmentation model, or lacks weights.
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


def open_processor(name: str, revision: str | None = None) -> BaseImageProcessor:
    """The image processor of a model.

    Raises:
        UserError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(str(Path(name).expanduser()), revision=revision or "main")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{name} has no image processor that opens here ({first_line(error)}): put its preprocessor_config.json "
            "there."
        ) from error


def inference_family(model: PreTrainedModel) -> SegmentationFamily:
    """How semantic logits come out of a model; for a type that is not in the table, they are its `logits`.

    Raises:
        UserError: its outputs are masks, of a type that is not in the table.
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


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
