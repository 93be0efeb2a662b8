"""BatchNorm statistics of the models that are evaluated and saved, brought up to the present step."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import nn

from deft_hf.methods.core.batchnorm import average_over_ranks, batchnorm_modules, reestimate
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.launchers import Shards
from deft_hf.trainer.loaders import Loaders
from deft_hf.utils.randomness import own_randomness


class BatchNormRefresher:
    """Re-estimates statistics on source batches, or averages over ranks what training left; once a step at most.

    Args:
        pathways (`DualPathway`):
            The components.
        args (`DeFTTrainingArguments`):
            `batchnorm`, `batchnorm_batches`, batch size and seed.
        shards (`Shards`):
            Gathers components that are spread over ranks.
        loaders (`Loaders`):
            Makes the source batches.
        train_dataset (`Dataset`):
            Source images.

    Attributes:
        step (`int`):
            The optimizer step that the statistics are of.
    """

    def __init__(
        self, pathways: DualPathway, args: DeFTTrainingArguments, shards: Shards, loaders: Loaders, train_dataset: Any
    ) -> None:
        self.pathways = pathways
        self.args = args
        self.shards = shards
        self.loaders = loaders
        self.train_dataset = train_dataset
        self.step = 0

    def models(self) -> dict[str, nn.Module]:
        """The components that are scored, by the label that their metrics carry."""
        models = {"": self.pathways.exported}
        if self.args.evaluate_usual and not self.pathways.exports_usual:
            models["usual_"] = self.pathways.usual
        return models

    def is_due(self, step: int) -> bool:
        """Whether there are statistics, and they are of another step than `step`."""
        return step != self.step and bool(batchnorm_modules(self.pathways.exported))

    @torch.no_grad()
    def refresh(self, step: int, changed: bool = False, in_a_hurry: bool = False) -> None:
        """Bring the statistics up to `step`, the same on every rank.

        Args:
            step (`int`):
                Optimizer steps taken so far.
            changed (`bool`, *optional*, defaults to `False`):
                The weights were changed since, though no step was taken.
            in_a_hurry (`bool`, *optional*, defaults to `False`):
                Leave out what takes long, the re-estimation, which stays due.
        """
        postponed = in_a_hurry and self.args.batchnorm == "reestimate"
        if postponed or not (changed or self.is_due(step)) or not batchnorm_modules(self.pathways.exported):
            return
        self.step = step
        for model in self.models().values():
            if self.args.batchnorm == "reestimate":
                whole = self.shards.whole(model)
                with own_randomness(self.args.seed, self.args.device):
                    batches = self.loaders.source_batches(self.train_dataset)
                    images = (batch["pixel_values"].to(self.args.device) for batch in batches)
                    reestimate(
                        whole, islice(images, self.args.batchnorm_batches), self.pathways.family.objective.forward
                    )
                for own, new in zip(model.buffers(), whole.buffers(), strict=True):
                    own.copy_(new)
            else:
                average_over_ranks(model)
