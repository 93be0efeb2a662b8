"""What `checkpoint-N/` holds beside Trainer's own state, and how it comes into being whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.utils import logging

from deft_hf.data.sampling import training_data
from deft_hf.methods.composition import Composition
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.shards import fill, whole_state
from deft_hf.models.plain import is_plain, save_plain
from deft_hf.models.saving import save_callable
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.resumed import check_model, check_resumed
from deft_hf.trainer.stages import StageRunner
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.files import GENERALIZED, INGREDIENTS, INITIAL, STATE, TRAINER_STATE, USUAL, WEIGHTS
from deft_hf.utils.integrity import (
    STATISTICS_DUE,
    check_writable,
    checkpoints,
    clear_leftovers,
    damage,
    last_good_checkpoint,
    partial_folder,
    put_in_place,
    rotate,
    writing,
)

logger = logging.get_logger(__name__)


def save_pathways(pathways: DualPathway, folder: str | Path, facts: dict[str, Any], write: bool = True) -> None:
    """Write what resuming needs beside the exported model: the other component, initialisation, counters.

    Every rank calls it, since parameters may be spread over them.

    Args:
        pathways (`DualPathway`):
            Components to save.
        folder (`str` or `Path`):
            Folder that holds the exported model already.
        facts (`dict[str, Any]`):
            Plain values to keep next to the counters: what a resumed run must have in common, and figures for people.
        write (`bool`, *optional*, defaults to `True`):
            Whether this rank writes.
    """
    folder = Path(folder)
    for name, component in _not_exported(pathways).items():
        state = whole_state(component, keep=write)
        if write:
            save_file(state, folder / name)
    initial = pathways.whole_initial(keep=write)
    if not write:
        return
    save_file(initial, folder / INITIAL)
    counters = {"stage": pathways.stage, "updates": int(pathways.updates)}
    (folder / STATE).write_text(json.dumps({**facts, **counters}, indent=2) + "\n")


def _not_exported(pathways: DualPathway) -> dict[str, nn.Module]:
    """By file, the components that `model.safetensors` does not hold: adapters, for one, are merged there."""
    components = {USUAL: pathways.usual} | ({GENERALIZED: pathways.generalized} if pathways.averages else {})
    plain = None if pathways.exports_copy else pathways.exported
    return {name: component for name, component in components.items() if component is not plain}


def load_pathways(pathways: DualPathway, folder: str | Path) -> dict[str, Any]:
    """Restore both components, the initialisation and the counters from a checkpoint folder; returns the facts.

    Raises:
        UserError: If a file is missing or holds another model.
    """
    folder = Path(folder)
    components = _not_exported(pathways)
    files = [STATE, INITIAL, *components]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no checkpoint of this method of deft_hf: {', '.join(missing)} is missing.")
    facts = read_state(folder)
    try:
        if not pathways.exports_copy:
            _load_exported(pathways, folder)
        for name, component in components.items():
            fill(component, load_file(folder / name))
        pathways.set_initial(load_file(folder / INITIAL))
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder} holds another model or is damaged: {error}") from error
    pathways.updates.fill_(facts["updates"])
    return facts


def read_state(folder: Path) -> dict[str, Any]:
    """What `deft_state.json` of a checkpoint says.

    Raises:
        UserError: It cannot be read, or does not count the updates.
    """
    try:
        facts = json.loads((folder / STATE).read_text("utf-8"))
        if isinstance(facts, dict) and isinstance(facts.get("updates"), int):
            return facts
        found = "it does not count the updates"
    except (OSError, ValueError, RecursionError) as error:
        found = first_line(error)
    raise UserError(f"{folder / STATE}: cannot be read ({found}). Take another checkpoint.")


@contextmanager
def states_explained(checkpoint: str | None) -> Iterator[None]:
    """Wrap training: a pickle of a checkpoint that holds more than states, which torch does not run, is one message.

    Args:
        checkpoint (`str`, *optional*):
            Folder that training resumes from.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except UnpicklingError as error:
        raise UserError(
            f"{checkpoint} has a pickle that holds more than states of optimizer, scheduler and random numbers; "
            "nothing of it was run. Remove it, and start again from an earlier checkpoint."
        ) from error


def _load_exported(pathways: DualPathway, folder: Path) -> None:
    if is_plain(pathways.exported):
        fill(pathways.exported, load_file(folder / WEIGHTS))
        return
    # Through `from_pretrained`, which undoes what `save_pretrained` renamed.
    cls: Any = type(pathways.usual)
    restored, keys = cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    lost = [*keys["missing_keys"], *keys["mismatched_keys"]]
    if lost:
        raise ValueError(f"{len(lost)} tensors are missing, {lost[0]} first")
    fill(pathways.exported, restored.state_dict())


