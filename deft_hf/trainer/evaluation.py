"""How `DeFTTrainer` scores: a confusion matrix per domain, and no logits kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import EvalLoopOutput

from deft_hf.models.families import SegmentationFamily
from deft_hf.models.objectives import SetLoss
from deft_hf.scoring.confusion import ConfusionMatrix, Scores
from deft_hf.scoring.inference import predict_logits, probabilities_of, score_batches, watched
from deft_hf.scoring.metrics import ALWAYS
from deft_hf.scoring.metrics import METRICS as REGISTRY
from deft_hf.scoring.metrics import further as further_metrics
from deft_hf.scoring.tally import Tally
from deft_hf.scoring.test_time import Views
from deft_hf.utils.errors import UserError
from deft_hf.utils.randomness import own_randomness

OwnMetrics = Callable[[Scores, Tensor], dict[str, float]]
"""`compute_metrics(scores, confusion)`: of each data set, from its scores and its confusion matrix (C, C), int64, rows
are truth, metrics by name; they are logged as `eval_<domain>_<name>`."""
METRICS = tuple(REGISTRY[name].key for name in ALWAYS)
LOSS = "loss"


class Evaluator:
    """Scores models on data loaders, summed over ranks.

    Args:
        family (`SegmentationFamily`):
            How the models' logits are computed.
        class_names (`list[str]`):
            The classes in the order of the logits.
        accelerator (`Accelerator`):
            Sums over ranks.
        seed (`int`):
            Seed of random choices in the data loaders.
        window (`tuple[int, int]`, *optional*):
            Height and width of a sliding window, in pixels; whole images by default.
        stride (`tuple[int, int]`, *optional*):
            Steps between windows down and across, in pixels.
        own_metrics (`Callable`, *optional*):
            Further metrics of the caller's, see `OwnMetrics`.
        further (`Sequence[str]`, *optional*, defaults to `()`):
            Names of further metrics of [`~deft_hf.scoring.metrics`].
        views (`Views`, *optional*):
            Test-time augmentation; by default an image is seen once, as it is.

    Attributes:
        scores (`dict[str, Scores]`):
            The last scores by metric prefix (`eval_<domain>`, `eval_<domain>_usual`), per class too.
        confusions (`dict[str, Tensor]`):
            The confusion matrices behind `scores`, int64 (C, C) by the same keys.
        counts (`dict[str, dict[str, Tensor]]`):
            What metrics follow from, image by image, as [`Tally.by_image`] gives it, by the same keys.
        image_counts (`dict[str, Tensor]`, *optional*):
            Where it is a dict, the confusion matrices of each image of the last evaluation, int64 (images, C, C), by
            the same keys. In one process only.
    """

    def __init__(
        self,
        family: SegmentationFamily,
        class_names: list[str],
        accelerator: Accelerator,
        seed: int,
        window: tuple[int, int] | None,
        stride: tuple[int, int] | None,
        own_metrics: OwnMetrics | None = None,
        further: Sequence[str] = (),
        views: Views = Views(),  # noqa: B008 (frozen)
    ) -> None:
        self.family = family
        self.class_names = class_names
        self.accelerator = accelerator
        self.seed = seed
        self.window, self.stride, self.views = window, stride, views
        views.check(one_size=family.side is not None and window is None)
        self.own_metrics = own_metrics
        self.further = further_metrics(further)
        self.scores: dict[str, Scores] = {}
        self.confusions: dict[str, Tensor] = {}
        self.counts: dict[str, dict[str, Tensor]] = {}
        self.image_counts: dict[str, Tensor] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is said of each data set; a loss of masks is one of whole images, seen once."""
        keys = (*METRICS, *(metric.key for metric in self.further))
        return keys if self._set_loss() is None else (*keys, LOSS)

    def _set_loss(self) -> SetLoss | None:
        objective = self.family.objective
        of_parts = self.window is not None or not self.views.are_one
        return None if objective.needs_masks and of_parts else objective.set_loss(self.accelerator.device)

    def evaluate(
        self, models: Mapping[str, nn.Module], dataloader: DataLoader, prefix: str, on_batch: Callable[[], None]
    ) -> EvalLoopOutput:
        """Score each model, and keep its scores, confusions and, on request, counts by image.

        Args:
            models (`Mapping[str, nn.Module]`):
                Models with whole parameters, by the label that stands in their metrics: `""`, `"usual_"`.
            dataloader (`DataLoader`):
                This rank's images.
            prefix (`str`):
                Prefix of the metrics.
            on_batch (`Callable`):
                Called for each batch.
        """
        metrics, count = {}, 0
        for label, model in models.items():
            images: list[Tensor] | None = None if self.image_counts is None else []
            key = f"{prefix}_{label}".removesuffix("_")
            loss, tally = self._set_loss(), Tally(len(self.class_names), self.further)
            # A loader draws its base seed: a run that is scored must stay the run that is not.
            with own_randomness(self.seed, self.accelerator.device):
                matrix, count = self.score(model, dataloader, on_batch, images, loss, tally)
            tally.gather(lambda counts: gather_object([counts]))
            self.confusions[key], self.counts[key] = matrix.counts.cpu(), tally.by_image()
            self.scores[key] = replace(matrix.compute(self.class_names), more=tally.more())
            if self.image_counts is not None and images is not None:
                self.image_counts[key] = torch.stack(images)
            if loss is not None:
                totals = self.accelerator.reduce(loss.totals, reduction="sum")
                metrics[f"{prefix}_{label}{LOSS}"] = loss.mean(totals)
            for name, value in self._chosen(key).items():
                metrics[f"{prefix}_{label}{name}"] = value
            for name, value in self._own(key).items():
                metrics[f"{prefix}_{label}{name}"] = value
        # No predictions: they would be all logits.
        return EvalLoopOutput(None, label_ids=None, metrics=metrics, num_samples=count)  # type: ignore[arg-type]

    def _chosen(self, key: str) -> dict[str, Any]:
        """The registry's metrics of the scores of a key."""
        values = self.scores[key].to_dict()
        return {name: values[name] for name in (*METRICS, *(metric.key for metric in self.further))}

    def _own(self, key: str) -> dict[str, float]:
        """The caller's metrics of the scores of a key.

        Raises:
            UserError: They are no numbers by name, or have names that are taken.
        """
        if self.own_metrics is None:
            return {}
        found = self.own_metrics(self.scores[key], self.confusions[key])
        if not isinstance(found, dict) or not all(isinstance(value, int | float) for value in found.values()):
            raise UserError(
                f"compute_metrics: returned {str(found)[:80]}, expected numbers by name, such as {{'dice': 0.5}}"
            )
        if taken := sorted({*METRICS, *(metric.key for metric in self.further), LOSS} & set(found)):
            raise UserError(f"compute_metrics: returned {taken[0]}, which is a metric already; give it another name")
        return found

    def score(
        self,
        model: nn.Module,
        dataloader: DataLoader,
        on_batch: Callable[[], None],
        images: list[Tensor] | None = None,
        loss: SetLoss | None = None,
        tally: Tally | None = None,
    ) -> tuple[ConfusionMatrix, int]:
        """The confusion matrix of all ranks' images, and how many they were; see `evaluate` and `score_batches`."""
        count = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)

        def batches() -> Iterator[dict[str, Any]]:
            nonlocal count
            for batch in dataloader:
                on_batch()
                count += len(batch["labels"])
                yield batch

        matrix = score_batches(
            model,
            self.family,
            batches(),
            len(self.class_names),
            self.accelerator.device,
            window=self.window,
            stride=self.stride,
            images=images,
            loss=loss,
            tally=tally,
            views=self.views,
        )
        matrix.all_reduce()
        return matrix, int(self.accelerator.reduce(count, reduction="sum"))

    def mean_iou(self, model: nn.Module, dataloaders: Iterable[DataLoader], on_batch: Callable[[], None]) -> float:
        """The mean of the data sets' mean IoU, of those that have one; see `evaluate`."""
        found = [self.score(model, loader, on_batch)[0] for loader in dataloaders]
        return float(np.nanmean([matrix.compute().mean_iou for matrix in found]))

    def predict(
        self, model: nn.Module, dataset: Any, prefix: str, on_item: Callable[[], None]
    ) -> tuple[list[np.ndarray], dict[str, float]]:
        """Class ids of every image, int64 (H, W) each, and the metrics where the items have labels.

        Args:
            model (`nn.Module`):
                With whole parameters.
            dataset (`Dataset`):
                Items with `pixel_values` (3, h, w) and, where there are any, `labels` (H, W), whose size the ids have.
            prefix (`str`):
                Of the metrics.
            on_item (`Callable`):
                Called for each image.
        """
        size, loss, predictions = len(self.class_names), self._set_loss(), []
        matrix, tally = ConfusionMatrix(size), Tally(size, self.further)
        items = dataset if isinstance(dataset, IterableDataset) else map(dataset.__getitem__, range(len(dataset)))
        with own_randomness(self.seed, self.accelerator.device):
            for item in items:
                on_item()
                image = torch.as_tensor(item["pixel_values"])[None].to(self.accelerator.device)
                labels = None if item.get("labels") is None else torch.as_tensor(item["labels"])[None].long()
                height, width = (image if labels is None else labels).shape[-2:]
                family = self.family if labels is None else watched(self.family, loss, image, labels)
                sizes = (height, width), self.window, self.stride
                logits = predict_logits(model, family, image, *sizes, self.views)
                classes = logits.argmax(1).cpu()
                if labels is not None:
                    single = ConfusionMatrix(size)
                    single.update(classes, labels)
                    matrix.merge(single)
                    tally.add(single.counts, classes[0], labels[0], probabilities_of(self.family, logits[0]))
                if labels is not None and loss is not None:
                    loss.add(logits, labels)
                predictions.append(classes[0].numpy())
        if not matrix.counts.any():
            return predictions, {}
        self.confusions[prefix] = matrix.counts
        self.counts[prefix] = tally.by_image()
        self.scores[prefix] = replace(matrix.compute(self.class_names), more=tally.more())
        metrics = {f"{prefix}_{name}": value for name, value in self._chosen(prefix).items()}
        metrics |= {f"{prefix}_{name}": value for name, value in self._own(prefix).items()}
        return predictions, metrics if loss is None else {f"{prefix}_{LOSS}": loss.mean(loss.totals), **metrics}
