"""The model that a run starts from, as the sections of a recipe name it."""

from __future__ import annotations

from typing import Any

from deft_hf.data.labels import LabelSpace
from deft_hf.models.families import fixed_size, patch_size
from deft_hf.models.new_tensors import summary
from deft_hf.models.pretrained import Pretrained, open_pretrained
from deft_hf.recipe import ModelSection
from deft_hf.recipe.data import DataSection
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError


def open_start(
    model: ModelSection, data: DataSection, labels: LabelSpace, seed: int, announce: bool = True
) -> Pretrained:
    """The pretrained model of a run, its processor, and the names of the tensors that are new.

    Args:
        model (`ModelSection`):
            The checkpoint, or the backbone and its head.
        data (`DataSection`):
            The sizes of images that the model will see.
        labels (`LabelSpace`):
            The classes.
        seed (`int`):
            Seed of newly initialized tensors.
        announce (`bool`, *optional*, defaults to `True`):
            Print what was opened and what of it is new.

    Raises:
        UserError: If `open_pretrained` refuses the checkpoint, or a domain has a size that the model does not take.
    """
    start = open_pretrained(
        model.pretrained,
        labels,
        head=model.head,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        config=model.config,
        head_config=model.head_config,
        encoder=model.encoder,
        channels_last=model.channels_last,
        crop_size=data.crop_size,
        image_size=data.image_size,
        eval_size=data.eval_size,
        window=data.window,
        seed=seed,
    )
    _check_test_sizes(start.model.config, model.pretrained, data)
    if data.value_range is not None:
        # Saved with it, so that `predict` opens images as training did.
        processor: Any = start.processor
        processor.value_range = list(data.value_range)
    if announce:
        kind, size = type(start.model).__name__, f"{start.model.num_parameters():,} parameters"
        new = summary(start.new, start.model.state_dict())
        say(f"{model.pretrained}: {kind}, {size}. Newly made: {new}")
    return start


def _check_test_sizes(config: Any, name: str, data: DataSection) -> None:
    only, patch = fixed_size(config), patch_size(config)
    for entry in (*data.validation, *data.unseen):
        size = entry.eval_size
        if size is None:
            continue
        if only is not None and data.window is None and size != only:
            raise UserError(
                f"data: found eval_size {size} of {entry.name}, but {name} takes images of {only[0]} x {only[1]} "
                "alone: remove it, or set data.window."
            )
        # A window that is larger than the image is cut to it.
        known = [size["short"]] * 2 if isinstance(size, dict) and "short" in size else size
        sides = known if isinstance(known, tuple | list) else ()
        cut = [min(pair) for pair in zip(sides, data.window, strict=False)] if data.window else sides
        if any(side % patch for side in cut):
            raise UserError(
                f"data: found eval_size {size} of {entry.name}, but the encoder takes patches of {patch} x {patch} "
                f"pixels and would not see the rest: take a multiple of {patch}, such as "
                f"{max(1, round(min(cut) / patch)) * patch}."
            )
