"""Leads a run through the stages of its method."""

from __future__ import annotations

import math
import sys
from typing import Any

from transformers.utils import logging

from deft_hf.methods.composition import Composition
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.stages import PARTS, Span, Stage, stage_at
from deft_hf.trainer.optimizer import decay_as_in
from deft_hf.trainer.optimizer_state import reset_optimizer_state

logger = logging.get_logger(__name__)


class StageRunner:
    """Which stage a step belongs to, and what entering one and stepping in it does.

    Args:
        pathways (`DualPathway`):
            What is trained.
        composition (`Composition`):
            The method and its ingredients.

    Attributes:
        spans (`list[Span]`):
            The stages with their lengths, once they are known.
    """

    def __init__(self, pathways: DualPathway, composition: Composition) -> None:
        self.pathways = pathways
        self.composition = composition
        self.spans: list[Span] = []

    def with_all_stages(self, values: tuple, accumulation: int) -> tuple:
        """What `Trainer.set_initial_training_values` returns, of the last stage alone, for all of them.

        Args:
            values (`tuple`):
                As `Trainer` has them.
            accumulation (`int`):
                Batches of an optimizer step.
        """
        epochs, per_epoch, examples, samples, batch, batches_per_epoch, last = values
        total = self.set_length(last)
        if epochs == sys.maxsize:  # data without a length: one epoch that has all steps
            per_epoch, batches_per_epoch = total, total * accumulation
        else:
            epochs = math.ceil(total / per_epoch)
        return epochs, per_epoch, examples, samples + (total - last) * batch, batch, batches_per_epoch, total

    def set_length(self, last_steps: int) -> int:
        """Lay out the stages, the last one lasting `last_steps`; returns the optimizer steps of all."""
        self.spans = self.composition.spans(last_steps)
        return sum(span.steps for span in self.spans)

    def begin(self, step: int, optimizer: Any) -> None:
        """Start, or resume after, optimizer step `step`."""
        if step == 0:
            self._warn_of_a_model_that_hardly_moves()
        self.enter(max(step - 1, 0), new=step == 0, optimizer=optimizer)

    def move_on(self, step: int, optimizer: Any) -> None:
        """Enter the next stage, where the optimizer step after `step` is its first."""
        if step and stage_at(self.spans, step)[0] != stage_at(self.spans, step - 1)[0]:
            self.enter(step, new=True, optimizer=optimizer)

    def enter(self, step: int, new: bool, optimizer: Any = None) -> None:
        """Switch to the stage that the optimizer step after `step` belongs to.

        Args:
            step (`int`):
                Optimizer steps taken so far.
            new (`bool`):
                Whether the stage starts here, from a snapshot, or is resumed.
            optimizer (`torch.optim.Optimizer`, *optional*):
                Optimizer as prepared by Accelerate; needed if a later stage starts.
        """
        index, span = stage_at(self.spans, step)
        self.pathways.enter(span.stage, self.composition.rule(span.steps))
        if optimizer is not None:
            decay_as_in(span.stage, optimizer)
        if new:
            self.pathways.snapshot()
            if index:
                # A stage is an optimisation of its own: no momentum is carried over.
                reset_optimizer_state(optimizer)
        self.composition.enter(self.pathways, span, new)

    def at(self, step: int) -> Stage:
        """The stage of the optimizer step after `step`."""
        return stage_at(self.spans, step)[1].stage

    def in_last_stage(self, step: int) -> bool:
        """Whether the optimizer step number `step`, from 1, was one of the last stage, which the method is about."""
        return stage_at(self.spans, step - 1)[0] == len(self.spans) - 1

    def summary(self) -> str:
        """The stages and their lengths, in words."""
        lengths = " + ".join(f"{span.steps:,} ({span.stage})" for span in self.spans)
        total = sum(span.steps for span in self.spans)
        return f"{self.composition.method.name}: {lengths} = {total:,} optimizer steps; max_steps is the last stage's"

    def before_step(self) -> None:
        """Look at the gradients before the optimizer uses them."""
        self.composition.before_step(self.pathways)

    def after_step(self) -> None:
        """What follows an optimizer step that was not skipped."""
        self.composition.after_step(self.pathways)

    def _warn_of_a_model_that_hardly_moves(self) -> None:
        steps = self.spans[-1].steps
        rule = self.composition.rule(steps)
        if rule is None or self.composition.exports_usual:
            return
        left = {part: rule.share_left(part, steps) for part in PARTS}
        shares = {part: f"{share:.0%}" for part, share in left.items() if share > 0.5}
        if shares:
            logger.warning(
                f"The exported model will hardly have moved: of the initialisation {shares} will be left after "
                f"{steps} steps. Lower ema_decay, or leave ema_decay_steps at the length that it is quoted at."
            )
