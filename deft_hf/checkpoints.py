"""What `checkpoint-N/` holds beside Trainer's own state, and how it comes into being whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from deft_hf.arguments import OF_THE_METHOD
from deft_hf.errors import UserError
from deft_hf.method.adapters import has_adapters
from deft_hf.method.pathways import DualPathway

logger = logging.get_logger(__name__)

USUAL = "usual.safetensors"
GENERALIZED = "generalized.safetensors"
INITIAL = "initial.safetensors"
STATE = "deft_state.json"


def save_pathways(pathways: DualPathway, folder: str | Path, facts: dict[str, Any]) -> None:
    """Write what resuming needs beside the exported model: the other component, initialisation, counters.

    Args:
        folder: a folder that holds the exported model already.
        facts: plain values to keep beside the counters: what a resumed run must have in common, and figures for
            people.
    """
    folder = Path(folder)
    for name, component in _not_exported(pathways).items():
        save_model(component, folder / name)
    save_file({name: tensor.contiguous() for name, tensor in pathways.initial.items()}, folder / INITIAL)
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
            load_model(component, folder / name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} holds another model or is damaged: {error}") from error
    device = pathways.updates.device if pathways.initial_at_hand else "cpu"
    initial = load_file(folder / INITIAL, device=str(device))
    # In the model's order, which the file does not keep: sums over all tensors then round alike.
    pathways.initial = {name: initial[name] for name, _ in pathways.usual.named_parameters() if name in initial}
    pathways.updates.fill_(facts["updates"])
    return facts


def _load_exported(pathways: DualPathway, folder: Path) -> None:
    # Through `from_pretrained`, which undoes what `save_pretrained` renamed.
    restored, keys = type(pathways.usual).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    lost = [*keys["missing_keys"], *keys["mismatched_keys"]]
    if lost:
        raise ValueError(f"{len(lost)} tensors are missing, {lost[0]} first")
    pathways.exported.load_state_dict(restored.state_dict())


def partial_folder(folder: Path) -> Path:
    """Where `folder` is written before it takes its name, so that a crash leaves no half checkpoint under it."""
    return folder.with_name(f".{folder.name}.partial")


def put_in_place(partial: Path, folder: Path) -> None:
    """Flush a folder that is complete, and give it its name."""
    for path in [path for path in partial.rglob("*") if path.is_file()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


class CheckpointMixin:
    """The saving and loading methods of `transformers.Trainer`, for the components of a `DualPathway`."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The exported model as a plain Hub folder, without pickles."""
        if not self.args.should_save:
            return
        folder = self.args.output_dir if output_dir is None else output_dir
        self.generalized_model.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.refresh_batchnorm()
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        partial = partial_folder(folder)
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()  # before anyone writes there
        self.save_model(str(partial), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
        if self.args.should_save:
            save_pathways(self.pathways, partial, self._common_facts() | {"initial_share": self.pathways.share_left()})
            self._export_callback_states()
            self.state.save_to_json(str(partial / "trainer_state.json"))
        self.accelerator.wait_for_everyone()  # after everyone has written
        if self.args.should_save:
            put_in_place(partial, folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

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
        }

    def check_resumed(self) -> None:
        """Compare the checkpoint that was loaded with this run.

        Raises:
            UserError: method, average, stages or decays differ, which would make another method of the two.
        """
        for key, here in self._common_facts().items():
            there = self._resumed_facts.get(key)
            if there != here:
                raise UserError(
                    f"the checkpoint was made with {key} {there}, this run has {here}: resume with the same "
                    "arguments, or start from the checkpoint's model in another output_dir."
                )

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
        self._resumed_facts = load_pathways(self.pathways, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        logger.info(f"Loading the best model, {self.state.best_model_checkpoint} ({self.state.best_metric}).")
        load_pathways(self.pathways, self.state.best_model_checkpoint)
        self.enter_stage(self.state.best_global_step - 1, new=False)
        self.batchnorm_step = self.state.global_step
