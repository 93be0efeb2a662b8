"""A finished segmentation model, from the Hub or a folder, with one message for what can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ADAPTER_CONFIG_NAME, find_adapter_config_file, logging

from deft_hf.models.families import FAMILIES, SegmentationFamily, refuse
from deft_hf.models.own import OWN as OWN  # so that the Auto classes know them
from deft_hf.utils.errors import UserError, first_line

# What `from_pretrained` raises at files that are missing, damaged, or pickles of more than tensors.
UNREADABLE = (
    OSError, EOFError, SafetensorError, UnpicklingError, StrictDataclassError, ValueError, RuntimeError, LookupError,
    TypeError, AttributeError, ArithmeticError,
)  # fmt: skip
_AUTO_CLASSES = ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation")


def read_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model; code of its repository is run only if that is asked for, and never after a question.

    Args:
        name (`str`):
            A Hub name or a folder.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run the repository's Python code. Of the Hub, a revision must be named, which the code is taken from.

    Raises:
        UserError: If the model needs code that is not trusted, or the code is trusted without saying which; or there
            are adapters beside it.
        OSError, ValueError: If the config cannot be read.
    """
    refuse_adapters(name, revision)
    stored, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
    refuse_kernels(name, stored)
    code = stored.get("auto_map")
    files = sorted({str(place) for place in code.values()}) if isinstance(code, dict) else []
    if trust_remote_code and files:
        if revision is None and not Path(name).is_dir():
            raise UserError(
                f"{name}: trust_remote_code needs the revision whose code you have read; name the commit "
                "(--revision, model.revision)."
            )
        if elsewhere := [place for place in files if "--" in place]:
            raise UserError(
                f"{name}: its code lies in another repository ({elsewhere[0]}), of which no revision is named; it is "
                "not run. Copy model and code into one folder."
            )
    elif files and stored.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{name} is a model that only Python code of its own repository can open ({', '.join(files)}), and that "
            "code is not run. If you have read it and trust it: --trust-remote-code with --revision COMMIT "
            "(in a recipe, model.trust_remote_code: true and model.revision)."
        )
    return AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)


def refuse_adapters(name: str, revision: str | None = None) -> None:
    """Refuses a model that has adapters of peft beside it.

    Args:
        name (`str`):
            A Hub name or a folder.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.

    Raises:
        UserError: It has.
    """
    if find_adapter_config_file(name, revision=revision or "main") is not None:
        raise UserError(
            f"{name} holds adapters of peft ({ADAPTER_CONFIG_NAME}), which transformers puts into it where peft is "
            "installed and leaves out where it is not: merge them (model.merge_and_unload(), then save_pretrained "
            f"into another folder), or remove {ADAPTER_CONFIG_NAME}."
        )


def refuse_kernels(name: str, stored: Any) -> None:
    """Refuses a stored config that asks for compiled code of the Hub.

    Args:
        name (`str`):
            A Hub name or a folder, for the message.
        stored (`Any`):
            What its config.json holds.

    Raises:
        UserError: It names a repository of kernels.
    """
    if kernel := next(_kernels(stored), None):
        raise UserError(
            f"{name}: its config.json asks for compiled code of the Hub ({kernel}), which is not run. Remove "
            "attn_implementation from it."
        )


def _kernels(stored: Any) -> Iterator[str]:
    """Repositories of kernels that a stored config names at any depth: transformers would download and run them."""
    for key, value in stored.items() if isinstance(stored, dict) else ():
        if str(key).endswith(("attn_implementation", "experts_implementation")):
            named = value.values() if isinstance(value, dict) else [value]
            yield from (each for each in named if isinstance(each, str) and "/" in each)
        yield from _kernels(value)


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
    if own := [key for key in _AUTO_CLASSES if key in (getattr(config, "auto_map", None) or {})]:
        return getattr(transformers, own[0])  # of a repository whose code is trusted, or `read_config` would stop
    raise UserError(
        f"a {config.model_type} model is no semantic segmentation model of transformers. Known types: "
        f"{', '.join(sorted(FAMILIES))}; others that AutoModelForSemanticSegmentation or "
        "AutoModelForUniversalSegmentation opens."
    )


def open_model(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """A finished segmentation model, in float32 and eval mode.

    Args:
        name (`str` or `Path`):
            A Hub name or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code of the repository, see `read_config`. Without it, none is ever run.

    Returns:
        `PreTrainedModel`: the model, all of its weights read from the files.

    Raises:
        UserError: If it cannot be read, is no segmentation model, or lacks weights.
    """
    name = str(Path(name).expanduser())
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is said below
    try:
        config = read_config(name, revision, trust_remote_code)
        model, keys = auto_class(config).from_pretrained(
            name,
            revision=revision or "main",
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(unreadable(name, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    lost = sorted({*keys["missing_keys"], *(str(key) for key in keys["mismatched_keys"])})
    if lost:
        raise UserError(
            f"{name} lacks {len(lost)} tensors of a {type(model).__name__}, {lost[0]} first: it is no finished "
            "segmentation model. Fine-tune it first, or give one that was."
        )
    if wrong := next((key for key, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise UserError(f"{name} has weights that are NaN or infinite, {wrong} first: it cannot tell classes apart.")
    return model.eval()


def inference_family(model: PreTrainedModel) -> SegmentationFamily:
    """How semantic logits come out of a model; for a type that is not in the table, they are its `logits`.

    Raises:
        UserError: If the outputs are masks and the model type is not in the table.
    """
    model_type = model.config.model_type
    per_pixel = type(model.config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING or _AUTO_CLASSES[0] in (
        getattr(model.config, "auto_map", None) or {}
    )
    if model_type not in FAMILIES and not per_pixel:
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
    if isinstance(error, UnpicklingError):
        return (
            f"{name} has weights in a pickle that holds more than tensors; nothing of it was run. Give a folder with "
            "config.json and model.safetensors."
        )
    return (
        f"{name} cannot be read ({first_line(error)}). Give a Hub name that can be reached, or a folder with "
        "config.json and model.safetensors."
    )
