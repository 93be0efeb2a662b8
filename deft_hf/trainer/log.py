"""What `DeFTTrainer` says of a run while it trains; a run that diverges is ended."""

from __future__ import annotations

import torch
from torch import Tensor

from deft_hf.data.unreadable import Reader
from deft_hf.methods.core.pathways import PARTS
from deft_hf.methods.core.shards import piece, sum_over_pieces
from deft_hf.trainer.stages import stage_at
from deft_hf.utils.errors import TrainingDiverged
from deft_hf.utils.integrity import last_good_checkpoint


class MonitoringMixin:
    """Logs losses, rates, distances and unreadable images, summed over ranks only when there is something to log."""

    def start_log(self, step: int) -> None:
        """Start to sum after optimizer step `step`."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._fresh: set[str] = set()
        self._last_logged = step
        self.rates: dict[str, float] = {}

    def add_losses(self, losses: dict[str, Tensor]) -> None:
        """Take note of the scalar losses of one batch, by name; `loss`, their sum, is what Trainer itself logs."""
        for name, loss in losses.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + loss
                self._fresh.add(name)

    def count_step(self) -> None:
        """Take note of an optimizer step: which losses it had, at which learning rates."""
        for name in self._fresh:
            self._counts[name] = self._counts.get(name, 0) + 1
        self._fresh.clear()
        self.rates = {group["part"]: group["lr"] for group in self.optimizer.param_groups if "part" in group}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and "learning_rate" in logs:
            logs.update(self._training_figures())
            self._sums, self._counts, self._last_logged = {}, {}, self.state.global_step
        super().log(logs, start_time)

    def _training_figures(self) -> dict[str, float]:
        pathways = self.pathways
        figures = {name: float(total) / self._counts[name] for name, total in self._reduced_sums().items()}
        figures["stage"] = 1 + stage_at(self.spans, self.state.global_step - 1)[0]
        shares, distances = pathways.share_left(), pathways.distances(pathways.exported)
        for part in PARTS:
            if part in self.rates:
                figures[f"{part}_learning_rate"] = self.rates[part]
            figures[f"{part}_initial_share"] = shares[part]
            figures[f"{part}_distance"] = distances[part]
        if any(reader.skips for reader in self._readers()):
            figures["unreadable_images"] = sum(map(len, self.unreadable_images().values()))
        if pathways.averages:
            figures |= {f"usual_{part}_distance": d for part, d in pathways.distances(pathways.usual).items()}
        return figures

    def _reduced_sums(self) -> dict[str, Tensor]:
        return {name: self.accelerator.reduce(total, reduction="sum") for name, total in self._sums.items()}

    def check_finite(self, parameters: bool = False) -> None:
        """Stop a run whose loss, or on request whose parameters, are no longer finite.

        Raises:
            TrainingDiverged: with the pathway, the steps and the last good checkpoint.
        """
        figures = self._reduced_sums()
        if parameters:
            parameters = list(self.pathways.usual.parameters())
            norms = torch._foreach_norm([piece(parameter) for parameter in parameters])
            figures["the parameters' norm"] = sum_over_pieces(torch.stack(norms).sum(), parameters[0])
        bad = {name: float(total) for name, total in figures.items() if not torch.isfinite(total)}
        if not bad:
            return
        step = self.state.global_step
        checkpoint = last_good_checkpoint(self.args.output_dir)
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        name, value = next(iter(bad.items()))
        raise TrainingDiverged(
            f"{name} became {value} between steps {self._last_logged} and {step}; {kept}. "
            "Lower the learning rate, set max_grad_norm, or look for broken images."
        )

    def _readers(self) -> list[Reader]:
        named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        return [data.reader for data in (self.train_dataset, *named.values()) if hasattr(data, "reader")]

    def unreadable_images(self) -> dict[str, list[str]]:
        """By domain, the ids of the images that no rank could read so far; to be called on every rank."""
        readers = [reader for reader in self._readers() if reader.skips]
        for reader in readers:
            for missing in reader.missing:
                missing |= self.accelerator.reduce(missing.int().to(self.args.device), reduction="sum").cpu() > 0
        found: dict[str, set[str]] = {}
        for reader in readers:
            for name, ids in reader.found().items():
                found.setdefault(name, set()).update(ids)
        return {name: sorted(ids) for name, ids in found.items()}
