"""`DeFTTrainer`: a `transformers.Trainer` that runs the stages of a method on one loop."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.utils import logging

from deft_hf.data.collate import collate
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.methods.core.batchnorm import batchnorm_modules, mend_momentum
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.shards import empty_copy, is_sharded
from deft_hf.methods.lora import add_adapters, merged
from deft_hf.methods.spd import Drift, drift, project
from deft_hf.models.families import resolve_family
from deft_hf.models.plain import class_names, is_plain
from deft_hf.scoring.confusion import Scores
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.checkpoints import CheckpointMixin
from deft_hf.trainer.evaluation import METRICS, EvaluationMixin, own_randomness
from deft_hf.trainer.hub import HubMixin
from deft_hf.trainer.launchers import ShardingMixin, check_launcher, shards_parameters
from deft_hf.trainer.log import MonitoringMixin
from deft_hf.trainer.optimizer import parameter_groups, stage_schedule
from deft_hf.trainer.optimizer_state import reset_optimizer_state
from deft_hf.trainer.stages import Span, StageCallback, stage_at
from deft_hf.trainer.termination import StopOnSigterm
from deft_hf.utils.errors import UserError

__all__ = ["DeFTTrainer", "DeFTTrainingArguments"]

logger = logging.get_logger(__name__)


class DeFTTrainer(EvaluationMixin, MonitoringMixin, HubMixin, CheckpointMixin, ShardingMixin, Trainer):
    """Fine-tunes a Hub segmentation model by DeFT, or by a baseline on the same loop; in every other way a `Trainer`.

    One `train()` runs all stages of `args.method`. Evaluation, checkpoints and `save_model` are of the generalized
    model; `generalized_model` is it, a plain model of the class that came in.

    Args:
        model: a semantic segmentation model; it becomes the usual component, in float32. Any `nn.Module` whose
            forward takes images and returns logits (N, C, h, w) will do, with `encoder`; what is saved of one is its
            state dict.
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
        if not isinstance(args, DeFTTrainingArguments):
            raise UserError(
                f"args are {type(args).__name__}: build them as DeFTTrainingArguments, with the same fields."
            )
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
        if is_plain(model) and args.gradient_checkpointing:
            raise UserError("gradient_checkpointing is a feature of transformers models: leave it out.")
        mended = mend_momentum(model)
        if mended:
            logger.warning(f"BatchNorm momentum of {len(mended)} modules was TensorFlow's; turned into PyTorch's.")
        if args.world_size > 1 and args.device.type == "cuda":
            # As one process with the whole batch would. On a CPU torch has no such module.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.window, self.stride = window, stride
        self.scores: dict[str, Scores] = {}
        self.confusions: dict[str, Tensor] = {}
        self.gathered: dict[str, nn.Module] = {}
        self.spans: list[Span] = []
        self.batchnorm_step = 0
        kwargs.setdefault("data_collator", collate)
        if args.lora_rank:
            with own_randomness(args.seed, args.device):
                self.family = add_adapters(model, self.family, args.lora_rank, args.lora_alpha or args.lora_rank)
        pathways = DualPathway(
            model,
            self.family,
            average=args.averages,
            distance_weights=args.distance_weights(),
            decoder_norm_weight=args.decoder_norm_weight,
            exported="generalized" if args.component == "generalized" else "usual",
            initial_at_hand=not args.snapshot_on_cpu and args.reads_initial_at_each_step,
        )
        super().__init__(model=pathways, args=args, **kwargs)
        pathways.autocast = check_launcher(self.accelerator, args)
        if is_sharded(pathways):
            raise UserError(
                "The model came in spread over ranks by DeepSpeed's zero.Init: load it before the arguments are made."
            )
        self.empty = empty_copy(pathways.usual) if shards_parameters(self.accelerator) else None
        self.sigterm = StopOnSigterm()
        self.add_callback(self.sigterm)
        self.add_callback(StageCallback(self))
        if self.processing_class is None:
            logger.warning("Without a `processing_class` the saved folder has no preprocessor_config.json.")
        named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval_dataset": self.eval_dataset}
        with own_randomness(args.seed, args.device):
            self.class_names = class_names(pathways.usual, self.family, self.train_dataset, *named.values())
        for name, dataset in {"train_dataset": self.train_dataset, **named}.items():
            self._check_classes(name, dataset)
        self._check_selection()
        self._leave_no_single_image()

    def _check_classes(self, name: str, dataset: Any) -> None:
        """Labels that the model has no class for would end in an index error within the loss."""
        known = len(self.class_names)
        way_out = "Load the model with `num_labels` of the data's label space."
        if isinstance(dataset, (TrainingSet, EvaluationSet)):
            domain = dataset.domains[0] if isinstance(dataset, TrainingSet) else dataset.domain
            if domain.labels.num_labels != known:
                found = f"{name}: domain {domain.name} has {domain.labels.num_labels} classes"
                raise UserError(f"{found}, but the model has {known}. {way_out}")
        elif dataset is not None and not isinstance(dataset, IterableDataset) and len(dataset):
            with own_randomness(self.args.seed, self.args.device):
                ids = torch.as_tensor(dataset[0]["labels"]).unique().tolist()
            unknown = [index for index in ids if index != IGNORE_INDEX and not 0 <= index < known]
            if unknown:
                raise UserError(
                    f"{name}: its first item has the class {unknown[0]}, but the model has {known}. {way_out}"
                )

    def _check_selection(self) -> None:
        # transformers fills in `loss` where it needs a metric, and evaluation here has none.
        if self.args.metric_for_best_model is None and self.args.save_strategy != "best":
            return
        domains = [f"{name}_" for name in self.eval_dataset] if isinstance(self.eval_dataset, dict) else [""]
        known = [f"{domain}{metric}" for domain in domains for metric in METRICS]
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if chosen not in known:
            raise UserError(
                f"metric_for_best_model is {self.args.metric_for_best_model!r}: expected one of {', '.join(known)}; "
                "choose it on source data."
            )

    def _leave_no_single_image(self) -> None:
        """BatchNorm behind a pooling to one pixel cannot be trained on a batch of one image."""
        args, data = self.args, self.train_dataset
        if data is None or isinstance(data, IterableDataset) or not batchnorm_modules(self.pathways.usual):
            return
        alone = args.world_size == 1 and args.train_batch_size > 1 and len(data) % args.train_batch_size == 1
        if alone and len(data) > 1 and not args.dataloader_drop_last:
            logger.warning("An epoch's last batch would be a single image, too few for BatchNorm; it is left out.")
            args.dataloader_drop_last = True

    @property
    def pathways(self) -> DualPathway:
        """The two components, without what Accelerate wrapped around them."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def generalized_model(self) -> nn.Module:
        """The model that is evaluated, saved and exported: a plain model of the original class.

        Adapters are merged into it, for which it is a copy. Where parameters are spread over ranks it is a copy too,
        and every rank has to ask for it.
        """
        return merged(self.whole(self.pathways.exported), self.family)

    # ---- stages

    def set_initial_training_values(self, args: DeFTTrainingArguments, dataloader: DataLoader) -> tuple:
        epochs, per_epoch, examples, samples, batch, batches_per_epoch, last = super().set_initial_training_values(
            args, dataloader
        )
        self.spans = args.spans(last)
        total = sum(span.steps for span in self.spans)
        if epochs == sys.maxsize:  # data without a length: one epoch that has all steps
            per_epoch, batches_per_epoch = total, total * args.gradient_accumulation_steps
        else:
            epochs = math.ceil(total / per_epoch)
        return epochs, per_epoch, examples, samples + (total - last) * batch, batch, batches_per_epoch, total

    def begin(self, step: int) -> None:
        """Start, or go on after, optimizer step `step`."""
        self.start_log(step)
        self.batchnorm_step = step
        if step == 0:
            self._warn_of_a_model_that_hardly_moves()
        else:
            self.check_resumed()
        self.enter_stage(max(step - 1, 0), new=step == 0)

    def enter_stage(self, step: int, new: bool) -> None:
        """Turn to the stage that the optimizer step after `step` belongs to; a new one starts from a snapshot."""
        index, span = stage_at(self.spans, step)
        decays = self.args.run_decays(span.steps)
        swa_start = self.args.swa_first_step(span.steps)
        self.pathways.enter(span.stage, decays["encoder"], decays["decoder"], swa_start)
        if not new:
            return
        self.pathways.snapshot()
        if index:
            # A stage is an optimisation of its own: no momentum is carried over.
            reset_optimizer_state(self.optimizer)

    def _warn_of_a_model_that_hardly_moves(self) -> None:
        steps = self.spans[-1].steps
        shares = {part: f"{share:.0%}" for part, share in self.args.final_shares(steps).items() if share > 0.5}
        if self.args.averages == "ema" and self.args.component == "generalized" and shares:
            logger.warning(
                f"The exported model will hardly have moved: of the initialisation {shares} will be left after "
                f"{steps} steps. Lower ema_decay, or leave ema_decay_steps at the length that it is quoted at."
            )

    # ---- optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, model or self.model
            )
            if kwargs.keys() & {"params", "model", "optimizer_dict"}:
                raise UserError(
                    f"optim {self.args.optim} forms its own parameter groups: choose another, such as adamw_torch."
                )
            self.optimizer = cls(parameter_groups(self.pathways, self.args), **kwargs)
        if self.accelerator.scaler is not None:
            # A fused optimizer skips an overflown step within its kernel, where nobody sees that it did, and the
            # average would move.
            self.optimizer._step_supports_amp_scaling = False
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
        if isinstance(batch_samples[0]["labels"], list):
            sizes = sorted({tuple(labels.shape) for labels in batch_samples[0]["labels"]})
            raise UserError(f"train_dataset: items of one batch differ in size, {sizes}: crop or resize them to one.")
        objective, model = self.family.objective, self.pathways.usual
        items = sum(objective.count(model, batch) for batch in batch_samples).to(device)
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
        self.add_losses(losses)
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

    def before_step(self) -> None:
        """Look at the gradients before the optimizer uses them."""
        if self.args.projection_weight and self.pathways.stage != "warmup":
            self._drift: Drift = drift(*self.pathways.encoder_and_initial())

    def after_step(self) -> None:
        """What follows an optimizer step that was not skipped: projection, then the average."""
        if self.args.projection_weight and self.pathways.stage != "warmup":
            project(*self.pathways.encoder_and_initial(), self._drift, self.args.projection_weight)
        self.pathways.update_generalized()