class Checkpoints:
    """Writes checkpoints whole, reads them back, and compares them with the run that resumes.

    Args:
        pathways (`DualPathway`):
            The components.
        composition (`Composition`):
            The method and its ingredients.
        stages (`StageRunner`):
            Where the run is.
        accelerator (`Accelerator`):
            Lets the ranks wait for each other.
        args (`DeFTTrainingArguments`):
            The run's folder, which rank writes, and how many checkpoints are kept.
        train_dataset (`Callable`):
            Returns the data that the run trains on.

    Attributes:
        resume_anyway (`bool`):
            Resume from a checkpoint of other settings, with a warning for each.
    """

    def __init__(
        self,
        pathways: DualPathway,
        composition: Composition,
        stages: StageRunner,
        accelerator: Accelerator,
        args: DeFTTrainingArguments,
        train_dataset: Callable[[], Any],
    ) -> None:
        self.pathways = pathways
        self.composition = composition
        self.stages = stages
        self.accelerator = accelerator
        self.args = args
        self.output_dir = args.folder
        self.resume_anyway = False
        self.train_dataset = train_dataset
        self._resumed: dict[str, Any] = {}
        self._folder: Path | None = None
        self._data: tuple[Any, str | None] = (None, None)

    # ---- writing

    def save(
        self,
        output_dir: str,
        state: TrainerState,
        write: Callable[[str], None],
        global_batch: int,
        facts: dict[str, Any],
    ) -> Path:
        """Write the checkpoint of the present step beside its place, flush it and rename it; every rank calls it.

        Args:
            output_dir (`str`):
                The folder to write `checkpoint-N` in.
            state (`TrainerState`):
                Where the run is; the path of a best checkpoint is noted in it.
            write (`Callable`):
                Writes the exported model and Trainer's own state into a folder.
            global_batch (`int`):
                Images of an optimizer step over all ranks.
            facts (`dict`):
                What else to keep in `deft_state.json`.

        Returns:
            `Path`: Its folder.

        Raises:
            UserError: The disk is full or fails; nothing is left behind.
        """
        folder, main = Path(output_dir) / f"checkpoint-{state.global_step}", self.args.should_save
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(folder)
        partial = partial_folder(folder)
        try:
            with writing(partial, self._what_is_kept):
                if main and partial.exists():
                    shutil.rmtree(partial)
                self.accelerator.wait_for_everyone()  # before anyone writes there
                write(str(partial))
                common = self._common_facts(global_batch) | {"initial_share": self.pathways.share_left()}
                save_pathways(self.pathways, partial, common | facts, write=main)
                if main and (tensors := self.composition.tensors()):
                    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / INGREDIENTS)
                self.accelerator.wait_for_everyone()  # after everyone has written
                if main:
                    put_in_place(partial, folder)
                self.accelerator.wait_for_everyone()
        except UserError:
            shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
            raise
        return folder

    def rotate(self, newest: Path, state: TrainerState) -> None:
        """Remove old checkpoints beside `newest` until `save_total_limit` are left."""
        if self.args.should_save:
            rotate(newest, self.args.save_total_limit, state.best_model_checkpoint)

    def _what_is_kept(self) -> str:
        checkpoint = last_good_checkpoint(self.output_dir)
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
        return f"{kept}; make room and start again, and training resumes from there."

    def _common_facts(self, global_batch: int) -> dict[str, Any]:
        """What a run must have in common with the checkpoint that it resumes."""
        dataset = self.train_dataset()
        if self._data[0] is not dataset:  # a few files of it are read, once
            self._data = dataset, training_data(dataset)
        run = {"seed": self.args.seed, "global_batch": global_batch, "train_dataset": self._data[1]}
        return {**self.composition.record(self.stages.spans), **self.args.loss_record(), **run}

    # ---- reading

    @property
    def loss_before(self) -> float | None:
        """Sum of the losses of the steps before the checkpoint that was loaded; earlier versions did not keep it."""
        found = self._resumed.get("loss_sum")
        return found if isinstance(found, float) else None

    @property
    def statistics_due(self) -> bool:
        """Whether the checkpoint that was loaded was saved without the BatchNorm statistics of its weights."""
        return bool(self._resumed.get(STATISTICS_DUE))

    def begin(self, checkpoint: str | bool | None, resume_anyway: bool) -> str | None:
        """Make sure that the run can write, and find the checkpoint that it is to resume from.

        Raises:
            UserError: The folder cannot be written to, or `checkpoint` is `True` and there is none.
        """
        check_writable(self.output_dir)
        self.resume_anyway = resume_anyway
        if checkpoint is not True:
            return checkpoint or None
        if found := self.last_good():
            return found
        raise UserError(f"{self.output_dir} holds no checkpoint to resume from: leave it out.")

    def last_good(self) -> str | None:
        """The checkpoint to resume from, on every rank; clears what was left half done."""
        found: list[str | None] = [None]
        if self.accelerator.is_main_process:
            clear_leftovers(self.output_dir)
            found = [last_good_checkpoint(self.output_dir)]
        return broadcast_object_list(found)[0]

    def load(self, checkpoint: str) -> dict[str, list[str]]:
        """Restore the components from a checkpoint; returns the unreadable images that it knew of.

        Raises:
            UserError: It is damaged, of another method, or of a model alone.
        """
        folder = self._folder = Path(_whole(checkpoint))
        check_model(read_state(folder), self.composition.of_model(), folder)
        self._resumed = load_pathways(self.pathways, folder)
        if (folder / INGREDIENTS).is_file():
            self.composition.set_tensors(load_file(folder / INGREDIENTS))
        try:
            TrainerState.load_from_json(str(folder / TRAINER_STATE))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / TRAINER_STATE}: cannot be read ({first_line(error)}). Take another checkpoint."
            ) from error
        # Trainer would pass over it in silence, and start the schedule again in the middle of a stage.
        if missing := [name for name in (OPTIMIZER_NAME, SCHEDULER_NAME) if not (folder / name).is_file()]:
            raise UserError(
                f"{folder} cannot be resumed: it has no {' and no '.join(missing)}, since save_only_model keeps "
                "the model alone. Leave save_only_model out, and start again in another output_dir or with the "
                "checkpoints of this one removed."
            )
        return self._resumed.get("unreadable", {})

    def load_best(self, checkpoint: str) -> None:
        """Restore the components of the best checkpoint.

        Raises:
            UserError: It is damaged.
        """
        load_pathways(self.pathways, _whole(checkpoint))

    def check_resumed(self, step: int, global_batch: int) -> None:
        """Compare the checkpoint that was loaded with this run.

        Args:
            step (`int`):
                Optimizer steps taken so far.
            global_batch (`int`):
                Images of an optimizer step over all ranks.

        Raises:
            UserError: They are not of one run, see [`~deft_hf.trainer.resumed.check_resumed`].
        """
        here = self._common_facts(global_batch)
        check_resumed(self._resumed, here, self.stages.spans, step, self.resume_anyway)

    def rotate_resumed(self, state: TrainerState) -> None:
        """Remove the checkpoint too many that a kill leaves between saving and rotating."""
        newest = next(iter(checkpoints(self.output_dir)), None)
        if newest is not None and self._folder is not None and newest.resolve() == self._folder.resolve():
            self.rotate(newest, state)

    def find_best(self, state: TrainerState, checkpoint: Path) -> None:
        """Trainer's state has the path that the best checkpoint was written to; the run may have been moved since."""
        recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE)).best_model_checkpoint
        if recorded is None:
            return
        places = [folder / Path(recorded).name for folder in (self.output_dir, checkpoint.parent)]
        best = next((str(place) for place in places if place.is_dir()), None)
        state.best_model_checkpoint = best
        if best is not None and best != recorded:
            logger.warning(f"The best checkpoint was moved, to {best}.")
        if best is None:  # nothing to fall back on: the best is that of the steps to come
            state.best_metric = state.best_global_step = None


def _whole(checkpoint: str) -> str:
    if problem := damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged: {problem}. Remove it, and start again from an earlier one.")
    return checkpoint


def save_exported(model: nn.Module, class_names: list[str], encoder: str, folder: str | Path) -> None:
    """The exported model as a plain Hub folder, or a plain model's state dict, without pickles."""
    if isinstance(model, PreTrainedModel):
        save_callable(model, folder)
    else:
        save_plain(model, whole_state(model), class_names, encoder, folder)


def write_trainer_state(state: TrainerState, exporters: Iterable[Any], folder: str) -> None:
    """Write `trainer_state.json`, with what callbacks want to have back when the run resumes, as `Trainer` does."""
    found: dict[str, list[Any]] = {}
    for exporter in exporters:
        if isinstance(exporter, ExportableState):
            found.setdefault(type(exporter).__name__, []).append(exporter.state())
    states: Any = state.stateful_callbacks  # annotated as the list that Trainer makes a dict of
    states.update({name: own if len(own) > 1 else own[0] for name, own in found.items()})
    state.save_to_json(str(Path(folder, TRAINER_STATE)))
