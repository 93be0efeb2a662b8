"""`DeFTTrainer`: a `transformers.Trainer` that runs the stages of a method on one loop.

The class has the overrides of `Trainer`; what they do is in the parts that `__init__` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import BestRun, EvalLoopOutput, PredictionOutput, TrainOutput
from transformers.utils import logging

from deft_hf.data.collate import CheckedBatches, MaskTargets, collate
from deft_hf.data.unreadable import Reader
from deft_hf.methods import WiSEFT
from deft_hf.methods.core.stages import Span
from deft_hf.models.families import resolve_family
from deft_hf.models.plain import class_names
from deft_hf.publish.push import PushFailed
from deft_hf.scoring.confusion import Scores
from deft_hf.scoring.test_time import Views
from deft_hf.trainer import checks
from deft_hf.trainer.adapters import compose_for
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.batchnorm import BatchNormRefresher
from deft_hf.trainer.callbacks import LoopCallback
from deft_hf.trainer.checkpoints import Checkpoints, save_exported, states_explained, write_trainer_state
from deft_hf.trainer.evaluation import Evaluator
from deft_hf.trainer.hub import Pusher, PushingTrainer
from deft_hf.trainer.launchers import Shards, check_launcher
from deft_hf.trainer.loaders import Loaders, keep_masks_whole
from deft_hf.trainer.log import RunLog
from deft_hf.trainer.loss import family_of
from deft_hf.trainer.optimizer import build_optimizer, stage_schedule
from deft_hf.trainer.resumed import restore_patience
from deft_hf.trainer.search import ModelInit, built, refill, search
from deft_hf.trainer.stages import StageRunner
from deft_hf.trainer.termination import StopOnSigterm
from deft_hf.utils.errors import UserError, batches_explained, workers_explained
from deft_hf.utils.integrity import STATISTICS_DUE, step_of
from deft_hf.utils.randomness import own_randomness

logger = logging.get_logger(__name__)


class DeFTTrainer(PushingTrainer):
    """Fine-tunes a Hub segmentation model by DeFT, or by a baseline on the same loop; in every other way a `Trainer`.

    One `train()` runs all stages of `args.method`. Evaluation, checkpoints and `save_model` are of the generalized
    model; `generalized_model` is it, a plain model of the class that came in. A second `train()` runs all stages
    again, from that model and with a fresh optimizer, unless one was given.

    Args:
        model (`nn.Module` or `str`, *optional*):
            A semantic segmentation model, or the Hub name of one; it becomes the usual component, in float32. Any
            `nn.Module` from images to logits (N, C, h, w) works too, with `encoder`; its state dict is what is saved.
        args (`DeFTTrainingArguments`, *optional*):
            Training arguments, with the method and its settings.
        encoder (`str`, *optional*):
            Dotted path of the encoder, for a model that deft_hf does not know.
        window (`tuple[int, int]`, *optional*):
            Height and width in pixels of the window of sliding-window evaluation; the whole image by default.
        stride (`tuple[int, int]`, *optional*):
            Steps between windows down and across, in pixels; two thirds of the window by default.
        views (`Views`, *optional*):
            Test-time augmentation of evaluation; by default an image is seen once, as it is.
        model_init (`Callable`, *optional*):
            As for `Trainer`: a function that returns the model in the place of `model`, called anew by each `train`.
        kwargs (`Any`):
            Further arguments of `Trainer`. `train_dataset` yields `pixel_values` (3, H, W) float and `labels` (H, W)
            integer, 255 = ignored; `eval_dataset` the same, or a dict of such datasets by domain, with labels of any
            size. Metrics are `eval_<domain>_loss`, `_mean_iou`, `_mean_accuracy` and `_pixel_accuracy` of the
            generalized model (`eval_loss` and so on of a single data set), with `args.evaluate_usual` also
            `_usual_mean_iou` and so on, and the numbers by name that `compute_metrics(scores, confusion)` returns.

    Raises:
        UserError: If the model cannot be split, or an argument of `Trainer` has no meaning here.

    Example:

    ```python
    >>> from deft_hf import DeFTTrainer, DeFTTrainingArguments, Domain
    >>> from deft_hf.data.sampling import EvaluationSet, TrainingSet
    >>> from deft_hf.data.transforms import EvalTransform, TrainTransform
    >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation

    >>> day, night = (Domain.from_streets(look, count=4, size=(64, 64)) for look in ("clear", "night"))
    >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=7))  # or one that is pretrained
    >>> args = DeFTTrainingArguments("out", method="deft", max_steps=2, decoder_warmup_steps=1)
    >>> training = TrainingSet([day], TrainTransform(crop=(64, 64)))
    >>> unseen = {"night": EvaluationSet(night, EvalTransform(size=None))}
    >>> trainer = DeFTTrainer(model, args, train_dataset=training, eval_dataset=unseen)
    >>> output = trainer.train()
    >>> 0 <= trainer.evaluate()["eval_night_mean_iou"] <= 1
    True

    ```
    """

    args: DeFTTrainingArguments

    # The loss is normalised over the whole optimizer step in `compute_loss`.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: DeFTTrainingArguments | None = None,
        *,
        encoder: str | None = None,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        views: Views = Views(),  # noqa: B008 (frozen)
        model_init: ModelInit | None = None,
        **kwargs: Any,
    ) -> None:
        args, model = checks.check_arguments(args, model, kwargs, model_init)
        self.like_this = partial(type(self), encoder=encoder, window=window, stride=stride, views=views, **kwargs)
        family = family_of(model, encoder, args, kwargs.get("train_dataset"))
        checks.report_default_rate(args, model, kwargs)
        model = checks.prepare_batchnorm(model, args)
        self.composition = compose_for(args, model)
        with own_randomness(args.seed, args.device):
            self.family = self.composition.adapt(model, family)
        at_hand = self.composition.reads_start and not args.snapshot_on_cpu
        checks.report_frozen(model, self.family)
        self.pathways = self.composition.pathways(model, self.family, initial_at_hand=at_hand)
        self.family = self.pathways.family

        self.sigterm = StopOnSigterm()
        self.loaders = Loaders(args, lambda: self.data_collator, self.sigterm.heard)
        self.pusher = Pusher(args)
        # Trainer refuses them under FSDP, though FSDP2 would put its shards into them, and drops them under DeepSpeed.
        self._given, own_metrics = kwargs.pop("optimizers", (None, None)), kwargs.pop("compute_metrics", None)
        super().__init__(model=self.pathways, args=args, **{"data_collator": collate, **kwargs})
        self.optimizer, self.lr_scheduler = self._given
        self.model_init: Any = model_init  # annotated as one of `PreTrainedModel`s
        self._encoder = encoder
        keep_masks_whole(self.family.objective, self.train_dataset, self.accelerator)

        self.pathways.autocast = check_launcher(self.accelerator, args, self.composition)
        # Every rank's loss is its share of the sum over ranks, of which the gradients are averaged.
        self.pathways.ranks = self.accelerator.num_processes
        self.pathways.seed = args.seed
        self.shards = Shards(self.pathways, self.accelerator)
        self.stages = StageRunner(self.pathways, self.composition)
        self.batchnorm = BatchNormRefresher(self.pathways, args, self.shards, self.loaders, self.train_dataset)
        parts = self.pathways, self.composition, self.stages, self.accelerator, args
        self.checkpoints = Checkpoints(*parts, lambda: self.train_dataset)
        self.run_log = RunLog(self.pathways, self.stages, self.accelerator, args.folder, self._readers)
        with own_randomness(args.seed, args.device):
            names = class_names(self.pathways.usual, self.family, self.train_dataset, *self._evaluated.values())
        scored = names, self.accelerator, args.seed, window, stride, own_metrics, args.metrics or (), views
        self.evaluator = Evaluator(self.family, *scored)
        self.add_callback(self.sigterm)
        looped = self.stages, self.run_log, self.checkpoints, self.batchnorm, self.shards
        self.add_callback(LoopCallback(self.accelerator, *looped, lambda: self.get_total_train_batch_size(args)))
        checks.check_data(self.train_dataset, self.eval_dataset, self.evaluator, args, self.pathways.usual)
        if self.processing_class is None:
            logger.warning("Without a `processing_class` the saved folder has no preprocessor_config.json.")
        self.data_collator = CheckedBatches(self.data_collator, len(names))

    # ---- what callers look at

    @property
    def generalized_model(self) -> nn.Module:
        """The model that is evaluated, saved and exported: a plain model of the original class.

        Adapters are merged into it, for which it is a copy. Where parameters are spread over ranks it is a copy too,
        and every rank has to ask for it.
        """
        return self.composition.plain(self.shards.whole(self.pathways.exported), self.family)

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the logits."""
        return self.evaluator.class_names

    @property
    def spans(self) -> list[Span]:
        """The stages of the run with their lengths, once `train` has started."""
        return self.stages.spans

    @property
    def scores(self) -> dict[str, Scores]:
        """The last scores by metric prefix; see [`Evaluator`], which also keeps the confusion matrices."""
        return self.evaluator.scores

    @property
    def _evaluated(self) -> dict[str, Any]:
        return self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval_dataset": self.eval_dataset}

    def _readers(self) -> list[Reader]:
        return [data.reader for data in (self.train_dataset, *self._evaluated.values()) if hasattr(data, "reader")]

    def unreadable_images(self) -> dict[str, list[str]]:
        """By domain, the ids of the images that no rank could read so far; to be called on every rank."""
        return self.run_log.unreadable_images()

    # ---- training

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        *,
        resume_anyway: bool = False,
    ) -> TrainOutput:
        """Run all stages of the method. SIGTERM ends it after the next step, see `deft_hf.trainer.termination`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint, or `True` for the last good one in `args.output_dir`.
            trial (`Any`, *optional*):
                As for `Trainer`.
            ignore_keys_for_eval (`list[str]`, *optional*):
                As for `Trainer`.
            resume_anyway (`bool`, *optional*, defaults to `False`):
                Resume from a checkpoint of other settings; see [`Checkpoints.check_resumed`].

        Raises:
            UserError: The folder cannot be written to, there is no checkpoint that fits, or data cannot be read.
            SystemExit: With status 143, after SIGTERM.
        """
        checkpoint = self.checkpoints.begin(resume_from_checkpoint, resume_anyway)
        if self.spans and checkpoint is None:  # trained before: the two components have moved apart
            refill(self.pathways, self.shards.whole(self.pathways.exported))
            self.optimizer = None
        with workers_explained(), batches_explained(), states_explained(checkpoint), self.sigterm.listening():
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        return TrainOutput(output.global_step, output.metrics["train_loss"], output.metrics)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple:
        values = super().set_initial_training_values(args, dataloader)
        return self.stages.with_all_stages(values, args.gradient_accumulation_steps)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Give both components the weights of a model that is built anew; `train` calls it, with the seed set."""
        assert self.model_init is not None
        model = checks.prepare_batchnorm(checks.checked(built(self.model_init, trial)), self.args)
        with own_randomness(self.args.seed, self.args.device):
            self.composition.adapt(model, resolve_family(model, self._encoder))
        refill(self.pathways, model)
        return self.pathways

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | None = None,
        hp_name: Any = None,
        *,
        unseen: Sequence[str] = (),
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As `Trainer`'s, on source validation: see [`~deft_hf.trainer.search.search`], which has the arguments."""
        given = hp_space, compute_objective, n_trials, direction, backend, hp_name
        return search(self, *given, unseen, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = self.optimizer or self._given[0]
        if self.optimizer is None:
            every: Any = model or self.model  # it need not be a model of transformers
            cls, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, every)
            self.optimizer = build_optimizer(cls, options, self.pathways, self.args)
        self.shards.note_groups(self.optimizer)
        if self.accelerator.scaler is not None:
            # A fused optimizer skips an overflown step unseen, within its kernel, and the average would move.
            self.optimizer._step_supports_amp_scaling = False  # type: ignore[union-attr]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.create_optimizer()
            self.lr_scheduler = self._given[1] or stage_schedule(optimizer, self.spans, self.args, self.composition)
            if self.lr_scheduler is None:
                return super().create_scheduler(num_training_steps, optimizer)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        labels = batch_samples[0]["labels"]
        checks.check_sizes(labels)
        # The last batch of an epoch, which may be smaller, is the first one of a run that resumes there.
        if not self.state.global_step or len(labels) >= self.args.train_batch_size:
            checks.check_halves(labels, self.spans)
        stage = self.stages.at(self.state.global_step)
        items = torch.stack([self.pathways.count(batch, stage) for batch in batch_samples]).sum(0).to(device)
        items = self.accelerator.reduce(items, reduction="sum")
        # For a subclass whose `compute_loss` calls the model by itself.
        self.pathways.step = items, len(batch_samples) * self.accelerator.num_processes
        return items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        passes = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        losses = model(**inputs, items=num_items_in_batch, passes=passes)
        self.run_log.add_losses(losses)
        return (losses.loss, losses) if return_outputs else losses.loss

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:  # type: ignore[override]  # Trainer passes names
        if self.state.global_step >= self.state.max_steps or self._ended:
            # Resumed from the last step of a run that ended within an epoch; Trainer would take one step more.
            self.control.should_training_stop = True
            return
        self.loaders.enter_epoch(epoch, self.train_dataset, kwargs["train_dataloader"])
        super()._run_epoch(epoch=epoch, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # A model of the warm-up is none of the method's, and patience counts from the best.
        return self.stages.in_last_stage(self.state.global_step) and super()._determine_best_metric(metrics, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.run_log.complete(logs, self.state.global_step)
        super().log(logs, start_time)

    # ---- evaluation

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any
    ) -> DataLoader:
        if not kwargs.get("is_training"):
            ranks = self.accelerator.process_index, self.accelerator.num_processes
            return self.loaders.evaluation(dataset, batch_size, *ranks)
        collator = self.data_collator
        if self.family.objective.needs_masks:  # for training alone: evaluation has no use for them
            self.data_collator = MaskTargets(collator)
        try:
            loader = super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
        finally:
            self.data_collator = collator
        return self.loaders.out_of_reach(loader)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer`'s; the names of several data sets must make keys of their own.

        Raises:
            UserError: Two of them would not.
        """
        if isinstance(eval_dataset, dict):
            checks.check_names([*eval_dataset])
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        """Scores the exported model, and the usual one on request, keeping a confusion matrix and no logits."""
        self.batchnorm.refresh(self.state.global_step)
        models = {label: self.shards.whole(model) for label, model in self.batchnorm.models().items()}
        self.callback_handler.eval_dataloader = dataloader  # whose length the progress bar shows
        return self.evaluator.evaluate(models, dataloader, metric_key_prefix, self._on_prediction_step)

    def _on_prediction_step(self) -> None:
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """Class ids of every image, int64 (H, W) arrays of the labels' size, with the metrics; in one process.

        Items without `labels` are predicted at the size of `pixel_values`, and have no metrics.
        """
        if self.accelerator.num_processes > 1:
            raise UserError("predict runs in one process: start it without a launcher.")
        self.batchnorm.refresh(self.state.global_step)
        predictions: Any  # images differ in size
        self.callback_handler.eval_dataloader = test_dataset  # whose length the progress bar shows
        given = self.generalized_model, test_dataset, metric_key_prefix, self._on_prediction_step
        predictions, metrics = self.evaluator.predict(*given)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        return PredictionOutput(predictions=predictions, label_ids=None, metrics=metrics)

    def choose_weights(self, domains: Sequence[str]) -> None:
        """Let the method put the trained weights where source validation likes them best, where it has such a step.

        Args:
            domains (`Sequence[str]`):
                Names in `eval_dataset`, of source validation.
        """
        if not self.composition.chooses_weights:
            return
        self.composition.choose(self.pathways, lambda: self._source_score(domains))
        self.batchnorm.refresh(self.state.global_step, changed=True)

    def _source_score(self, domains: Sequence[str]) -> float:
        self.batchnorm.refresh(self.state.global_step, changed=True)
        loaders = [self.get_eval_dataloader(self._evaluated[name]) for name in domains]
        return self.evaluator.mean_iou(self.pathways.exported, loaders, self._on_prediction_step)

    def interpolate(self, domains: Sequence[str]) -> dict[float, float]:
        """[`choose_weights`] for `component: interpolated`; returns mean IoU on `domains` by α.

        Raises:
            UserError: The arguments ask for another component.
        """
        wise_ft = self.composition.get(WiSEFT)
        if wise_ft is None:
            raise UserError("interpolate goes with component: interpolated; set that in the arguments.")
        self.choose_weights(domains)
        return wise_ft.found

    # ---- checkpoints

    def last_good_checkpoint(self) -> str | None:
        """The checkpoint in `args.output_dir` to resume from, on every rank; clears what was left half done."""
        return self.checkpoints.last_good()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = self.args.folder if output_dir is None else output_dir
            save_exported(self.generalized_model, self.class_names, self.family.encoder, folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The exported model as a plain Hub folder, whatever it was trained under; every rank calls it."""
        self.batchnorm.refresh(self.state.global_step, in_a_hurry=self.sigterm.is_in_a_hurry(self.args, self.state))
        self.shards.whole(self.pathways.exported)  # with every rank: `_save` runs on one
        self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub("Model save", revision=self.args.hub_revision)
            except PushFailed as error:
                logger.error(str(error))

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.sigterm.leaving:  # still here: save_strategy best let go of the checkpoint that was asked for
            self._save_checkpoint(model, trial)
            self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        step = self.state.global_step
        self.batchnorm.refresh(step, in_a_hurry=self.sigterm.is_in_a_hurry(self.args, self.state))
        batch, loss = self.get_total_train_batch_size(self.args), (self._total_loss_scalar, self._tr_loss)
        facts = {"unreadable": self.unreadable_images(), "loss_sum": self.run_log.loss_so_far(*loss)}
        facts[STATISTICS_DUE] = self.batchnorm.is_due(step)
        folder = self.checkpoints.save(self._get_output_dir(trial), self.state, self._write_state, batch, facts)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        self.checkpoints.rotate(folder, self.state)

    def _write_state(self, folder: str) -> None:
        """The exported model and Trainer's own state."""
        self.save_model(folder, _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(folder)
            self._save_scaler(folder)
            self._save_rng_state(folder)
        if self.args.should_save:
            write_trainer_state(self.state, self.callback_handler.callbacks + [self.control], folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.shards.saves:
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            self.shards.save_optimizer(self.optimizer, self.lr_scheduler, output_dir, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.shards.saves or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            self.shards.load_optimizer(self.optimizer, self.lr_scheduler, checkpoint)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader]:
        if resume_from_checkpoint is None or not self.shards.saves:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Before parameters are spread and DeepSpeed copies them.
        self._load_from_checkpoint(resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.pathways.set_initial(self.pathways.initial)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        unreadable = self.checkpoints.load(resume_from_checkpoint)
        for reader in self._readers():
            reader.note(unreadable)

    def _init_training_state(
        self, max_steps: int, per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        trained = super()._init_training_state(max_steps, per_epoch, epochs, resume_from_checkpoint, trial)
        self._ended = False
        if resume_from_checkpoint is not None:
            self.checkpoints.find_best(self.state, Path(resume_from_checkpoint))
            self._ended = restore_patience(self.state, self.callback_handler.callbacks)
        return trained

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        logger.info(f"Loading the best model, {best} ({self.state.best_metric}).")
        self.checkpoints.load_best(best)
        self.shards.release()
        self.stages.enter(step_of(best) - 1, new=False)
        self.batchnorm.step = self.state.global_step
