"""What a run will need, said before its first step, and how long it will still take, said while it runs."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback

from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.stages import Span, Stage, stage_at
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS
from deft_hf.utils.integrity import checkpoints
from deft_hf.utils.machine import free_space, in_units, peak_memory

# Passes of encoder and decoder in a step of each stage, as if both cost the same: until a stage was measured itself.
_PASSES: dict[Stage, float] = {
    "warmup": 4,
    "measure": 6,
    "joint": 6,
    "split": 4.5,
    "alternating": 4.5,
    "decoupled": 9,
}
_MEASURED = 3  # steps of a stage before the first estimate; the first of them is slower, and left out
_RECENT = 50  # steps that an estimate is made of
_TIGHT = 1.25  # of what is needed, where the need of an optimizer is not known exactly


class Forecast:
    """How long the methods of a recipe take, learned from their steps. One for all methods, which share the data.

    Args:
        methods (`Iterable[DeFTTrainingArguments]`):
            Arguments of each method, in their order.
    """

    def __init__(self, methods: Iterable[DeFTTrainingArguments]) -> None:
        self.to_come = [args for args in methods if not (args.folder / METRICS).is_file()]
        self.seconds: dict[Stage, float] = {}
        self.steps, self.pauses = 0, 0.0  # pauses are evaluations and checkpoints, in seconds

    def watch(self, trainer: DeFTTrainer, images: Mapping[str, int]) -> TrainerCallback:
        """The callback that speaks while the next method trains.

        Args:
            trainer (`DeFTTrainer`):
                Trainer of the method, before it trains.
            images (`Mapping[str, int]`):
                Images of each source domain.
        """
        self.to_come = [args for args in self.to_come if args.folder != trainer.args.folder]
        return _Watch(self, trainer, images)

    def left(self, spans: Sequence[Span], step: int = 0) -> float | None:
        """Seconds that the steps after `step` take, with their evaluations and checkpoints; `None` if not known yet.

        Args:
            spans (`Sequence[Span]`):
                The stages of a method.
            step (`int`, *optional*, defaults to `0`):
                Optimizer steps taken so far.
        """
        if not self.seconds:
            return None
        known = max(self.seconds, key=lambda stage: _PASSES[stage])
        seconds, end = 0.0, 0
        for stage, steps in spans:
            end += steps
            each = self.seconds.get(stage, self.seconds[known] * _PASSES[stage] / _PASSES[known])
            seconds += max(min(steps, end - step), 0) * (each + self.pauses / max(self.steps, 1))
        return seconds

    def others(self, last_steps: int) -> float:
        """Seconds that the methods after this one take, once something was measured; their last stages are as long."""
        return sum(self.left(args.spans(last_steps)) or 0.0 for args in self.to_come)


class _Watch(TrainerCallback):
    """Looks at the clock after each step of one method. It touches neither the run's state nor any random numbers."""

    def __init__(self, forecast: Forecast, trainer: DeFTTrainer, images: Mapping[str, int]) -> None:
        self.forecast = forecast
        self.stages = trainer.stages
        self.images = images
        self.batch = trainer.get_total_train_batch_size(trainer.args)
        self.processes = trainer.accelerator.num_processes
        self.disk = disk_use(trainer.pathways, trainer.args)  # while every process has whole parameters
        self._stage, self._steps = -1, 0
        self._mark: float | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what is ahead, and refuse it where the disk cannot hold it."""
        if len(self.stages.spans) == 1:  # of several the trainer says it
            say(f"{args.method}: {state.max_steps:,} optimizer steps")
        rates = args.learning_rates()
        parts = {part: rates[part] for part in ("encoder", "decoder") if part == "decoder" or args.trains_encoder()}
        shares = [args.per_device_train_batch_size, args.gradient_accumulation_steps, self.processes]
        kept = checkpoints_at_once(args, state)
        needed = kept * self.disk.checkpoint + self.disk.model
        free = _on_every_rank(free_space(args.folder) + sum(map(_size, checkpoints(args.folder))))
        say(
            f"  images: {', '.join(f'{name} {count:,}' for name, count in self.images.items())}; "
            f"{self.batch} a step (batch {shares[0]} x accumulation {shares[1]} x processes {shares[2]})\n"
            f"  rates:  {', '.join(f'{part} {rate:g}' for part, rate in parts.items())}\n"
            f"  disk:   {in_units(needed)} (checkpoints: {kept} of {in_units(self.disk.checkpoint)} at once, "
            f"model: {in_units(self.disk.model)}), {in_units(free)} free"
        )
        self._check(args.folder, kept, needed, free)

    def _check(self, folder: Path, kept: int, needed: int, free: int) -> None:
        way_out = "make room, choose another training.output_dir, or lower training.save_total_limit"
        if needed > free:
            raise UserError(
                f"training.output_dir: {folder} has room for {in_units(free)}, and this run needs {in_units(needed)}: "
                f"{kept} checkpoints of {in_units(self.disk.checkpoint)} at once and the model of "
                f"{in_units(self.disk.model)}; {way_out}."
            )
        methods = 1 + len(self.forecast.to_come)
        if needed * methods * _TIGHT > free:
            what = "this run" if methods == 1 else f"the {methods} methods from here on"
            say(
                f"warning: training.output_dir: room is tight, {in_units(free)} for about "
                f"{in_units(needed * methods)} of {what}; {way_out}."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time of the step; say how much is left after the first steps of a stage and at every tenth."""
        step, spans = state.global_step, self.stages.spans
        index, (stage, _) = stage_at(spans, step - 1)
        if index != self._stage:
            self._stage, self._steps, self._mark = index, 0, None
            self._recent.clear()
        self._steps += 1
        if self._steps <= _MEASURED and args.device.type in ("cuda", "mps", "xpu"):
            torch.accelerator.synchronize()  # later on the host waits for the device by itself
        now = time.perf_counter()
        if self._mark is not None:
            self._recent.append(now - self._mark)
            self.forecast.steps += 1
        self._mark = now
        if len(self._recent) >= _MEASURED - 1:
            self.forecast.seconds[stage] = mean(self._recent)
        left = self.forecast.left(spans, step)
        if left is None or step >= state.max_steps:
            return
        begins = self._steps == _MEASURED
        if begins or step % math.ceil(state.max_steps / 10) == 0:
            others = self.forecast.others(spans[-1].steps)
            more = f"; {duration(left + others)} with the other methods" if self.forecast.to_come else ""
            peak = peak_memory() if begins else None
            memory = f"; {in_units(peak)} of memory at the peak" if peak else ""
            say(f"{args.method}: step {step:,} of {state.max_steps:,}, about {duration(left)} left{more}{memory}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep an evaluation out of the time of a step."""
        self._pause()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep a checkpoint out of the time of a step."""
        self._pause()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is scored from here on is no pause of the training."""
        self._mark = None

    def _pause(self) -> None:
        if self._mark is not None:
            now = time.perf_counter()
            self.forecast.pauses += now - self._mark
            self._mark = now


class DiskUse(NamedTuple):
    """Bytes of one checkpoint and of the model that is exported in the end."""

    checkpoint: int
    model: int


def disk_use(pathways: DualPathway, args: DeFTTrainingArguments) -> DiskUse:
    """What a run writes, from the sizes of its tensors; of an optimizer of unknown state, the least.

    Args:
        pathways (`DualPathway`):
            The components, whole.
        args (`DeFTTrainingArguments`):
            Arguments of the run.
    """
    model = _bytes(pathways.usual.state_dict().values())
    trained = {name: tensor for name, tensor in pathways.usual.named_parameters() if tensor.requires_grad}
    moved = [
        tensor
        for name, tensor in trained.items()
        if args.trains_encoder() or pathways.family.part_of(name) == "decoder"
    ]
    models = 1 + pathways.averages + pathways.exports_copy
    state = 0 if args.save_only_model else _tensors_each(args) * _bytes(moved)
    return DiskUse(models * model + _bytes(trained.values()) + state, model)


def checkpoints_at_once(args: DeFTTrainingArguments, state: Any) -> int:
    """How many checkpoints of a run the disk holds at most, the one that is being written included.

    Args:
        args (`DeFTTrainingArguments`):
            Arguments of the run.
        state (`TrainerState`):
            With its numbers of steps and epochs.
    """
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    written = {
        "no": 0,
        "steps": math.ceil(state.max_steps / max(state.save_steps, 1)),
        "epoch": state.num_train_epochs,
    }.get(strategy, 2)  # `best`: one, and one that replaces it
    limit = args.save_total_limit
    if not limit or limit < 0:
        return written
    best_and_last = 2 if args.load_best_model_at_end else 1
    return min(written, max(limit, best_and_last) + 1)


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _tensors_each(args: DeFTTrainingArguments) -> int:
    """Tensors of a parameter's size that the optimizer keeps, where its name says it."""
    name = str(getattr(args.optim, "value", args.optim))
    if "bit" in name:
        return 0
    return 2 if name.startswith("adam") else int("momentum" in str(args.optim_args or ""))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _on_every_rank(value: int) -> int:
    """The main process's value: one that refuses alone would leave the others waiting."""
    return broadcast_object_list([value])[0]
