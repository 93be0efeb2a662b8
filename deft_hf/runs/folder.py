"""The output folder of a run: which run it holds, and which may resume there."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pydantic
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from deft_hf.recipe import MethodSection, Recipe, TrainingSection
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import DATA_LISTS, EARLIER_RECIPES, LOCK, MARKER, METRICS, RECIPE, STATE
from deft_hf.utils.integrity import check_writable, checkpoints, replace_text
from deft_hf.utils.outputs import command_of, locked, mark
from deft_hf.utils.places import link_out, makeable

_PATIENCE = 20  # seconds
# Their product with the number of processes is what counts.
_BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
# Differences of these do not make another run of it.
_FREE = (
    "publish",
    "method.baselines",
    "data.check",
    "data.unreadable",
    "training.logging_",
    "training.metrics",
    "training.save_",
    "training.dataloader_num_workers",
    "training.dataloader_persistent_workers",
    "training.dataloader_pin_memory",
    "training.dataloader_prefetch_factor",
    "training.disable_tqdm",
    "training.report_to",
    "training.run_name",
    "training.project",
    "training.log_level",
    "training.per_device_eval_batch_size",
    *_BATCH,
)


def method_folder(output: str | Path, method: str, own: str) -> Path:
    """Where a method's model, checkpoints and results lie: the output folder, or one below it for a baseline.

    Args:
        output (`str` or `Path`):
            The output folder.
        method (`str`):
            The method.
        own (`str`):
            The method of the recipe.
    """
    return Path(output) if method == own else Path(output) / "baselines" / method


def method_folders(output: str | Path, section: MethodSection) -> dict[str, Path]:
    """By method of a recipe, baselines first, its folder."""
    return {name: method_folder(output, name, section.name) for name in [*section.baselines, section.name]}


@contextmanager
def claimed_folder(recipe: Recipe, resume_anyway: bool = False) -> Iterator[Path]:
    """The output folder, which from now on holds this recipe's run; no other process may claim it meanwhile.

    An interrupted run of the recipe resumes there; one that left no files but its recipe is replaced.

    Args:
        recipe (`Recipe`):
            The recipe.
        resume_anyway (`bool`, *optional*, defaults to `False`):
            Take the folder of a run whose recipe differs, and name the differences; what has no difference that could
            change the model is taken in any case. Earlier recipes stay there as `recipe.1.yaml` and so on.

    Yields:
        `Path`: the folder.

    Raises:
        UserError: If the folder holds another run, or files of something else, cannot be written to, or belongs to a
            process that still runs. Nothing is touched.
    """
    folder = Path(recipe.training.output_dir)
    state = PartialState()
    with ExitStack() as stack:
        refusal: list[UserError | None] = [None]
        if state.is_main_process:
            try:
                _claim(folder, recipe, resume_anyway, stack)
            except UserError as error:
                refusal = [error]
        if refused := broadcast_object_list(refusal)[0]:
            raise refused
        yield folder


def _claim(folder: Path, recipe: Recipe, resume_anyway: bool, stack: ExitStack) -> None:
    """On one process: the lock for as long as `stack` lasts, and the recipe in its place."""
    with makeable(folder):
        _look(folder, recipe, resume_anyway)
        check_writable(folder)
    stack.enter_context(locked(folder, _PATIENCE, "training.output_dir"))
    # Once more: another process may have claimed it in between.
    before, said = _look(folder, recipe, resume_anyway)
    if said:
        say(said)
    if before is not None:
        number = 1 + sum(1 for _ in folder.glob(EARLIER_RECIPES))
        replace_text(folder / f"recipe.{number}.yaml", before)
    mark(folder, "train")
    replace_text(folder / RECIPE, recipe.to_yaml())


def _look(folder: Path, recipe: Recipe, resume_anyway: bool) -> tuple[str | None, str | None]:
    """Whether a run may go into a folder: the recipe to keep as an earlier one, and what to say of differences."""
    saved, folders = folder / RECIPE, method_folders(folder, recipe.method).values()
    present = recipe.to_yaml()
    others = folder.is_dir() and any(
        path != saved and (path.is_symlink() or path.is_file()) and not _ours(path) for path in folder.rglob("*")
    )
    is_run = saved.is_file() and not saved.is_symlink() and _is_run(folder, recipe)
    if is_run and (link := link_out(folder)):
        raise UserError(
            f"training.output_dir: {link} leads out of {folder}, to {link.resolve()}; nothing was touched. Remove the "
            "link, or choose another training.output_dir."
        )
    if is_run and others:
        before = saved.read_text(errors="replace")
        differences = _differences(_filled(_resolved(before, saved)), _filled(yaml.safe_load(present)))
        differences.pop("training.output_dir", None)  # it is this folder, which may have been moved
        differences |= _other_batch(recipe.training, folders, changed=any(key in differences for key in _BATCH))
        free, refused = _free(differences, chosen=recipe.training.metric_for_best_model is not None)
        if refused and not resume_anyway:
            raise UserError(
                f"training.output_dir: {folder} holds another run, whose recipe differs in {', '.join(refused)}; "
                "nothing was touched. Choose another training.output_dir, remove the folder, or resume it all "
                "the same (resume_anyway)."
            )
        if refused and (done := sorted(folder.rglob(METRICS))):
            raise UserError(
                f"training.output_dir: {folder} holds results of the other recipe ({done[0]}), which new ones "
                "could not be compared with; nothing was touched. Choose another training.output_dir."
            )
        names = ", ".join([*refused, *free])
        said = f"{folder}: resuming under a recipe that differs in {names}" if differences else None
        return before if refused else None, said
    if others or os.path.lexists(saved) and not is_run or (os.path.lexists(folder) and not folder.is_dir()):
        raise UserError(
            f"training.output_dir: {folder} exists and is no run of deft_hf; nothing was touched. "
            "Choose another training.output_dir."
        )
    return None, None


def _is_run(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder with a recipe holds a run, and not a recipe that somebody wrote and keeps there."""
    if (command := command_of(folder)) is not None:
        return command == "train"
    # An earlier version left no marker.
    traces = (LOCK, DATA_LISTS, METRICS, STATE)
    found = any((place / name).is_file() for place in (folder, *checkpoints(folder)) for name in traces)
    return (
        found or any(folder.glob("baselines/*")) or (folder / RECIPE).read_text("utf-8", "replace") == recipe.to_yaml()
    )


