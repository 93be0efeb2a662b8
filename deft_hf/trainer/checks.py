"""What can be wrong with a model, its data and its arguments before `DeFTTrainer` trains, in one message each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from deft_hf.data.collate import check_item
from deft_hf.data.learnable import check_two_classes
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.methods.core.batchnorm import batchnorm_modules, mend_momentum
from deft_hf.methods.core.halves import LEAST_OF_A_HALF
from deft_hf.methods.core.stages import Span
from deft_hf.models.families import SegmentationFamily
from deft_hf.models.kinds import encoder_kind
from deft_hf.models.pretrained import Pretrained, open_pretrained
from deft_hf.trainer.adapters import unwrapped
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.defaults import learning_rates
from deft_hf.trainer.evaluation import Evaluator
from deft_hf.trainer.limits import check_compiler, check_optimizer
from deft_hf.trainer.search import ModelInit, built
from deft_hf.utils.errors import UserError
from deft_hf.utils.randomness import own_randomness

logger = logging.get_logger(__name__)

_OWN = ("compute_loss_func", "preprocess_logits_for_metrics")


def check_arguments(
    args: Any, model: nn.Module | str | None, kwargs: dict[str, Any], model_init: ModelInit | None = None
) -> tuple[DeFTTrainingArguments, nn.Module]:
    """The arguments of a trainer, the defaults where there are none, and its model.

    A model that is named is opened; its image processor takes the place of one that is not given.

    Raises:
        UserError: They are of another class, or an argument of `Trainer` has no meaning here, or there is no model.
    """
    args = DeFTTrainingArguments() if args is None else args
    if not isinstance(args, DeFTTrainingArguments):
        raise UserError(f"args are {type(args).__name__}: build them as DeFTTrainingArguments, with the same fields.")
    for name in _OWN:
        if kwargs.get(name) is not None:
            raise UserError(f"DeFTTrainer computes loss and scores by itself: leave `{name}` out.")
    _check_own_metrics(kwargs.get("compute_metrics"))
    if kwargs.get("optimizer_cls_and_kwargs") and kwargs.get("optimizers", (None, None))[0] is not None:
        raise UserError("found both `optimizers` and `optimizer_cls_and_kwargs`: pass one of them.")
    if model_init is not None:
        if model is not None or any(kwargs.get("optimizers") or ()):
            raise UserError("found model_init beside a model, or `optimizers` of one: pass one of them.")
        with own_randomness(args.seed, args.device):
            model = built(model_init)
    if model is None:
        raise UserError(
            "DeFTTrainer needs a model: pass `model=AutoModelForSemanticSegmentation.from_pretrained(...)`."
        )
    if isinstance(model, str):
        start = open_named(model, kwargs.get("train_dataset"), args)
        model = start.model
        if kwargs.get("processing_class") is None:
            kwargs["processing_class"] = start.processor
    model = checked(model)
    if args.activation_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"activation_checkpointing (gradient_checkpointing): {type(model).__name__} does not support it: leave it "
            "out, and save memory by a smaller per_device_train_batch_size with more gradient_accumulation_steps."
        )
    if not any(kwargs.get("optimizers") or ()) and kwargs.get("optimizer_cls_and_kwargs") is None:
        check_optimizer(args)
    check_compiler(args)
    # One process drives one device: DataParallel would split a batch's loss.
    args._n_gpu = min(args.n_gpu, 1)
    return args, model


def report_default_rate(args: DeFTTrainingArguments, model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Say that a run trains at `TrainingArguments`' own rate, for want of another, and what a recipe would choose."""
    own_optimizer = any(kwargs.get("optimizers") or ()) or kwargs.get("optimizer_cls_and_kwargs") is not None
    default = TrainingArguments.__dataclass_fields__["learning_rate"].default
    if own_optimizer or kwargs.get("train_dataset") is None or {*args.learning_rates().values()} != {default}:
        return
    kind = encoder_kind(getattr(model, "config", None))
    rates = learning_rates(kind, OptimizerNames(args.optim).value)
    logger.warning(
        f"learning_rate is {default:g} for encoder and decoder, the default of TrainingArguments; a recipe that names "
        f"none trains a {kind} encoder at {rates.encoder:g} and its decoder at {rates.decoder:g} "
        "(learning_rate, decoder_learning_rate)."
    )


def _check_own_metrics(compute_metrics: Any) -> None:
    if compute_metrics is None:
        return
    try:
        inspect.signature(compute_metrics).bind("scores", "confusion")
    except (TypeError, ValueError):
        raise UserError(
            "compute_metrics: DeFTTrainer keeps no logits, expected a function of two arguments, "
            "compute_metrics(scores, confusion): the Scores of a data set and its confusion matrix (C, C), rows are "
            "truth; it returns numbers by name."
        ) from None


