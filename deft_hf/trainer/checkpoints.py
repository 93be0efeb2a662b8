"""What `checkpoint-N/` holds beside Trainer's own state, and how it comes into being whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.shards import fill, whole_state
from deft_hf.methods.lora import has_adapters
from deft_hf.models.plain import is_plain, save_plain
from deft_hf.trainer.arguments import OF_THE_METHOD
from deft_hf.trainer.stages import Span, stage_at
from deft_hf.utils.errors import UserError, single_images_explained, workers_explained
from deft_hf.utils.files import GENERALIZED, INITIAL, STATE, TRAINER_STATE, USUAL, WEIGHTS
from deft_hf.utils.integrity import (
    check_writable,
    clear_leftovers,
    damage,
    last_good_checkpoint,
    partial_folder,
    put_in_place,
    rotate,
    step_of,
    writing,
)

logger = logging.get_logger(__name__)


def save_pathways(pathways: DualPathway, folder: str | Path, facts: dict[str, Any], write: bool = True) -> None:
    """Write what resuming needs beside the exported model: the other component, initialisation, counters.

    Every rank calls it, since parameters may be spread over them.

    Args:
        folder: a folder that holds the exported model already.
        facts: plain values to keep beside the counters: what a resumed run must have in common, and figures for
            people.
        write: whether this rank writes.
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
    state = {**facts, "stage": pathways.stage, "updates": int(pathways.updates)}
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")


def _not_exported(pathways: DualPathway) -> dict[str, nn.Module]:
    """By file, the components that `model.safetensors` does not hold: adapters, for one, are merged there."""
    components = {USUAL: pathways.usual} | ({GENERALIZED: pathways.generalized} if pathways.averages else {})
    plain = None if has_adapters(pathways.exported) else pathways.exported
    return {name: component for name, component in components.items() if component is not plain}


def load_pathways(pathways: DualPathway, folder: str | Path) -> dict[str, Any]:
    """Restore both components, the initialisation and the counters from a checkpoint folder; returns the facts.

    Raises:
        UserError: a file is missing, or holds another model.
    """
    folder = Path(folder)
    components = _not_exported(pathways)
    files = [STATE, INITIAL, *components]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no checkpoint of this method of deft_hf: {', '.join(missing)} is missing.")
    facts = json.loads((folder / STATE).read_text())
    try:
        if not has_adapters(pathways.exported):
            _load_exported(pathways, folder)
        for name, component in components.items():
            fill(component, load_file(folder / name))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} holds another model or is damaged: {error}") from error
    pathways.set_initial(load_file(folder / INITIAL))
    pathways.updates.fill_(facts["updates"])
    return facts


def _load_exported(pathways: DualPathway, folder: Path) -> None:
    if is_plain(pathways.exported):
        fill(pathways.exported, load_file(folder / WEIGHTS))
        return
    # Through `from_pretrained`, which undoes what `save_pretrained` renamed.
    restored, keys = type(pathways.usual).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    lost = [*keys["missing_keys"], *keys["mismatched_keys"]]
    if lost:
        raise ValueError(f"{len(lost)} tensors are missing, {lost[0]} first")
    fill(pathways.exported, restored.state_dict())