def _ours(path: Path) -> bool:
    """Whether claiming a folder leaves this behind."""
    if path.is_symlink():
        return False
    if path.name == LOCK:
        return path.stat().st_size == 0
    return path.name in (MARKER, DATA_LISTS, f".{MARKER}.part", f".{RECIPE}.part", f".{DATA_LISTS}.part") or (
        path.name.startswith(".writable-")
    )


def _resolved(text: str, path: Path) -> Any:
    """A saved recipe, with today's defaults for keys that it does not have."""
    try:
        values = yaml.safe_load(text)
        if not isinstance(values, Mapping):
            raise ValueError("no mapping of sections")
        return yaml.safe_load(Recipe.model_validate(values).to_yaml())
    except pydantic.ValidationError:
        return values  # a key that no longer exists is one of the differences
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({' '.join(str(error).split())}), so the run there is unknown; "
            "nothing was touched. Choose another training.output_dir, or put the recipe back."
        ) from error


def _filled(values: Any) -> Any:
    """A recipe with the defaults of `training`, which `to_yaml` leaves out: one that is stated is no difference."""
    if not isinstance(values.get("training"), Mapping):
        return values
    defaults = TrainingSection(output_dir="").model_dump(exclude={"output_dir"})
    return {**values, "training": {**defaults, **values["training"]}}


def _differences(old: Any, new: Any, key: str = "") -> dict[str, str]:
    """What differs, in words, by key."""
    if old == new:
        return {}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {key: f"{key} ({old!r} there, {new!r} here)"}
    names = [*old, *(name for name in new if name not in old)]
    found: dict[str, str] = {}
    for name in names:
        found |= _differences(old.get(name), new.get(name), f"{key}.{name}".removeprefix("."))
    return found


def _other_batch(training: TrainingSection, folders: Collection[Path], changed: bool) -> dict[str, str]:
    """A difference in global batch size between the checkpoints and this run; `changed`: the recipes allow one."""
    done = all((folder / METRICS).is_file() for folder in folders)
    if training.auto_find_batch_size or (done and not changed):
        return {}
    here = training.per_device_train_batch_size * training.gradient_accumulation_steps * PartialState().num_processes
    there = {batch for folder in folders for batch in _batches(folder)} - {here}
    if not changed:
        there.discard(None)
    if not there:
        return {}
    images = " or ".join(sorted("unknown" if batch is None else str(batch) for batch in there))
    keys = " x ".join(key.removeprefix("training.") for key in _BATCH)
    return {"global batch": f"the global batch ({images} there, {here} here: {keys} x processes)"}


def _batches(folder: Path) -> Iterator[int | None]:
    """The global batch of a method's results and checkpoints; None where an earlier version did not note it."""
    for path, key in [(folder / METRICS, "batch_size"), *((c / STATE, "global_batch") for c in checkpoints(folder))]:
        try:
            yield json.loads(path.read_text("utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            pass  # not there, or damaged: nothing resumes from it


def _free(differences: Mapping[str, str], chosen: bool) -> tuple[list[str], list[str]]:
    """The differences that leave the model as it is, and the others; `chosen`: a checkpoint is chosen by its score."""
    free = [key for key in differences if key.startswith(_FREE)]
    if chosen:
        # A checkpoint is chosen among those that are saved and scored.
        free = [key for key in free if not key.startswith("training.save_")]
    return [differences[key] for key in free], [text for key, text in differences.items() if key not in free]
