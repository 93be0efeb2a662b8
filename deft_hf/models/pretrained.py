"""A pretrained checkpoint or backbone, opened for training: checked, and with a head for the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessorPil,
    set_seed,
)
from transformers.utils import logging

from deft_hf.data.labels import LabelSpace
from deft_hf.data.sizes import EvalSize
from deft_hf.models.backbones import under_head
from deft_hf.models.embedded import resolved
from deft_hf.models.families import FAMILIES, fixed_size, patch_size, resolve_family
from deft_hf.models.new_tensors import draw_classifier, newly_made
from deft_hf.models.opening import UNREADABLE, auto_class, read_config, unreadable
from deft_hf.models.processor import segmentation_processor
from deft_hf.utils.errors import UserError, first_line

Size = tuple[int, int]


class Pretrained(NamedTuple):
    """What `open_pretrained` opens.

    Attributes:
        model (`PreTrainedModel`):
            Model in float32.
        processor (`BaseImageProcessor`):
            Image processor that the export will have.
        new (`list[str]`):
            Names of the tensors that were not in the checkpoint, in the model's order.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    new: list[str]


def open_pretrained(
    name: str,
    labels: LabelSpace,
    *,
    head: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config: Mapping[str, Any] | None = None,
    head_config: Mapping[str, Any] | None = None,
    encoder: str | None = None,
    channels_last: bool = False,
    crop_size: Size | None = None,
    image_size: Size | None = None,
    window: Size | None = None,
    seed: int = 42,
    eval_size: EvalSize = None,
) -> Pretrained:
    """A pretrained model with a head for the classes, ready to be trained.

    What the checkpoint does not hold, the head or its classifier, is drawn anew. Messages name the keys that a recipe
    has for the arguments.

    Args:
        name (`str`):
            A Hub name, a folder, or `embedded`: of a whole model, or of a backbone if there is a `head`.
        labels (`LabelSpace`):
            Classes to predict.
        head (`str`, *optional*):
            Head to put on the backbone, one of `deft_hf.models.backbones.HEADS`.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code of the repository, see `read_config`. Without it, none is ever run.
        config (`Mapping[str, Any]`, *optional*):
            Fields of the checkpoint's config to override.
        head_config (`Mapping[str, Any]`, *optional*):
            Fields of the head's config to override.
        encoder (`str`, *optional*):
            Dotted path of the encoder, for a model that `resolve_family` does not know.
        channels_last (`bool`, *optional*, defaults to `False`):
            Whether to keep the weights in the channels-last memory format.
        crop_size (`tuple[int, int]`, *optional*):
            Height and width of the training crops, in pixels.
        image_size (`tuple[int, int]`, *optional*):
            Height and width that images are resized to, in pixels; `None` keeps their size.
        window (`tuple[int, int]`, *optional*):
            Height and width of the sliding window used in evaluation, in pixels.
        seed (`int`, *optional*, defaults to `42`):
            Seed of newly initialized tensors; sets the global random states.
        eval_size (`EvalSize`, *optional*):
            What images are resized to in evaluation; by default `image_size`.

    Returns:
        `Pretrained`: model, processor, and the names of the new tensors.

    Raises:
        UserError: If the checkpoint cannot be read, is of an unknown type, lacks weights that it should have, or does
            not accept images of these sizes.
    """
    key = "model.checkpoint" if head is None else "model.backbone"
    place, where, config = resolved(name), f"{key}: {name}", config or {}
    set_seed(seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the names of new tensors are returned
    try:
        if head is not None:
            model, new = under_head(place, head, labels, revision, config, head_config)
            resolve_family(model)
        else:
            opened = read_config(place, revision, trust_remote_code)
            model, new = _with_classes(place, opened, labels, revision, config, encoder, where, trust_remote_code)
    except UserError:
        raise
    except (OSError, EOFError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{key}: {unreadable(name, error)}") from error
    except ValueError as error:
        raise UserError(
            f"{where} does not open as a semantic segmentation model "
            f"({first_line(error)}). Known types: {', '.join(sorted(FAMILIES))}."
        ) from error
    except Exception as error:
        if not (config or head_config) and isinstance(error, UNREADABLE):
            raise UserError(f"{key}: {unreadable(name, error)}") from error
        if not (config or head_config):
            raise
        changes = {"model.config": dict(config), "model.head_config": dict(head_config or {})}
        given = " and ".join(f"{where}: found {change}" for where, change in changes.items() if change)
        raise UserError(
            f"{given}, of which no model can be made ({first_line(error)}); correct it, or remove it"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_sizes(model.config, name, crop_size, image_size, window, eval_size)
    if channels_last:
        # transformers wraps `to` and loses `self`.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    # Who opens the export knows of no window.
    base, size = (
        _base_processor(place, revision, trust_remote_code),
        fixed_size(model.config) or eval_size or image_size,
    )
    processor = segmentation_processor(base, size, model.config.model_type)
    return Pretrained(model, processor, new)


def _with_classes(
    place: str,
    config: Any,
    labels: LabelSpace,
    revision: str | None,
    changes: Mapping[str, Any],
    encoder: str | None,
    where: str,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, list[str]]:
    _check_config(config, changes)
    needed = FAMILIES[config.model_type].config if config.model_type in FAMILIES else {}
    try:
        cls = auto_class(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    model, keys = cls.from_pretrained(
        place,
        revision=revision or "main",
        trust_remote_code=trust_remote_code,
        num_labels=labels.num_labels,
        id2label=labels.id2label,
        label2id=labels.label2id,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **{**needed, **changes},
    )
    new = newly_made(model, resolve_family(model, encoder), keys, config.num_labels, where)
    nameless = {index: f"LABEL_{index}" for index in range(config.num_labels)}
    if config.num_labels == labels.num_labels and config.id2label not in (labels.id2label, nameless):
        new = draw_classifier(model, new)
    return model, new


def _check_config(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    unknown = [key for key in changes if key not in config.to_dict()]
    if unknown:
        raise UserError(
            f"model.config.{unknown[0]}: a {config.model_type} config has no such field; it has "
            f"{', '.join(sorted(config.to_dict()))}."
        )


def _check_sizes(
    config: PreTrainedConfig,
    name: str,
    crop_size: Size | None,
    image_size: Size | None,
    window: Size | None,
    eval_size: EvalSize,
) -> None:
    channels = getattr(getattr(config, "backbone_config", None) or config, "num_channels", 3)
    if channels != 3:
        raise UserError(
            f"{name}: takes images of {channels} bands, but images are read with three, RGB; choose another model."
        )
    patch, only = patch_size(config), fixed_size(config)
    shown: dict[str, EvalSize] = {"image_size": image_size}
    if window or eval_size:
        shown = {"window": window} if window else {"eval_size": eval_size}
    for key, size in ({"crop_size": crop_size} | shown).items():
        if only is not None and (not isinstance(size, tuple) or size != only):
            raise UserError(
                f"data.{key}: found {size}, but {name} takes images of {only[0]} x {only[1]} alone: set "
                "data.crop_size to it, and data.window for larger images."
            )
        if isinstance(size, tuple) and any(length % patch for length in size):
            near = [max(1, round(length / patch)) * patch for length in size]
            raise UserError(
                f"data.{key}: found {list(size)}, but the encoder takes patches of {patch} x {patch} pixels and "
                f"would not see the rest; take multiples of {patch}, {near} for one."
            )


def _base_processor(place: str, revision: str | None, trust_remote_code: bool) -> BaseImageProcessor | None:
    try:
        return AutoImageProcessor.from_pretrained(
            place, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (ImportError, *UNREADABLE):
        return _statistics(place, revision)


def _statistics(place: str, revision: str | None) -> BaseImageProcessor | None:
    """A processor of the mean and deviation that a folder has, where the class that it names does not open here."""
    try:
        stored, _ = BaseImageProcessor.get_image_processor_dict(place, revision=revision or "main")
    except UNREADABLE:  # a backbone without the file
        of_timm = PreTrainedConfig.get_config_dict(place, revision=revision or "main")[0].get("pretrained_cfg") or {}
        stored = {f"image_{key}": of_timm[key] for key in ("mean", "std") if key in of_timm}
    known = {key: stored[key] for key in ("do_normalize", "image_mean", "image_std") if key in stored}
    return SegformerImageProcessorPil(**known) if len(known) > 1 or known.get("do_normalize") is False else None
