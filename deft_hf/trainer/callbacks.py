"""The hooks of the training loop that `Trainer` offers to callbacks only, handed on to the parts of `DeFTTrainer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.utils import logging

from deft_hf.trainer.batchnorm import BatchNormRefresher
from deft_hf.trainer.checkpoints import Checkpoints
from deft_hf.trainer.launchers import Shards
from deft_hf.trainer.log import RunLog
from deft_hf.trainer.stages import StageRunner

logger = logging.get_logger(__name__)

# With an interval above its length (Trainer's default is 500 steps) a run would log nothing, and have no curves.
_LOGS_OF_A_SHORT_RUN = 20


class LoopCallback(TrainerCallback):
    """Calls each part at its place in the loop.

    Args:
        accelerator (`Accelerator`):
            Knows whether an optimizer step was skipped.
        stages (`StageRunner`):
            Told of begin, steps and end.
        log (`RunLog`):
            Told of steps; checks that the loss is finite.
        checkpoints (`Checkpoints`):
            Compares a resumed run with its checkpoint.
        batchnorm (`BatchNormRefresher`):
            Told of steps.
        shards (`Shards`):
            Lets go of gathered copies after a step.
        global_batch (`Callable`):
            Images of an optimizer step over all ranks.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        stages: StageRunner,
        log: RunLog,
        checkpoints: Checkpoints,
        batchnorm: BatchNormRefresher,
        shards: Shards,
        global_batch: Callable[[], int],
    ) -> None:
        self.accelerator = accelerator
        self.stages = stages
        self.log = log
        self.checkpoints = checkpoints
        self.batchnorm = batchnorm
        self.shards = shards
        self.global_batch = global_batch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the log and the first stage, or check and resume the one that a checkpoint is of."""
        if state.is_world_process_zero and len(self.stages.spans) > 1:
            print(self.stages.summary(), flush=True)
        self.log.start(state.global_step, self.checkpoints.loss_before if state.global_step else 0.0)
        self.batchnorm.step = -1 if state.global_step and self.checkpoints.statistics_due else state.global_step
        if state.global_step:
            self.checkpoints.check_resumed(state.global_step, self.global_batch())
            self.checkpoints.rotate_resumed(state)
        self.stages.begin(state.global_step, kwargs["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of gathered copies, and enter the next stage."""
        self.shards.release()
        # Not at the end of the step before, which is still to be logged, evaluated and saved as what it was.
        self.stages.move_on(state.global_step, kwargs["optimizer"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The method looks at the gradients."""
        self.stages.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step; the method and the average follow it, unless the loss scaler skipped it."""
        self.log.count_step(kwargs["optimizer"])
        if not self.accelerator.optimizer_step_was_skipped:
            self.stages.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log a run that is too short for its interval; check that it is finite where it is logged, saved, scored."""
        if args.logging_strategy == "steps" and state.logging_steps > state.max_steps:
            last = state.global_step >= state.max_steps
            control.should_log |= last or state.global_step % math.ceil(state.max_steps / _LOGS_OF_A_SHORT_RUN) == 0
        if self.accelerator.optimizer_step_was_skipped:
            _move_on_over_a_skipped_step(kwargs["lr_scheduler"])
        keeps = control.should_save or control.should_evaluate or control.should_training_stop
        if keeps or control.should_log:
            self.log.check_finite(state.global_step, parameters=keeps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As at the end of a step."""
        if control.should_save or control.should_evaluate:
            self.log.check_finite(state.global_step, parameters=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave BatchNorm statistics that fit the last step."""
        self.stages.pathways.step = None
        self.batchnorm.refresh(state.global_step)
        if not self.stages.in_last_stage(state.global_step):
            logger.warning(
                f"Training stopped at step {state.global_step}, within the warm-up: the method's own stage never ran, "
                "and the encoder is the pretrained one."
            )


def _move_on_over_a_skipped_step(scheduler: Any) -> None:
    """`Trainer` holds the schedule at a skipped step; stages count those too."""
    if isinstance(scheduler, LambdaLR):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the first may be skipped
            scheduler.step()
