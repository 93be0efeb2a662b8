"""The output folder of a run: whose it is, and who may go on there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pydantic
import yaml
from accelerate import PartialState
from filelock import FileLock, Timeout

from deft_hf.recipe import Recipe
from deft_hf.runs.results import METRICS, RECIPE, method_folder
from deft_hf.trainer.checkpoints import STATE
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError
from deft_hf.utils.integrity import check_writable, checkpoints, replace_text

_LOCK = ".lock"
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


@contextmanager
def claimed_folder(recipe: Recipe, resume_anyway: bool = False) -> Iterator[Path]:
    """The output folder, which from now on holds this recipe's run; a run that was broken off goes on there, and one
    that came to nothing makes way. No other process may claim it meanwhile.

    Args:
        recipe: the recipe.
        resume_anyway: take the folder of a run whose recipe differs, and name the differences; what has no difference
            that could change the model is taken in any case. Earlier recipes stay there as `recipe.1.yaml` and so on.

    Raises:
        UserError: the folder holds another run, or files of something else, cannot be written to, or belongs to a
            process that still runs. Nothing is touched.
    """
    folder = Path(recipe.training.output_dir)
    saved = folder / RECIPE
    present = recipe.to_yaml()
    others = folder.is_dir() and any(path.is_file() and path != saved for path in folder.rglob("*") if not _ours(path))
    before = None
    if saved.is_file() and others:
        before = saved.read_text(errors="replace")
        differences = _differences(_resolved(before, saved), yaml.safe_load(present))
        differences.pop("training.output_dir", None)  # it is this folder, which may have been moved
        differences |= _other_batch(recipe, changed=any(key in differences for key in _BATCH))
        free, refused = _free(differences, recipe)
        if refused and not resume_anyway:
            raise UserError(
                f"training.output_dir: {folder} holds another run, whose recipe differs in {', '.join(refused)}; "
                "nothing was touched. Choose another training.output_dir, or remove the folder; --resume-anyway goes "
                "on with what is there all the same."
            )
        if refused and (done := sorted(folder.rglob(str(METRICS)))):
            raise UserError(
                f"training.output_dir: {folder} holds results of the other recipe ({done[0]}), with which others "
                "would not compare; nothing was touched. Choose another training.output_dir."
            )
        if differences:
            say(f"{folder}: goes on under a recipe that differs in {', '.join([*refused, *free])}")
        before = before if refused else None
    elif others or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"training.output_dir: {folder} exists and is no run of deft_hf; nothing was touched. "
            "Choose another training.output_dir."
        )
    state = PartialState()
    state.wait_for_everyone()  # every process has looked before one writes
    with ExitStack() as stack:
        if state.is_main_process:
            check_writable(folder)
            stack.enter_context(_alone(folder))
            if before is not None:
                number = 1 + sum(1 for _ in folder.glob("recipe.*.yaml"))
                replace_text(folder / f"recipe.{number}.yaml", before)
            replace_text(saved, present)
        yield folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    # Two runs would clear each other's half-written checkpoints. Data-loader workers of a run that was killed hold its
    # lock for some seconds more.
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise UserError(
            f"training.output_dir: {folder} belongs to a run that still goes on; nothing was touched. Wait for it, or "
            "stop its process."
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()


def _ours(path: Path) -> bool:
    """Whether claiming a folder leaves this behind."""
    return path.name in (_LOCK, f".{RECIPE}.part") or path.name.startswith(".writable-")


def _resolved(text: str, path: Path) -> Any:
    """A recipe that was saved, with today's defaults for the keys that there were not."""
    try:
        values = yaml.safe_load(text)
        if not isinstance(values, Mapping):
            raise ValueError("no mapping of sections")
        return yaml.safe_load(Recipe.model_validate(values).to_yaml())
    except pydantic.ValidationError:
        return values  # of a key that is no more: it stands among the differences
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({' '.join(str(error).split())}), so that nobody knows what the run there is; "
            "nothing was touched. Choose another training.output_dir, or put the recipe back."
        ) from error


def _differences(old: Any, new: Any, key: str = "") -> dict[str, str]:
    """By key, what differs in words."""
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


def _other_batch(recipe: Recipe, changed: bool) -> dict[str, str]:
    """In words, that what was trained had another global batch than what would be trained now; `changed`: by the
    recipes it could have.
    """
    training = recipe.training
    folders = [method_folder(recipe, method) for method in (*recipe.method.baselines, recipe.method.name)]
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
            pass  # not there, or damaged: nothing goes on from it


def _free(differences: Mapping[str, str], recipe: Recipe) -> tuple[list[str], list[str]]:
    """The differences that leave the model as it is, and the others."""
    free = [key for key in differences if key.startswith(_FREE)]
    if recipe.training.metric_for_best_model is not None:
        # A checkpoint is chosen among those that are saved and scored.
        free = [key for key in free if not key.startswith("training.save_")]
    return [differences[key] for key in free], [text for key, text in differences.items() if key not in free]
