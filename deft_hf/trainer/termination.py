"""SIGTERM while training: the step is finished, a checkpoint written, and the process ends with status 143."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)

STATUS = 128 + signal.SIGTERM


class StopOnSigterm(TrainerCallback):
    """Saves and leaves at the end of the step in which SIGTERM came, on every rank in the same one.

    The status is the shell's for this signal, so that a scheduler takes the run for stopped and not for done. A run
    that is restarted resumes from the checkpoint and ends like one that was not stopped.

    Attributes:
        heard (`Tensor`):
            Whether SIGTERM is waited for, a bool in memory that data-loader workers share.
    """

    def __init__(self) -> None:
        self.asked = self.leaving = self._stopping = False
        self.heard = torch.zeros((), dtype=torch.bool).share_memory_()
        self._group: dist.ProcessGroup | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the training; outside it SIGTERM does what it did before."""
        if self._group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Signals reach the ranks at different moments. They agree on the CPU, where nobody waits for a device.
            self._group = dist.new_group(backend="gloo")
        self.asked = self.leaving = self._stopping = False
        if threading.current_thread() is not threading.main_thread():  # Python takes handlers in no other
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        self.heard.fill_(True)
        try:
            yield
        finally:
            self.leaving = False
            self.heard.fill_(False)
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)  # came too late to be heard here

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def is_in_a_hurry(self, args: Any, state: Any) -> bool:
        """Whether SIGTERM leaves seconds for a checkpoint that the run resumes from, and that is for nothing else."""
        goes_on = state.global_step < state.max_steps and not args.save_only_model
        return self.leaving and goes_on and not args.push_to_hub

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        flag = torch.tensor(int(self.asked))
        if self._group is not None:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        if flag:
            self._stopping = control.should_log = control.should_training_stop = True
            ends = state.global_step >= state.max_steps or state.epoch == int(state.epoch)
            self.leaving = control.should_save = not ends

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stopping:
            self.leaving = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.leaving:
            return
        resumes = "the same command resumes from there"
        after = "with save_only_model it cannot be resumed" if args.save_only_model else resumes
        logger.warning(f"SIGTERM: saved step {state.global_step} and stopped; {after}.")
        # Trainer's own way out would load the best model and may remove the checkpoint that was just written.
        raise SystemExit(STATUS)


def out_of_reach(start: Callable[[int], None] | None, heard: Tensor, worker: int) -> None:
    """Start a data-loader worker that leaves SIGTERM to its parent while that waits for it (`StopOnSigterm.heard`).

    Launchers send it to the group of a process and schedulers to every process, and a worker that dies of it takes the
    run along.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    # Not ignored for good: a parent that exits ends the workers that it still has by SIGTERM, and waits for them.
    signal.signal(signal.SIGTERM, lambda *_: None if heard else os._exit(0))
    if start is not None:
        start(worker)
