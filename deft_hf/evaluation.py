"""How `DeFTTrainer` evaluates: a confusion matrix per domain, on BatchNorm statistics that fit the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from deft_hf.errors import UserError
from deft_hf.method.batchnorm import average_over_ranks, batchnorm_modules, reestimate
from deft_hf.scoring.confusion import Scores
from deft_hf.scoring.inference import predict, score_batches

METRICS = ("mean_iou", "mean_accuracy", "pixel_accuracy")


class EvaluationMixin:
    """The evaluation methods of `transformers.Trainer`, on the components of a `DualPathway`.

    Attributes:
        scores: the last scores by metric prefix (`eval_<domain>`, `eval_<domain>_usual`), per class too.
    """

    scores: dict[str, Scores]

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        if is_training:
            return super()._get_dataloader(*args, is_training=True, **kwargs)
        # Every image is scored, and a domain's workers need not wait for the next evaluation.
        kept = self.args.dataloader_drop_last, self.args.dataloader_persistent_workers
        self.args.dataloader_drop_last = self.args.dataloader_persistent_workers = False
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last, self.args.dataloader_persistent_workers = kept

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, metric_key_prefix: str = "eval", **_: Any
    ) -> EvalLoopOutput:
        """Scores the generalized model, and the usual one on request, keeping a confusion matrix and no logits."""
        self.refresh_batchnorm()
        models = {"": self.pathways.generalized}
        if self.args.evaluate_usual and self.pathways.averages:
            models["usual_"] = self.pathways.usual
        metrics = {}
        for label, model in models.items():
            scores = self._score(model, dataloader)
            self.scores[f"{metric_key_prefix}_{label}".removesuffix("_")] = scores
            for name in METRICS:
                metrics[f"{metric_key_prefix}_{label}{name}"] = getattr(scores, name)
        return EvalLoopOutput(
            predictions=None, label_ids=None, metrics=metrics, num_samples=self.num_examples(dataloader)
        )

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
        predictions = []
        for batch in dataloader:
            for pixel_values, labels in zip(batch["pixel_values"], batch["labels"], strict=True):
                image = pixel_values[None].to(self.args.device)
                classes = predict(
                    self.generalized_model, self.family, image, tuple(labels.shape), self.window, self.stride
                )
                predictions.append(classes[0].cpu().numpy())
        return PredictionOutput(predictions=predictions, label_ids=None, metrics=output.metrics)

    def _score(self, model: nn.Module, dataloader: DataLoader) -> Scores:
        matrix = score_batches(
            model,
            self.family,
            self._each_once(dataloader),
            model.config.num_labels,
            self.args.device,
            window=self.window,
            stride=self.stride,
        )
        matrix.all_reduce()
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        return matrix.compute(names)

    def _each_once(self, dataloader: DataLoader) -> Iterator[dict[str, Any]]:
        """This rank's batches without the samples that sharding repeats to make the last ones equally long."""
        for batch in dataloader:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            state = self.accelerator.gradient_state
            if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0:
                size = self.args.eval_batch_size
                own = min(max(state.remainder - self.accelerator.process_index * size, 0), size)
                batch = {name: values[:own] for name, values in batch.items()}
            if len(batch["labels"]):
                yield batch

    @torch.no_grad()
    def refresh_batchnorm(self) -> None:
        """Bring the BatchNorm statistics of the evaluated models up to the present step, the same on every rank."""
        step = self.state.global_step
        if step == self.batchnorm_step or not batchnorm_modules(self.pathways.generalized):
            return
        self.batchnorm_step = step
        models = [self.pathways.generalized]
        if self.args.evaluate_usual and self.pathways.averages:
            models.append(self.pathways.usual)
        for model in models:
            if self.args.batchnorm == "reestimate":
                with own_randomness(self.args.seed):
                    reestimate(model, self._source_batches())
            else:
                average_over_ranks(model)

    def _source_batches(self) -> Iterator[Tensor]:
        """Training batches, the same on every rank, without touching the run's own loader.

        The choice of images is fixed; their augmentation is that of the present epoch.
        """
        dataset = self.train_dataset
        loader = DataLoader(
            dataset,
            batch_size=self.args.train_batch_size,
            shuffle=not isinstance(dataset, IterableDataset),
            generator=torch.Generator().manual_seed(self.args.seed),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            drop_last=self.args.dataloader_drop_last,
        )
        for batch in islice(loader, self.args.batchnorm_batches):
            yield batch["pixel_values"].to(self.args.device)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """A seeded stretch that leaves the random states of the run as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
