"""Whether a checkpoint is one of the run that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging

from deft_hf.methods import state_settings
from deft_hf.methods.core.stages import Span, stage_at
from deft_hf.utils.errors import UserError

logger = logging.get_logger(__name__)

# What earlier versions did not write, or what cannot be told of every data set.
_NOT_ALWAYS_KNOWN = ("global_batch", "seed", "train_dataset")


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
        UserError: Method, average, stages, decays, the global batch, the seed or the training data differ, which would
            make another method or run of the two.
    """
    for key, value in here.items():
        known = there.get(key)
        if known == value or (key in _NOT_ALWAYS_KNOWN and (known is None or value is None)):
            continue
        found = f"the checkpoint was made with {key} {known}, this run has {value}"
        if not anyway:
            raise UserError(
                f"{found}: resume with the same arguments, or start from the checkpoint's model in another output_dir."
            )
        if key in state_settings() or (key == "stages" and not _same_past(known, value, spans, step)):
            raise UserError(f"{found}, so its state cannot be resumed: start in another output_dir.")
        logger.warning(f"Resumed anyway: {found}.")


def _same_past(there: Any, here: Any, spans: Sequence[Span], step: int) -> bool:
    """Whether the stages before the present one were as long as they would be in this run."""
    index = stage_at(spans, max(step - 1, 0))[0]
    before = stage_at([Span(**stage) for stage in there], max(step - 1, 0))[0]
    return index == before and there[:index] == here[:index] and there[index]["stage"] == here[index]["stage"]
