"""The stages that a method is made of, and the hooks that lead `Trainer`'s loop through them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from deft_hf.methods.core.pathways import Stage

if TYPE_CHECKING:
    from deft_hf.trainer.trainer import DeFTTrainer

METHODS: dict[str, tuple[Stage, ...]] = {
    "deft": ("warmup", "decoupled"),
    "joint": ("joint",),
    "frozen": ("warmup",),
    "lp_ft": ("warmup", "joint"),
}


class Span(NamedTuple):
    """A stage and the optimizer steps that it lasts."""

    stage: Stage
    steps: int


def stage_at(spans: Sequence[Span], step: int) -> tuple[int, Span]:
    """Index and span of the stage that the optimizer step after `step` belongs to; the last one after its end."""
    end = 0
    for index, span in enumerate(spans):
        end += span.steps
        if step < end:
            return index, span
    return len(spans) - 1, spans[-1]


def _pass_over(scheduler: Any) -> None:
    """Let a schedule move on over a skipped step, at which Trainer holds it: stages count those too."""
    if isinstance(scheduler, LambdaLR):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the first may be skipped
            scheduler.step()


class StageCallback(TrainerCallback):
    """Hooks of the loop that `Trainer` offers to callbacks only."""

    def __init__(self, trainer: DeFTTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.release()
        # Not at the end of the step before, which is still to be logged, evaluated and saved as what it was.
        if state.global_step and self._index(state.global_step) != self._index(state.global_step - 1):
            self.trainer.enter_stage(state.global_step, new=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.count_step()
        if not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.accelerator.optimizer_step_was_skipped:
            _pass_over(kwargs["lr_scheduler"])
        keeps = control.should_save or control.should_evaluate or control.should_training_stop
        if keeps or control.should_log:
            self.trainer.check_finite(parameters=keeps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save or control.should_evaluate:
            self.trainer.check_finite(parameters=True)

    def _index(self, step: int) -> int:
        return stage_at(self.trainer.spans, step)[0]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.refresh_batchnorm()
