"""A model, written as a Hub folder on which transformers' standard calls work."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedModel

from deft_hf.models.families import FAMILIES, objective_of


def save_callable(model: PreTrainedModel, folder: str | os.PathLike, **options: Any) -> None:
    """Write a model of transformers, and the tokenizer that its pipeline needs, if any.

    Inputs without which the model cannot be called are defaults in the written config, where it has such a field.

    Args:
        model (`PreTrainedModel`):
            The model; it is not changed.
        folder (`str` or `os.PathLike`):
            Folder to write to.
        options (`Any`):
            Further arguments of `save_pretrained`.
    """
    config: Any = model.config
    inputs = objective_of(config.model_type).inputs(config)
    before = {name: getattr(config, name) for name in inputs if hasattr(config, name)}
    try:
        for name in before:
            setattr(config, name, inputs[name])
        model.save_pretrained(folder, **options)
    finally:
        for name, value in before.items():
            setattr(config, name, value)
    family = FAMILIES.get(config.model_type)
    if family is not None and family.tokenizer is not None:
        family.tokenizer().save_pretrained(folder)
