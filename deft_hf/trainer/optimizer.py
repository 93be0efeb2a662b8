"""Parameter groups and learning-rate schedule of a run with stages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from deft_hf.methods.composition import Composition
from deft_hf.methods.core.pathways import DualPathway, takes_decay
from deft_hf.methods.core.stages import PARTS, Part, Span, Stage, stage_at
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.optimizer_state import inner
from deft_hf.utils.errors import UserError


def parameter_groups(pathways: DualPathway, args: DeFTTrainingArguments) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: encoder and decoder, each with and without weight decay; `part` names the part.

    Norms, biases and layer scales get no decay unless `decay_norm_and_bias`. `weight_decay_in` has that of each stage
    where they differ; see `decay_as_in`.
    """
    rates, decays = args.learning_rates(), args.weight_decays()
    parts: tuple[Part, ...] = PARTS if args.trains_encoder() else ("decoder",)
    groups: list[dict[str, Any]] = []
    for part in parts:
        decayed: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in pathways.usual.named_parameters():
            if pathways.family.part_of(name) == part and pathways.family.is_trained(name):
                kept_small = takes_decay(name, parameter) or args.decay_norm_and_bias
                (decayed if kept_small else rest).append(parameter)
        for parameters, decay in ((decayed, decays[part]), (rest, 0.0)):
            if not parameters:
                continue
            group = {"params": parameters, "lr": rates[part], "weight_decay": decay, "part": part}
            if args.decoder_warmup_weight_decay is not None and part == "decoder" and parameters is decayed:
                group["weight_decay_in"] = {**dict.fromkeys(get_args(Stage), decay), "warmup": decays["warmup"]}
            groups.append(group)
    return groups


def decay_as_in(stage: Stage, optimizer: Any) -> None:
    """Give the groups of `parameter_groups` the weight decay of a stage; those of others stay as they are.

    Args:
        stage (`Stage`):
            The stage.
        optimizer (`Any`):
            Optimizer as prepared by Accelerate.
    """
    for group in inner(optimizer).param_groups:
        if "weight_decay_in" in group:
            group["weight_decay"] = group["weight_decay_in"][stage]


def build_optimizer(
    cls: type[torch.optim.Optimizer], options: dict[str, Any], pathways: DualPathway, args: DeFTTrainingArguments
) -> torch.optim.Optimizer:
    """An optimizer over the groups of `parameter_groups`.

    Args:
        cls (`type`):
            Class of the optimizer.
        options (`dict`):
            Its arguments, as `Trainer.get_optimizer_cls_and_kwargs` returns them.
        pathways (`DualPathway`):
            What is trained.
        args (`DeFTTrainingArguments`):
            Rates and decays.

    Raises:
        UserError: The optimizer forms parameter groups of its own.
    """
    if options.keys() & {"params", "model", "optimizer_dict"}:
        raise UserError(f"optim {args.optim} forms its own parameter groups: choose another, such as adamw_torch.")
    return cls(parameter_groups(pathways, args), **options)


def stage_schedule(
    optimizer: torch.optim.Optimizer, spans: Sequence[Span], args: DeFTTrainingArguments, composition: Composition
) -> LambdaLR | None:
    """`args.lr_scheduler_type`, started anew at each stage. In the warm-up the encoder's rate is 0.

    The warm-up's schedule has the length of the last stage unless the warm-up is longer: the authors' decays over the
    steps of stage 2 too, so that its rate hardly falls.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Optimizer with the groups of `parameter_groups`.
        spans (`Sequence[Span]`):
            Stages of the run.
        args (`DeFTTrainingArguments`):
            Type and arguments of the schedule, and rates.
        composition (`Composition`):
            The method and its ingredients, which may shift the schedule.

    Returns:
        `LambdaLR` or `None`: The scheduler; `None` if the type is not a function of the step and there is one stage,
        for which Trainer's own is right.

    Raises:
        UserError: If such a type is used with more than one stage, or with a method that shifts the schedule.
    """
    shapes = [schedule_shape(args, max(span.steps, spans[-1].steps)) for span in spans]
    if any(type(shape) is not LambdaLR for shape in shapes):
        if len(spans) == 1 and not composition.shifts_schedule:
            return None
        raise UserError(
            f"lr_scheduler_type {SchedulerType(args.lr_scheduler_type).value} can neither restart at the second stage "
            "nor stand still for swa: choose one that is a function of the step, such as polynomial, cosine or linear."
        )
    rates = args.learning_rates()

    def factor(part: str, step: int) -> float:
        index, span = stage_at(spans, step)
        (shape_at,) = shapes[index].lr_lambdas
        step -= sum(earlier.steps for earlier in spans[:index])
        if index == len(spans) - 1:
            step = composition.step_of_schedule(step, span.steps, args.get_warmup_steps(span.steps))
        value = shape_at(step)
        if span.stage != "warmup":
            return value
        return value * rates["warmup"] / rates["decoder"] if part == "decoder" else 0.0

    # An optimizer that the user brought along has groups of its own.
    parts = [group.get("part", "decoder") for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(factor, part) for part in parts])


def schedule_shape(args: DeFTTrainingArguments, steps: int) -> Any:
    """`args.lr_scheduler_type` over `steps`, on an optimizer that stands for any.

    Raises:
        UserError: `lr_scheduler_kwargs` do not fit the type.
    """
    options: Any = args.lr_scheduler_kwargs  # `TrainingArguments` has made a dict of a string
    try:
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=copy.deepcopy(options),
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"lr_scheduler_type {SchedulerType(args.lr_scheduler_type).value} with lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs} and learning_rate {args.learning_rate}: {error}"
        ) from error