def open_named(name: str, train_dataset: Any, args: DeFTTrainingArguments) -> Pretrained:
    """The checkpoint of a name, with the classes of the training data.

    Args:
        name (`str`):
            Hub name or folder, or `embedded`.
        train_dataset (`Any`):
            A [`~deft_hf.data.sampling.TrainingSet`], whose domains have the classes.
        args (`DeFTTrainingArguments`):
            Their seed is that of new tensors.

    Raises:
        UserError: The data do not say which classes they have, or there is no such checkpoint.
    """
    if not isinstance(train_dataset, TrainingSet):
        raise UserError(
            f"model is the text {name!r}, and the train_dataset does not say which classes it has: load the model, "
            f"with `AutoModelForSemanticSegmentation.from_pretrained({name!r}, num_labels=...)`."
        )
    with own_randomness(args.seed, args.device):
        return open_pretrained(name, train_dataset.domains[0].labels, seed=args.seed)


def checked(model: Any) -> nn.Module:
    """A model that can be trained, out of its `PeftModel` where it is in one.

    Raises:
        UserError: It is none.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model: found a {type(model).__name__}, expected a model that is loaded: "
            "model=AutoModelForSemanticSegmentation.from_pretrained(...)."
        )
    return unwrapped(model)


def prepare_batchnorm(model: nn.Module, args: DeFTTrainingArguments) -> nn.Module:
    """A model whose BatchNorm keeps usable statistics, the same on all GPUs as one process with the whole batch."""
    if mended := mend_momentum(model):
        logger.warning(f"BatchNorm momentum of {len(mended)} modules was TensorFlow's; turned into PyTorch's.")
    if args.world_size > 1 and args.device.type == "cuda":  # on a CPU torch has no such module
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def report_frozen(model: nn.Module, family: SegmentationFamily) -> None:
    """Say how much of a model the caller froze, which stays as it is in both components.

    Raises:
        UserError: All of it.
    """
    trained = {name: p for name, p in model.named_parameters() if family.is_trained(name)}
    frozen = [name for name, parameter in trained.items() if not parameter.requires_grad]
    if trained and len(frozen) == len(trained):
        raise UserError(
            "model: found every parameter frozen (requires_grad is False), so that there is nothing to train: call "
            "`model.requires_grad_(True)`, or freeze a part of it alone."
        )
    if frozen:
        count = sum(trained[name].numel() for name in frozen)
        logger.warning(
            f"{count:,} parameters in {len(frozen)} tensors came in frozen and stay as they are in both components, "
            f"{frozen[0]} first."
        )


def check_classes(
    name: str, dataset: Any, known: int, args: DeFTTrainingArguments, channels: int | None = None
) -> None:
    """Items that no model can be trained or scored on, labels that it has no class for, data of a single class.

    Args:
        name (`str`):
            Name of the dataset, for the message.
        dataset (`Dataset`):
            Training or evaluation data.
        known (`int`):
            Classes of the model.
        args (`DeFTTrainingArguments`):
            Arguments of the run; their seed is that of random choices in the data.
        channels (`int`, *optional*):
            Channels of the images that the model takes, where it says so.

    Raises:
        UserError: The model has one class, or the data have other classes, fewer than two, or other items.
    """
    way_out = "Load the model with `num_labels` of the data's label space."
    if known < 2:
        raise UserError(f"The model has {known} class, which leaves nothing to tell apart. {way_out}")
    if isinstance(dataset, TrainingSet | EvaluationSet):
        domain = dataset.domains[0] if isinstance(dataset, TrainingSet) else dataset.domain
        if domain.labels.num_labels != known:
            found = f"{name}: domain {domain.name} has {domain.labels.num_labels} classes"
            raise UserError(f"{found}, but the model has {known}. {way_out}")
    elif dataset is not None and not isinstance(dataset, IterableDataset):
        if not hasattr(dataset, "__len__"):
            raise UserError(f"{name}: {type(dataset).__name__} has no __len__; add it, or make it an IterableDataset")
        if not len(dataset):
            raise UserError(f"{name}: {type(dataset).__name__} has no item")
        with own_randomness(args.seed, args.device):
            check_item(name, dataset[0], known, channels)
    with own_randomness(args.seed, args.device):
        check_two_classes(name, dataset)


def check_weights(args: DeFTTrainingArguments, known: int) -> None:
    """A list of class weights has one for each of the `known` classes of the model.

    Raises:
        UserError: It has fewer or more.
    """
    weights = args.class_weights
    if isinstance(weights, list) and len(weights) != known:
        raise UserError(f"class_weights: found {len(weights)}, expected one for each of the {known} classes")


def check_names(names: Sequence[Any]) -> None:
    """Names of evaluation sets whose metrics would have the same keys.

    Raises:
        UserError: Two are the same when written out, or one is another with `_usual` behind it.
    """
    written = [str(name) for name in names]
    taken = {f"{name}_usual" for name in written}
    if both := sorted({name for name in written if name in taken or written.count(name) > 1}):
        raise UserError(
            f"eval_dataset: the metrics of {both[0]!r} have the keys of another data set's (eval_NAME_mean_iou, and "
            "eval_NAME_usual_mean_iou for the usual component): give one of them another name."
        )


def check_selection(
    args: DeFTTrainingArguments, eval_dataset: Any, metrics: Sequence[str], own_metrics: bool = False
) -> None:
    """The metric to select on is one of this run: `Trainer` fills in `loss`, which several data sets do not have.

    Raises:
        UserError: If `metric_for_best_model` is not a metric of this run.
    """
    if args.metric_for_best_model is None and args.save_strategy != "best":
        return
    domains = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    known = [f"{domain}{metric}" for domain in domains for metric in metrics]
    chosen = (args.metric_for_best_model or "").removeprefix("eval_")
    if own_metrics and any(chosen.startswith(domain) and chosen != domain for domain in domains):
        return  # the names that `compute_metrics` gives are known once it was called
    if chosen not in known:
        raise UserError(
            f"metric_for_best_model is {args.metric_for_best_model!r}: expected one of {', '.join(known)}; "
            "choose it on source data."
        )


def leave_no_single_image(args: DeFTTrainingArguments, data: Any, model: nn.Module) -> None:
    """BatchNorm behind a pooling to one pixel cannot be trained on a batch of one image: drop such a last batch."""
    if data is None or isinstance(data, IterableDataset) or not batchnorm_modules(model):
        return
    alone = args.world_size == 1 and args.train_batch_size > 1 and len(data) % args.train_batch_size == 1
    if alone and len(data) > 1 and not args.dataloader_drop_last:
        logger.warning("An epoch's last batch would be a single image, too few for BatchNorm; it is left out.")
        args.dataloader_drop_last = True


def check_sizes(labels: Tensor | list[Tensor]) -> None:
    """Items of a training batch are of one size.

    Raises:
        UserError: They are not, and which sizes they have.
    """
    if isinstance(labels, list):
        sizes = sorted({tuple(label.shape) for label in labels})
        raise UserError(f"train_dataset: items of one batch differ in size, {sizes}: crop or resize them to one.")


def check_halves(labels: Tensor, spans: Sequence[Span]) -> None:
    """A training batch that is not an epoch's last has as many images as stages need that split it.

    Args:
        labels (`Tensor`):
            Its labels, int64 (N, H, W).
        spans (`Sequence[Span]`):
            Stages of the run.

    Raises:
        UserError: It has fewer.
    """
    if any(span.stage == "split" for span in spans) and len(labels) < 2 * LEAST_OF_A_HALF:
        raise UserError(
            f"pathways is split: found {len(labels)} images in a batch, expected at least {2 * LEAST_OF_A_HALF}: "
            "raise per_device_train_batch_size, or set pathways: both."
        )


def check_data(
    train_dataset: Any, eval_dataset: Any, evaluator: Evaluator, args: DeFTTrainingArguments, model: nn.Module
) -> None:
    """Everything about a trainer's data that can be known to be wrong before it trains.

    Args:
        train_dataset (`Dataset`, *optional*):
            Training data of the trainer.
        eval_dataset (`Dataset` or `dict`, *optional*):
            Evaluation data of the trainer.
        evaluator (`Evaluator`):
            Knows the model's classes and the metrics.
        args (`DeFTTrainingArguments`):
            Arguments of the run, in which `dataloader_drop_last` may be set.
        model (`nn.Module`):
            Model that is trained.

    Raises:
        UserError: Classes that the model does not have, or a metric to select on that there is none of.
    """
    named = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    check_names([*named])
    config = getattr(model, "config", None)
    channels = getattr(getattr(config, "backbone_config", None) or config, "num_channels", None)
    for name, dataset in {"train_dataset": train_dataset, **named}.items():
        check_classes(name, dataset, len(evaluator.class_names), args, channels)
    check_weights(args, len(evaluator.class_names))
    check_selection(args, eval_dataset, evaluator.metrics, evaluator.own_metrics is not None)
    leave_no_single_image(args, train_dataset, model)