class CheckpointMixin:
    """The saving and loading methods of `transformers.Trainer`, for the components of a `DualPathway`."""

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        *,
        resume_anyway: bool = False,
    ) -> TrainOutput:
        """Run all stages of the method. SIGTERM ends it after the next step, see `deft_hf.trainer.termination`.

        Args:
            resume_from_checkpoint: a checkpoint, or `True` for the last good one in `args.output_dir`.
            trial, ignore_keys_for_eval: as `Trainer` has them.
            resume_anyway: go on from a checkpoint of a run with other settings, with a warning for each, as long as it
                holds what this method needs; see `check_resumed`.

        Raises:
            UserError: the folder cannot be written to or its disk is full, there is no good checkpoint, it is of
                another method or of a model alone, an image cannot be read, or a process that loads images died.
            SystemExit: with status 143, after SIGTERM.
        """
        check_writable(self.args.output_dir)
        self._resume_anyway = resume_anyway
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_good_checkpoint()
            if resume_from_checkpoint is None:
                raise UserError(f"{self.args.output_dir} holds no checkpoint to go on from: leave it out, or mend it.")
        with workers_explained(), single_images_explained(), self.sigterm.listening():
            return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def last_good_checkpoint(self) -> str | None:
        """The checkpoint in `args.output_dir` to go on from, on every rank; clears what was left half done."""
        found: list[str | None] = [None]
        if self.accelerator.is_main_process:
            clear_leftovers(Path(self.args.output_dir))
            found = [last_good_checkpoint(self.args.output_dir)]
        return broadcast_object_list(found)[0]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The exported model as a plain Hub folder, or a plain model's state dict, without pickles."""
        if not self.args.should_save:
            return
        folder = self.args.output_dir if output_dir is None else output_dir
        model = self.generalized_model
        if is_plain(model):
            save_plain(model, whole_state(model), self.class_names, self.family.encoder, folder)
        else:
            model.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The exported model as a plain Hub folder, whatever it was trained under; every rank calls it."""
        self.refresh_batchnorm()
        self.whole(self.pathways.exported)  # with every rank: `_save` runs on one
        self._save(output_dir)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.sigterm.leaving:  # still here: save_strategy best let go of the checkpoint that was asked for
            self._save_checkpoint(model, trial)
            self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        self.refresh_batchnorm()
        partial = partial_folder(folder)
        try:
            with writing(partial, self._what_is_kept):
                self._write_checkpoint(partial, folder)
        except UserError:
            shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _write_checkpoint(self, partial: Path, folder: Path) -> None:
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()  # before anyone writes there
        self.save_model(str(partial), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
        figures = {"initial_share": self.pathways.share_left(), "unreadable": self.unreadable_images()}
        save_pathways(self.pathways, partial, self._common_facts() | figures, write=self.args.should_save)
        if self.args.should_save:
            self._export_callback_states()
            self.state.save_to_json(str(partial / TRAINER_STATE))
        self.accelerator.wait_for_everyone()  # after everyone has written
        if self.args.should_save:
            put_in_place(partial, folder)
        self.accelerator.wait_for_everyone()

    def _what_is_kept(self) -> str:
        checkpoint = last_good_checkpoint(self.args.output_dir)
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
        return f"{kept}; make room and start again, and training goes on from there."

    def _common_facts(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint that it goes on from."""
        stages = [{"stage": span.stage, "steps": span.steps} for span in self.spans]
        args = self.args
        return {
            "method": args.method,
            "stages": stages,
            **{name: getattr(args, name) for name in OF_THE_METHOD},
            "average": args.averages,
            "decays": args.run_decays(stages[-1]["steps"]) if args.averages in ("ema", "debiased_ema") else None,
            "swa_start": args.swa_start if args.averages == "swa" else None,
            "global_batch": self.get_total_train_batch_size(args),
        }

    def check_resumed(self) -> None:
        """Compare the checkpoint that was loaded with this run.

        With `resume_anyway` other settings are a warning each. What a checkpoint has no state for, or what its past
        decides, stays an error: method, average, adapters, and the stages up to the present one.

        Raises:
            UserError: method, average, stages, decays or the global batch differ, which would make another method or
                run of the two.
        """
        for key, here in self._common_facts().items():
            there = self._resumed_facts.get(key)
            if there == here or (key == "global_batch" and there is None):  # earlier versions did not note it
                continue
            found = f"the checkpoint was made with {key} {there}, this run has {here}"
            if not self._resume_anyway:
                raise UserError(
                    f"{found}: resume with the same arguments, or start from the checkpoint's model in another "
                    "output_dir."
                )
            if key in ("method", "average", "lora_rank", "lora_alpha") or not self._same_past(key, there, here):
                raise UserError(f"{found}, with which its state cannot be gone on from: start in another output_dir.")
            logger.warning(f"Resumed all the same: {found}.")

    def _same_past(self, key: str, there: Any, here: Any) -> bool:
        """Whether the stages before the present one were as long as they would be in this run."""
        if key != "stages":
            return True
        index = stage_at(self.spans, max(self.state.global_step - 1, 0))[0]
        before = stage_at([Span(**stage) for stage in there], max(self.state.global_step - 1, 0))[0]
        return index == before and there[:index] == here[:index] and there[index]["stage"] == here[index]["stage"]

    def _export_callback_states(self) -> None:
        for callback in self.callback_handler.callbacks + [self.control]:
            if not isinstance(callback, ExportableState):
                continue
            name, state = type(callback).__name__, callback.state()
            if isinstance(self.state.stateful_callbacks[name], list):
                self.state.stateful_callbacks[name].append(state)
            else:
                self.state.stateful_callbacks[name] = state

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(_whole(resume_from_checkpoint))
        self._resumed_facts = load_pathways(self.pathways, folder)
        # Trainer would pass over it in silence, and start the schedule again in the middle of a stage.
        if missing := [name for name in (OPTIMIZER_NAME, SCHEDULER_NAME) if not (folder / name).is_file()]:
            raise UserError(
                f"{folder} cannot be gone on from: it has no {' and no '.join(missing)}, since save_only_model keeps "
                "the model alone. Leave save_only_model out, and start again in another output_dir or with the "
                "checkpoints of this one removed."
            )
        for reader in self._readers():
            reader.note(self._resumed_facts.get("unreadable", {}))

    def _init_training_state(
        self, max_steps: int, per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        trained = super()._init_training_state(max_steps, per_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None:
            self._find_best_model(Path(resume_from_checkpoint))
        return trained

    def _find_best_model(self, checkpoint: Path) -> None:
        """Trainer's state has the path that the best checkpoint was written to; the run may have been moved since."""
        recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE)).best_model_checkpoint
        if recorded is None:
            return
        places = [Path(folder, Path(recorded).name) for folder in (self.args.output_dir, checkpoint.parent)]
        best = next((str(place) for place in places if place.is_dir()), None)
        self.state.best_model_checkpoint = best
        if best is not None and best != recorded:
            logger.warning(f"The best checkpoint was moved, to {best}.")
        if best is None:  # nothing to fall back on: the best is that of the steps to come
            self.state.best_metric = self.state.best_global_step = None

    def _load_best_model(self) -> None:
        logger.info(f"Loading the best model, {self.state.best_model_checkpoint} ({self.state.best_metric}).")
        load_pathways(self.pathways, _whole(self.state.best_model_checkpoint))
        self.release()
        self.enter_stage(step_of(self.state.best_model_checkpoint) - 1, new=False)
        self.batchnorm_step = self.state.global_step


def _whole(checkpoint: str) -> str:
    if problem := damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged: {problem}. Remove it, and start again from an earlier one.")
    return checkpoint
