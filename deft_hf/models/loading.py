"""The model of a recipe: a checkpoint or a backbone of the Hub, opened, checked, and made ready to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import logging

from deft_hf.data.labels import LabelSpace
from deft_hf.models.backbones import patch_size, under_head
from deft_hf.models.families import FAMILIES, auto_class, fixed_size, resolve_family
from deft_hf.models.new_tensors import draw_classifier, newly_made, summary
from deft_hf.models.opening import first_line, unreadable
from deft_hf.publish.export import segmentation_processor
from deft_hf.recipe import Recipe
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError


def load_model(
    recipe: Recipe, labels: LabelSpace, announce: bool = True
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The pretrained checkpoint with a head for the classes, and the processor that the export will have.

    What the checkpoint does not hold, the head or its classifier, is drawn by `training.seed` and reported by name
    (`announce`).

    Raises:
        UserError: the checkpoint cannot be read, is of an unknown type, lacks weights that it should have, or takes no
            images of the recipe's sizes.
    """
    section, where = recipe.model, f"model.{recipe.model.key}: {recipe.model.pretrained}"
    name, revision = section.resolved_checkpoint(), section.revision or "main"
    set_seed(recipe.training_arguments().seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what the head lacks is said below, in one line
    try:
        if section.backbone is not None:
            model, new = under_head(name, section.head, labels, revision, section.config, section.head_config)
            family = resolve_family(model)
        else:
            config = AutoConfig.from_pretrained(name, revision=revision)
            _check_config(config, section.config)
            needed = FAMILIES[config.model_type].config if config.model_type in FAMILIES else {}
            model, keys = auto_class(config).from_pretrained(
                name,
                revision=revision,
                num_labels=labels.num_labels,
                id2label=labels.id2label,
                label2id=labels.label2id,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **{**needed, **section.config},
            )
            family = resolve_family(model, section.encoder)
            new = newly_made(model, family, keys, config.num_labels, where)
            nameless = {index: f"LABEL_{index}" for index in range(config.num_labels)}
            if config.num_labels == labels.num_labels and config.id2label not in (labels.id2label, nameless):
                new = draw_classifier(model, new)
    except UserError:
        raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.{section.key}: {unreadable(section.pretrained, error)}") from error
    except ValueError as error:
        raise UserError(
            f"{where} does not open as a semantic segmentation model "
            f"({first_line(error)}). Known types: {', '.join(sorted(FAMILIES))}."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_sizes(recipe, model)
    if section.channels_last:
        model = model.to(memory_format=torch.channels_last)
    size = f"{model.num_parameters():,} parameters"
    if announce:
        say(f"{section.pretrained}: {type(model).__name__}, {size}. Newly made: {summary(new, model.state_dict())}")
    # Who opens the export knows of no window.
    size = fixed_size(model.config) or recipe.data.image_size
    return model, segmentation_processor(_base_processor(name, section.revision), size)


def _check_config(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    unknown = [key for key in changes if key not in config.to_dict()]
    if unknown:
        raise UserError(
            f"model.config.{unknown[0]}: a {config.model_type} config has no such field; it has "
            f"{', '.join(sorted(config.to_dict()))}."
        )


def _check_sizes(recipe: Recipe, model: PreTrainedModel) -> None:
    data, patch = recipe.data, patch_size(model.config)
    only = fixed_size(model.config)
    for key in ("crop_size", "window" if data.window else "image_size"):
        size = getattr(data, key)
        if only is not None and (size is None or tuple(size) != only):
            raise UserError(
                f"data.{key}: found {size}, but {recipe.model.pretrained} takes images of {only[0]} x {only[1]} "
                "alone: set data.crop_size to it, and data.window for larger images."
            )
        if size is not None and any(length % patch for length in size):
            near = [max(1, round(length / patch)) * patch for length in size]
            raise UserError(
                f"data.{key}: found {list(size)}, but the encoder takes patches of {patch} x {patch} pixels and "
                f"would not see the rest; take multiples of {patch}, {near} for one."
            )


def _base_processor(name: str, revision: str | None) -> BaseImageProcessor | None:
    try:
        return AutoImageProcessor.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError):
        return None  # a backbone without preprocessor_config.json
