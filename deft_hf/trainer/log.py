"""What `DeFTTrainer` says of a run while it trains; a run that diverges is ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from deft_hf.data.unreadable import Reader
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.shards import piece, sum_over_pieces
from deft_hf.methods.core.stages import PARTS, stage_at
from deft_hf.trainer.stages import StageRunner
from deft_hf.utils.errors import TrainingDiverged
from deft_hf.utils.integrity import last_good_checkpoint


class RunLog:
    """Logs losses, rates, distances and unreadable images, summed over ranks only when there is something to log.

    Args:
        pathways (`DualPathway`):
            What is trained.
        stages (`StageRunner`):
            Where the run is.
        accelerator (`Accelerator`):
            Sums over ranks.
        output_dir (`Path`):
            Where checkpoints lie, to name the last good one.
        readers (`Callable`):
            The readers of the data sets in use.
    """

    def __init__(
        self,
        pathways: DualPathway,
        stages: StageRunner,
        accelerator: Accelerator,
        output_dir: Path,
        readers: Callable[[], Sequence[Reader]],
    ) -> None:
        self.pathways = pathways
        self.stages = stages
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.readers = readers
        self.start(0)

    def start(self, step: int, loss_before: float | None = 0.0) -> None:
        """Start to sum after optimizer step `step`.

        Args:
            step (`int`):
                Optimizer steps taken so far.
            loss_before (`float`, *optional*, defaults to `0.0`):
                Sum of their losses; `None` where a checkpoint does not say.
        """
        self._start, self._loss_before = step, loss_before
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._fresh: set[str] = set()
        self._last_logged = step
        self._rates: dict[str, float] = {}

    def add_losses(self, losses: dict[str, Tensor]) -> None:
        """Note the scalar losses of one batch, by name; `loss`, their sum, is what Trainer itself logs."""
        for name, loss in losses.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + loss
                self._fresh.add(name)

    def count_step(self, optimizer: Any) -> None:
        """Note an optimizer step: which losses it had, at which learning rates."""
        for name in self._fresh:
            self._counts[name] = self._counts.get(name, 0) + 1
        self._fresh.clear()
        self._rates = {group["part"]: group["lr"] for group in optimizer.param_groups if "part" in group}

    def complete(self, logs: dict[str, float], step: int) -> None:
        """Add the figures since the last time to what Trainer logs of a training step, in place."""
        if "loss" in logs and "learning_rate" in logs:
            if logs["learning_rate"] == 0 and "decoder" in self._rates:
                # Trainer logs the first group's, the encoder's, which the warm-up does not move.
                logs["learning_rate"] = self._rates["decoder"]
            logs.update(self._figures(step))
            self._sums, self._counts, self._last_logged = {}, {}, step
        if "train_loss" in logs and self._loss_before is not None:
            # Trainer's is the mean over the steps since a resume.
            since = logs["train_loss"] * (step - self._start)
            logs["train_loss"] = (self._loss_before + since) / max(step, 1)

    def loss_so_far(self, logged: float, pending: Tensor) -> float | None:
        """The sum of the losses of all steps, to resume from; every rank calls it.

        Args:
            logged (`float`):
                Sum over the steps since the start that were logged.
            pending (`Tensor`):
                Sum over those that were not yet, on this rank.
        """
        pending = self.accelerator.reduce(pending, reduction="mean")
        return None if self._loss_before is None else self._loss_before + logged + float(pending)

    def _figures(self, step: int) -> dict[str, float]:
        pathways = self.pathways
        figures = {name: float(total) / self._counts[name] for name, total in self._reduced_sums().items()}
        figures["stage"] = 1 + stage_at(self.stages.spans, step - 1)[0]
        shares, distances = pathways.share_left(), pathways.distances(pathways.exported)
        for part in PARTS:
            if part in self._rates:
                figures[f"{part}_learning_rate"] = self._rates[part]
            figures[f"{part}_initial_share"] = shares[part]
            figures[f"{part}_distance"] = distances[part]
        if any(reader.skips for reader in self.readers()):
            figures["unreadable_images"] = sum(map(len, self.unreadable_images().values()))
        if pathways.averages:
            figures |= {f"usual_{part}_distance": d for part, d in pathways.distances(pathways.usual).items()}
        return figures

    def _reduced_sums(self) -> dict[str, Tensor]:
        return {name: self.accelerator.reduce(total, reduction="sum") for name, total in self._sums.items()}

    def check_finite(self, step: int, parameters: bool = False) -> None:
        """Stop a run whose loss, or on request whose parameters, are no longer finite.

        Raises:
            TrainingDiverged: With the pathway, the steps and the last good checkpoint.
        """
        figures = self._reduced_sums()
        if parameters:
            trained = list(self.pathways.usual.parameters())
            norms = torch._foreach_norm([piece(parameter) for parameter in trained])
            figures["the parameters' norm"] = sum_over_pieces(torch.stack(norms).sum(), trained[0])
        bad = {name: float(total) for name, total in figures.items() if not torch.isfinite(total)}
        if not bad:
            return
        checkpoint = last_good_checkpoint(self.output_dir)
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        name, value = next(iter(bad.items()))
        raise TrainingDiverged(
            f"{name} became {value} between steps {self._last_logged} and {step}; {kept}. "
            "Lower the learning rate, set max_grad_norm, or look for broken images."
        )

    def unreadable_images(self) -> dict[str, list[str]]:
        """By domain, the ids of the images that no rank could read so far; to be called on every rank."""
        readers = [reader for reader in self.readers() if reader.skips]
        for reader in readers:
            for missing in reader.missing:
                missing |= (
                    self.accelerator.reduce(missing.int().to(self.accelerator.device), reduction="sum").cpu() > 0
                )
        found: dict[str, set[str]] = {}
        for reader in readers:
            for name, ids in reader.found().items():
                found.setdefault(name, set()).update(ids)
        return {name: sorted(ids) for name, ids in found.items()}
