"""Whether a checkpoint is one of the run that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from deft_hf.methods import state_settings
from deft_hf.methods.core.stages import Span, stage_at
from deft_hf.trainer.adapters import ADAPTERS
from deft_hf.utils.errors import UserError

logger = logging.get_logger(__name__)

# What earlier versions did not write, or what cannot be told of every data set.
_NOT_ALWAYS_KNOWN = ("global_batch", "seed", "train_dataset", "pathways", ADAPTERS)
# What earlier versions did not write either, where `None` is a value as others are.
_LOSS = ("class_weights", "ohem_threshold", "dice_weight", "ohem_min_kept")


def check_model(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Compare the adapters of a checkpoint and of the model that resumes from it, before any tensor is read.

    Args:
        there (`Mapping[str, Any]`):
            The checkpoint's `deft_state.json`.
        here (`Mapping[str, Any]`):
            As [`~deft_hf.methods.composition.Composition.of_model`] returns it.
        folder (`Path`):
            The checkpoint.

    Raises:
        UserError: They are others, which a state dict shows in part only: not by its `lora_alpha`.
    """
    if ADAPTERS in there and there[ADAPTERS] != here.get(ADAPTERS):
        raise UserError(
            f"model: {folder} was made with the adapters ({there[ADAPTERS]}), this run has "
            f"({here.get(ADAPTERS, 'none')}): pass a PeftModel of the same LoraConfig, or start in another output_dir."
        )


def check_resumed(
    there: Mapping[str, Any], here: Mapping[str, Any], spans: Sequence[Span], step: int, anyway: bool
) -> None:
    """Compare what a checkpoint was made with and what this run has.

    With `anyway` other settings are a warning each. What a checkpoint has no state for, or what its past decides,
    stays an error: method, average, adapters, and the stages up to the present one.

    Args:
        there (`Mapping[str, Any]`):
            The checkpoint's `deft_state.json`.
        here (`Mapping[str, Any]`):
            What the two must have in common, as this run has it.
        spans (`Sequence[Span]`):
            The stages of this run.
        step (`int`):
            Optimizer steps taken so far.
        anyway (`bool`):
            Whether to resume from other settings.

    Raises:
        UserError: Method, average, stages, decays, the loss, the global batch, the seed or the training data differ,
            which would make another method or run of the two. One message names all that do.
    """
    others: dict[str, str] = {}
    for key, value in here.items():
        known = there.get(key)
        if known == value or (key in _NOT_ALWAYS_KNOWN and (known is None or value is None)):
            continue
        if key not in _LOSS or key in there:
            others[key] = f"{key} {known}, this run has {value}"
    if others and not anyway:
        raise UserError(
            f"the checkpoint was made with {'; with '.join(others.values())}: resume with the same arguments, or "
            "start from the checkpoint's model in another output_dir."
        )
    for key, other in others.items():
        found = f"the checkpoint was made with {other}"
        if key in state_settings() or (key == "stages" and not _same_past(there.get(key), here[key], spans, step)):
            raise UserError(f"{found}, so its state cannot be resumed: start in another output_dir.")
        logger.warning(f"Resumed anyway: {found}.")


def restore_patience(state: TrainerState, callbacks: Sequence[TrainerCallback]) -> bool:
    """Let early stopping count on from where the checkpoint was; `Trainer` starts again from 0.

    Args:
        state (`TrainerState`):
            As it was loaded; its best score is None where that checkpoint is lost.
        callbacks (`Sequence[TrainerCallback]`):
            Callbacks of the run.

    Returns:
        `bool`: whether patience was at an end there, and the run with it.
    """
    if state.best_metric is None:
        return False
    patient = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
    states: Any = state.stateful_callbacks
    found = states.get(EarlyStoppingCallback.__name__, [])
    for callback, kept in zip(patient, found if isinstance(found, list) else [found], strict=False):
        callback.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]
    return any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in patient)


def _same_past(there: Any, here: Any, spans: Sequence[Span], step: int) -> bool:
    """Whether the stages before the present one were as long as they would be in this run."""
    index = stage_at(spans, max(step - 1, 0))[0]
    before = stage_at([Span(**stage) for stage in there], max(step - 1, 0))[0]
    return index == before and there[:index] == here[:index] and there[index]["stage"] == here[index]["stage"]
