"""How `DeFTTrainer` evaluates: a confusion matrix per domain, on BatchNorm statistics that fit the model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from deft_hf.data.collate import MaskTargets
from deft_hf.data.sampling import share
from deft_hf.methods.core.batchnorm import average_over_ranks, batchnorm_modules, reestimate
from deft_hf.scoring.confusion import ConfusionMatrix, Scores
from deft_hf.scoring.inference import predict, score_batches
from deft_hf.trainer.termination import out_of_reach
from deft_hf.utils.errors import UserError

METRICS = ("mean_iou", "mean_accuracy", "pixel_accuracy")


class EvaluationMixin:
    """The evaluation methods of `transformers.Trainer`, on the components of a `DualPathway`.

    Attributes:
        class_names: the classes in the order of the logits.
        scores: the last scores by metric prefix (`eval_<domain>`, `eval_<domain>_usual`), per class too.
        confusions: the confusion matrices behind `scores`, int64 (C, C) by the same keys.
        image_counts: where it is a dict, the confusion matrices of each image of the last evaluation, int64
            (images, C, C), by the same keys. In one process only.
    """

    class_names: list[str]
    scores: dict[str, Scores]
    confusions: dict[str, Tensor]
    image_counts: dict[str, Tensor] | None = None

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> DataLoader:
        if is_training:
            loader = self._training_dataloader(dataset, description, batch_size, *args, **kwargs)
            inner = getattr(loader, "base_dataloader", loader)
            inner.worker_init_fn = partial(out_of_reach, inner.worker_init_fn, self.sigterm.heard)
            return loader
        # Not Accelerate's: by its settings it repeats images, so that the ranks have equally many, or cuts lists.
        own = share(dataset, self.accelerator.process_index, self.accelerator.num_processes)
        return self._loader(own, batch_size, prefetch_factor=self.args.dataloader_prefetch_factor)

    def _loader(self, dataset: Any, batch_size: int, **options: Any) -> DataLoader:
        """A loader for this rank alone."""
        return DataLoader(
            dataset,
            batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            worker_init_fn=partial(out_of_reach, None, self.sigterm.heard),
            **options,
        )

    def _training_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Trainer's loader, with the masks that some objectives are trained on; evaluation has no use for them."""
        if not self.family.objective.needs_masks:
            return super()._get_dataloader(*args, is_training=True, **kwargs)
        if isinstance(self.train_dataset, IterableDataset) and self.accelerator.num_processes > 1:
            # One process would make the batches, and cut the lists of masks as if they were images.
            self.accelerator.dataloader_config.dispatch_batches = False
        collator = self.data_collator
        self.data_collator = MaskTargets(collator)
        try:
            return super()._get_dataloader(*args, is_training=True, **kwargs)
        finally:
            self.data_collator = collator

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, metric_key_prefix: str = "eval", **_: Any
    ) -> EvalLoopOutput:
        """Scores the exported model, and the usual one on request, keeping a confusion matrix and no logits."""
        self.refresh_batchnorm()
        models = {"": self.whole(self.pathways.exported)}
        if self._scores_usual():
            models["usual_"] = self.whole(self.pathways.usual)
        metrics, count = {}, 0
        for label, model in models.items():
            images = None if self.image_counts is None else []
            key = f"{metric_key_prefix}_{label}".removesuffix("_")
            # A loader draws its base seed: a run that looks at itself is to stay the run that does not.
            with own_randomness(self.args.seed, self.args.device):
                matrix, count = self._score(model, dataloader, images)
            self.confusions[key] = matrix.counts.cpu()
            scores = self.scores[key] = matrix.compute(self.class_names)
            if images is not None:
                self.image_counts[key] = torch.stack(images)
            for name in METRICS:
                metrics[f"{metric_key_prefix}_{label}{name}"] = getattr(scores, name)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """Class ids of every image, a list of (H, W) int64 arrays at the labels' size, with the metrics.

        Raises:
            UserError: with more than one process, whose predictions would have to be gathered and sorted.
        """
        if self.accelerator.num_processes > 1:
            raise UserError("predict runs in one process: start it without a launcher.")
        dataloader = self.get_test_dataloader(test_dataset)
        if "labels" not in test_dataset[0]:
            raise UserError("predict scores what it predicts and needs `labels`; without them call generalized_model.")
        output = self.evaluation_loop(dataloader, "Prediction", metric_key_prefix)
        model, predictions = self.generalized_model, []
        for batch in dataloader:
            for pixel_values, labels in zip(batch["pixel_values"], batch["labels"], strict=True):
                image = pixel_values[None].to(self.args.device)
                classes = predict(model, self.family, image, tuple(labels.shape), self.window, self.stride)
                predictions.append(classes[0].cpu().numpy())
        return PredictionOutput(predictions=predictions, label_ids=None, metrics=output.metrics)

    def _score(
        self, model: nn.Module, dataloader: DataLoader, images: list[Tensor] | None = None
    ) -> tuple[ConfusionMatrix, int]:
        """The confusion matrix of all ranks' images, and how many they were."""
        count = torch.zeros((), dtype=torch.int64, device=self.args.device)
        matrix = score_batches(
            model,
            self.family,
            self._counted(dataloader, count),
            len(self.class_names),
            self.args.device,
            window=self.window,
            stride=self.stride,
            images=images,
        )
        matrix.all_reduce()
        return matrix, int(self.accelerator.reduce(count, reduction="sum"))

    def _counted(self, dataloader: DataLoader, count: Tensor) -> Iterator[dict[str, Any]]:
        for batch in dataloader:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            count += len(batch["labels"])
            yield batch

    @torch.no_grad()
    def interpolate(self, domains: Sequence[str]) -> dict[float, float]:
        """Put the model between the last stage's initialisation and the trained weights: θ = (1 - α) θ_init + α θ.

        α is the one of 0, 0.1, ... 1 with the best mean IoU over `domains`, with BatchNorm statistics that fit it
        (WiSE-FT, Wortsman et al., CVPR 2022, arXiv 2109.01903, section 3; where several are best, the largest).

        Args:
            domains: names in `eval_dataset`, of source validation.

        Returns:
            Mean IoU by α.
        """
        model, initial = self.pathways.exported, self.pathways.initial
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if name in initial}

        def place(alpha: float) -> None:
            for name, parameter in model.named_parameters():
                if name in trained:
                    parameter.copy_(torch.lerp(initial[name].to(parameter.device), trained[name], alpha))
            self.batchnorm_step = -1

        found = {}
        for alpha in [tenth / 10 for tenth in range(11)]:
            place(alpha)
            self.refresh_batchnorm()
            loaders = [self.get_eval_dataloader(self.eval_dataset[name]) for name in domains]
            found[alpha] = float(np.mean([self._score(model, loader)[0].compute().mean_iou for loader in loaders]))
        place(best_point(found))
        self.refresh_batchnorm()
        return found

    def _scores_usual(self) -> bool:
        return self.args.evaluate_usual and not self.pathways.exports_usual

    @torch.no_grad()
    def refresh_batchnorm(self) -> None:
        """Bring the BatchNorm statistics of the evaluated models up to the present step, the same on every rank."""
        step = self.state.global_step
        if step == self.batchnorm_step or not batchnorm_modules(self.pathways.exported):
            return
        self.batchnorm_step = step
        models = [self.pathways.exported]
        if self._scores_usual():
            models.append(self.pathways.usual)
        for model in models:
            if self.args.batchnorm == "reestimate":
                whole = self.whole(model)
                with own_randomness(self.args.seed, self.args.device):
                    reestimate(whole, self._source_batches(), self.family.objective.forward)
                for own, new in zip(model.buffers(), whole.buffers(), strict=True):
                    own.copy_(new)
            else:
                average_over_ranks(model)

    def _source_batches(self) -> Iterator[Tensor]:
        """Training batches, the same on every rank, without touching the run's own loader.

        The choice of images is fixed; their augmentation is that of the present epoch.
        """
        dataset = self.train_dataset
        loader = self._loader(
            dataset,
            self.args.train_batch_size,
            shuffle=not isinstance(dataset, IterableDataset),
            generator=torch.Generator().manual_seed(self.args.seed),
            drop_last=self.args.dataloader_drop_last,
        )
        for batch in islice(loader, self.args.batchnorm_batches):
            yield batch["pixel_values"].to(self.args.device)


def best_point(found: Mapping[float, float]) -> float:
    """The α with the best score; where several have it, the largest."""
    return max(found, key=lambda alpha: (found[alpha], alpha))


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """A seeded stretch that leaves the random states of the run, those of its device too, as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
