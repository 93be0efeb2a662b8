"""The loss of a run: what the arguments ask for, as the objective of the model's family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from deft_hf.data.class_index import frequencies, shared_indices
from deft_hf.data.sampling import training_sets
from deft_hf.models.families import SegmentationFamily, resolve_family
from deft_hf.models.reweighted import ReweightedPerPixel
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError

BALANCED = "balanced"


@dataclass
class LossArguments:
    """Arguments for rare classes, of models with a loss per pixel; see [`ReweightedPerPixel`]."""

    class_weights: str | list[float] | None = field(
        default=None,
        metadata={
            "help": "Weights of the classes in the cross-entropy: a list in their order, or balanced, inverse to "
            "their share of the labelled pixels that are trained on. Default: all 1."
        },
    )
    ohem_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Online hard example mining: a pixel counts while the probability of its class is below this, 0.7 "
            "as a rule. Default: all count."
        },
    )
    ohem_min_kept: float = field(
        default=1 / 16,
        metadata={"help": "With it, so many of the hardest pixels of each image count at least; below 1, a share."},
    )
    dice_weight: float = field(
        default=0.0, metadata={"help": "Weight of a Dice loss that is added to the cross-entropy."}
    )

    def asks_for_loss(self) -> list[str]:
        """The arguments that change the loss."""
        given = {
            "class_weights": self.class_weights is not None,
            "ohem_threshold": self.ohem_threshold is not None,
            "dice_weight": self.dice_weight != 0,
        }
        return [name for name, there in given.items() if there]

    def loss_record(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint that it resumes, of the arguments that have a meaning."""
        weights = self.class_weights
        record = {
            "class_weights": weights if weights is None or isinstance(weights, str) else [*map(float, weights)],
            "ohem_threshold": self.ohem_threshold,
            "dice_weight": self.dice_weight,
        }
        return record if self.ohem_threshold is None else record | {"ohem_min_kept": self.ohem_min_kept}


def wrong_weights(args: LossArguments) -> Iterator[str]:
    """Yields one line if `class_weights` are none."""
    weights: Any = args.class_weights
    if weights is None or weights == BALANCED:
        return
    numbers = isinstance(weights, Sequence) and not isinstance(weights, str)
    numbers = numbers and all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights)
    if not numbers or not any(weights):
        yield f"class_weights: found {weights}, expected balanced, or a list of numbers from 0 up, not all of them 0"


def family_of(
    model: nn.Module, encoder: str | None, args: LossArguments, train_dataset: Any = None
) -> SegmentationFamily:
    """The family of a model, with the loss that the arguments ask for.

    Args:
        model (`nn.Module`):
            A segmentation model.
        encoder (`str` or `None`):
            See [`~deft_hf.models.families.resolve_family`].
        args (`LossArguments`):
            The arguments.
        train_dataset (`Dataset`, *optional*):
            What is trained on, whose classes are counted for `balanced` weights.

    Raises:
        UserError: The model matches masks, or the weights cannot be told.
    """
    family = resolve_family(model, encoder)
    asked = args.asks_for_loss()
    if not asked:
        return family
    if family.objective.needs_masks:
        model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            f"{', '.join(asked)}: found for a {model_type} model, which is trained by matching masks and has no loss "
            "per pixel; leave them out, or take a model with a per-pixel head (segformer, upernet, ...)."
        )
    weights = _class_weights(args, train_dataset)
    objective = ReweightedPerPixel(weights, args.ohem_threshold, args.ohem_min_kept, args.dice_weight)
    return replace(family, objective=objective)


def _class_weights(args: LossArguments, train_dataset: Any) -> tuple[float, ...] | None:
    if args.class_weights is None or not isinstance(args.class_weights, str):
        return None if args.class_weights is None else tuple(map(float, args.class_weights))
    domains = [domain for each in training_sets(train_dataset) for domain in each.domains]
    if not domains:
        raise UserError(
            "class_weights: found balanced, for which the classes are counted in the domains of a TrainingSet, and "
            "the training data is none; give the weights as a list"
        )
    weights = balanced_weights(frequencies(shared_indices(domains)))
    told = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(domains[0].labels.names, weights, strict=True))
    say(f"class weights: {told}")
    return weights


def balanced_weights(shares: np.ndarray) -> tuple[float, ...]:
    """1 / (C f_c) for the C classes with a share f_c of the pixels, as scikit-learn's `balanced`; 1 for the others."""
    return tuple(1 / (np.count_nonzero(shares) * share) if share else 1.0 for share in shares.tolist())
