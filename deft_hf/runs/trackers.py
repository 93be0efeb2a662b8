"""Runs of trackers: one for each method, not one that all of them write to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments


@contextmanager
def own_tracker_run(args: TrainingArguments, group: str) -> Iterator[None]:
    """Wrap the training and scoring of a method: Weights & Biases begins a run in it and ends it with it.

    A run that the caller began is left as it is.

    Args:
        args (`TrainingArguments`):
            Arguments of the method.
        group (`str`):
            Name that the runs of all methods are grouped by, unless `WANDB_RUN_GROUP` is set.
    """
    if "wandb" not in (args.report_to or ()):
        yield
        return
    import wandb

    if wandb.run is not None:
        yield
        return
    before = os.environ.get("WANDB_RUN_GROUP")
    os.environ["WANDB_RUN_GROUP"] = before or group
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_RUN_GROUP"]
        if wandb.run is not None:
            wandb.finish()
