"""`DeFTTrainer`: a `transformers.Trainer` that runs the stages of a method on one loop."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from deft_hf.arguments import DeFTTrainingArguments
from deft_hf.checkpoints import CheckpointMixin
from deft_hf.data.collate import collate
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.errors import TrainingDiverged, UserError
from deft_hf.evaluation import EvaluationMixin, own_randomness
from deft_hf.method.batchnorm import mend_momentum
from deft_hf.method.families import IGNORE_INDEX, resolve_family
from deft_hf.method.pathways import PARTS, DualPathway
from deft_hf.optimization import parameter_groups, stage_schedule
from deft_hf.scoring.confusion import Scores
from deft_hf.stages import Span, StageCallback, stage_at

__all__ = ["DeFTTrainer", "DeFTTrainingArguments"]

logger = logging.get_logger(__name__)


class DeFTTrainer(EvaluationMixin, CheckpointMixin, Trainer):
    """Fine-tunes a Hub segmentation model by DeFT, or by a baseline on the same loop; in every other way a `Trainer`.

    One `train()` runs all stages of `args.method`. Evaluation, checkpoints and `save_model` are of the generalized
    model; `generalized_model` is it, a plain model of the class that came in.

    Args:
        model: a semantic segmentation model; it becomes the usual component, in float32.
        args: see `DeFTTrainingArguments`.
        train_dataset: yields `pixel_values` (3, H, W) float and `labels` (H, W) integer, 255 = ignored.
        eval_dataset: the same, or a dict of them by domain. Labels may be of any size: predictions are resized to it.
            Metrics are `eval_<domain>_mean_iou`, `_mean_accuracy` and `_pixel_accuracy` of the generalized model; with
            `args.evaluate_usual` also `eval_<domain>_usual_mean_iou` and so on.
        encoder: dotted path of the encoder, for a model that deft_hf does not know.
        window, stride: (height, width) in pixels for sliding-window evaluation; default: the whole image.
        kwargs: what else `Trainer` takes.

    Raises:
        UserError: the model cannot be split, or an argument of `Trainer` has no meaning here.
    """

    # The loss is normalised over the whole optimizer step in `compute_loss`.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DeFTTrainingArguments | None = None,
        *,
        encoder: str | None = None,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        args = DeFTTrainingArguments() if args is None else args
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics", "model_init"):
            if kwargs.get(name) is not None:
                raise UserError(f"DeFTTrainer computes loss and scores by itself: leave `{name}` out.")
        if model is None:
            raise UserError(
                "DeFTTrainer needs a model: pass `model=AutoModelForSemanticSegmentation.from_pretrained(...)`."
            )
        # One process drives one device: DataParallel would split a batch's loss.
        args._n_gpu = min(args.n_gpu, 1)
        self.family = resolve_family(model, encoder)
        mended = mend_momentum(model)
        if mended:
            logger.warning(f"BatchNorm momentum of {len(mended)} modules was TensorFlow's; turned into PyTorch's.")
        self.window, self.stride = window, stride
        self.scores: dict[str, Scores] = {}
        self.spans: list[Span] = []
        self._sums: dict[str, Tensor] = {}
        self.steps_summed = 0
        self.rates: dict[str, float] = {}
        self.batchnorm_step = 0
        kwargs.setdefault("data_collator", collate)
        pathways = DualPathway(model, self.family, average=bool(args.ema), distance_weight=args.distance_weight)
        super().__init__(model=pathways, args=args, **kwargs)
        self.add_callback(StageCallback(self))
        named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval_dataset": self.eval_dataset}
        for name, dataset in {"train_dataset": self.train_dataset, **named}.items():
            self._check_classes(name, dataset)

    def _check_classes(self, name: str, dataset: Any) -> None:
        """Labels that the model has no class for would end in an index error within the loss."""
        known = self.pathways.config.num_labels
        way_out = "Load the model with `num_labels` of the data's label space."
        if isinstance(dataset, (TrainingSet, EvaluationSet)):
            domain = dataset.domains[0] if isinstance(dataset, TrainingSet) else dataset.domain
            if domain.labels.num_labels != known:
                found = f"{name}: domain {domain.name} has {domain.labels.num_labels} classes"
                raise UserError(f"{found}, but the model has {known}. {way_out}")
        elif dataset is not None and not isinstance(dataset, IterableDataset) and len(dataset):
            with own_randomness(self.args.seed):
                ids = torch.as_tensor(dataset[0]["labels"]).unique().tolist()
            unknown = [index for index in ids if index != IGNORE_INDEX and not 0 <= index < known]
            if unknown:
                raise UserError(
                    f"{name}: its first item has the class {unknown[0]}, but the model has {known}. {way_out}"
                )

    @property
    def pathways(self) -> DualPathway:
        """The two components, without what Accelerate wrapped around them."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def generalized_model(self) -> nn.Module:
        """The model that is evaluated, saved and exported: a plain model of the original class."""
        return self.pathways.generalized

    # ---- stages

    def set_initial_training_values(self, args: DeFTTrainingArguments, dataloader: DataLoader) -> tuple:
        epochs, per_epoch, examples, samples, batch, batches_per_epoch, last = super().set_initial_training_values(
            args, dataloader
        )
        self.spans = args.spans(last)
        total = sum(span.steps for span in self.spans)
        if epochs != sys.maxsize:
            epochs = math.ceil(total / per_epoch)
        return epochs, per_epoch, examples, samples + (total - last) * batch, batch, batches_per_epoch, total

    def enter_stage(self, new: bool) -> None:
        """Turn to the stage of the present step; a new one starts from a snapshot and without momentum."""
        index, span = stage_at(self.spans, self.state.global_step)
        decays = self.args.run_decays(span.steps)
        self.pathways.enter(span.stage, decays["encoder"], decays["decoder"])
        if not new:
            return
        shares = {part: share for part, share in self.args.final_shares(span.steps).items() if share > 0.5}
        if self.args.ema and span.stage != "warmup" and shares:
            logger.warning(
                f"The exported model will hardly have moved: of the initialisation {shares} will be left after "
                f"{span.steps} steps. Lower ema_decay, or leave ema_decay_steps at the length that it is quoted at."
            )
        self.pathways.snapshot()
        if index:
            optimizer = self.optimizer
            while hasattr(optimizer, "optimizer"):
                optimizer = optimizer.optimizer
            optimizer.state.clear()

    # ---- optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            if kwargs.keys() & {"params", "model", "optimizer_dict"}:
                raise UserError(
                    f"optim {self.args.optim} forms its own parameter groups: choose another, such as adamw_torch."
                )
            self.optimizer = cls(parameter_groups(self.pathways, self.args), **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = stage_schedule(optimizer, self.spans, self.args)
            if self.lr_scheduler is None:
                return super().create_scheduler(num_training_steps, optimizer)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        items = sum(self.family.objective.count(batch) for batch in batch_samples).to(device)
        return self.accelerator.reduce(items, reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        ranks = self.accelerator.num_processes
        losses = model(**inputs, items=num_items_in_batch, passes=self.current_gradient_accumulation_steps * ranks)
        for name, loss in losses.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + loss
        # Every rank's loss is its share of the sum over ranks, of which the gradients are averaged.
        loss = losses["loss"] * ranks
        return (loss, losses) if return_outputs else loss

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the last step of a run that ended within an epoch; Trainer would take one step more.
            self.control.should_training_stop = True
            return
        # Accelerate reaches a data set's `set_epoch` in some shardings only.
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    # ---- logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and "learning_rate" in logs:
            logs.update(self._training_figures())
        super().log(logs, start_time)

    def _training_figures(self) -> dict[str, float]:
        pathways = self.pathways
        figures = {name: float(total) / max(self.steps_summed, 1) for name, total in self._reduced_sums().items()}
        self._sums, self.steps_summed = {}, 0
        figures["stage"] = 1 + stage_at(self.spans, self.state.global_step - 1)[0]
        shares, distances = pathways.share_left(), pathways.distances(pathways.generalized)
        for part in PARTS:
            if part in self.rates:
                figures[f"{part}_learning_rate"] = self.rates[part]
            figures[f"{part}_initial_share"] = shares[part]
            figures[f"{part}_distance"] = distances[part]
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
            norms = torch._foreach_norm([p.detach() for p in self.pathways.usual.parameters()])
            figures["the parameters' norm"] = torch.stack(norms).sum()
        bad = {name: float(total) for name, total in figures.items() if not torch.isfinite(total)}
        if not bad:
            return
        step = self.state.global_step
        folder = Path(self.args.output_dir)
        checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        name, value = next(iter(bad.items()))
        raise TrainingDiverged(
            f"{name} became {value} between steps {step - self.steps_summed} and {step}; {kept}. "
            "Lower the learning rate, set max_grad_norm, or look for broken images."
        )
