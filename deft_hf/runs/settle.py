"""A recipe with everything that it leaves open chosen: by its images, its model and the machine."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from deft_hf.models.embedded import resolved
from deft_hf.models.families import fixed_size, patch_size
from deft_hf.models.kinds import encoder_kind
from deft_hf.models.opening import UNREADABLE, read_config
from deft_hf.recipe import ModelSection, Recipe
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.domains import Entry, StreetsEntry
from deft_hf.runs.data import open_domain
from deft_hf.trainer.defaults import SELECTION, Choice, choose, crop_size
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import RECIPE
from deft_hf.utils.machine import Machine, this_machine

_LENGTH = ("training.max_steps",)
_BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
_RATE = ("training.learning_rate",)
_LOOKED_AT = 16  # images whose sizes are read


def settled(recipe: Recipe, selects: bool = True, tunes: bool = False) -> Recipe:
    """The recipe with a value for each key that training needs and that it does not have; says which, and why.

    A recipe that is settled is returned as it is, and so is one whose run was started before there were choices. Only
    the files that the choices depend on are looked at.

    Args:
        recipe (`Recipe`):
            The recipe.
        selects (`bool`, *optional*, defaults to `True`):
            Choose how to evaluate while training, and the best checkpoint.
        tunes (`bool`, *optional*, defaults to `False`):
            The learning rate will be tuned: choose none.

    Raises:
        UserError: If a domain cannot be opened, or `batch_size` cannot be shared out.
    """
    if _started(recipe):
        return recipe
    given = recipe.stated()
    if tunes:
        given.setdefault("training.learning_rate", recipe.training.learning_rate)
    machine = this_machine(recipe.training.use_cpu)
    _check_batch(given, machine)
    data, kind, config = recipe.data, encoder_kind(None), None
    if data.crop_size is None or not all(key in given for key in _RATE):
        config = _config(recipe.model)
        kind = encoder_kind(config)
    chosen: list[Choice] = []
    if data.crop_size is None:
        chosen.append(_crop(data, config, machine))
        data = recipe.filled(chosen).data
    images, scored = 0, []
    if _needs_counts(given, data, selects):
        images = sum(_count(entry, data) for entry in data.source)
        scored = [_count(entry, data) for entry in (*data.validation, *data.unseen) if entry.labelled]
    assert data.crop_size is not None
    chosen += choose(
        kind,
        recipe.training.optim,
        images,
        data.crop_size,
        machine,
        validation=[entry.name for entry in data.validation],
        scored=scored,
        given=given,
        selects=selects,
    )
    if chosen:
        lines = [f"  {choice}" for choice in chosen if choice.value is not None]
        say("\n".join(["chosen, since the recipe does not say:", *lines]))
        if selects and not data.validation:
            say("no data.validation: nothing is scored while training, and the last checkpoint is exported")
    return recipe.filled(chosen)


def overrides(choices: tuple[Choice, ...]) -> list[str]:
    """The choices as overrides of the recipe that they were made for."""
    import yaml

    return [f"{choice.key}={yaml.safe_dump(choice.value, default_flow_style=True)}" for choice in choices]


def _started(recipe: Recipe) -> bool:
    """Whether the output folder holds a run of just this recipe, which then says all that the run needs."""
    saved = Path(recipe.training.output_dir) / RECIPE
    try:
        return saved.read_text("utf-8") == recipe.to_yaml()
    except (OSError, ValueError):
        return False


def _check_batch(given: dict[str, Any], machine: Machine) -> None:
    batch = given.get("training.batch_size")
    if batch is not None and batch % machine.processes:
        near = max(1, round(batch / machine.processes)) * machine.processes
        raise UserError(
            f"training.batch_size: found {batch}, which {machine.processes} processes cannot share evenly; take a "
            f"multiple of {machine.processes}, such as {near}"
        )


def _needs_counts(given: dict[str, Any], data: DataSection, selects: bool) -> bool:
    has_length = any(key in given for key in _LENGTH)
    has_batch = any(key in given for key in _BATCH)
    may_select = selects and bool(data.validation) and not any(key in given for key in SELECTION)
    return not (has_length and has_batch) or may_select


def _count(entry: Entry, data: DataSection) -> int:
    return entry.count if isinstance(entry, StreetsEntry) else len(open_domain(entry, data))


def _crop(data: DataSection, config: Any, machine: Machine) -> Choice:
    if config is not None and (only := fixed_size(config)) is not None:
        return Choice("data.crop_size", only, "the only size that the model takes")
    patch = 1 if config is None else patch_size(config)
    multiple = patch if 32 % patch else 32
    sizes = [size for entry in data.source for size in _sizes(entry, data)]
    height, width = (int(median(sides)) for sides in zip(*sizes, strict=True))
    crop = crop_size((height, width), machine.device, multiple)
    why = f"images are {height} x {width}; multiples of {multiple}, on {machine.device}"
    return Choice("data.crop_size", crop, why)


def _sizes(entry: Entry, data: DataSection) -> list[tuple[int, int]]:
    if isinstance(entry, StreetsEntry):
        return [entry.size]
    domain = open_domain(entry, data)
    step = max(len(domain) // _LOOKED_AT, 1)
    return [domain.load(index)[1].shape for index in range(0, len(domain), step)]


def _config(model: ModelSection) -> Any:
    """The model's config; `None` where it cannot be read, of which opening the model will say why."""
    try:
        return read_config(resolved(model.pretrained), model.revision, model.trust_remote_code)
    except UNREADABLE:
        return None
