"""Selective projection decay: a pull toward the initialisation only where a step and the drift disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Drift(NamedTuple):
    """What has to be known of the parameters before an optimizer step; one scalar tensor per parameter.

    Attributes:
        distances: ||θ - θ_init||_2.
        alignments: -<g, θ - θ_init>; negative where going down the gradient g leads back to the initialisation.
    """

    distances: list[Tensor]
    alignments: list[Tensor]


@torch.no_grad()
def drift(parameters: Sequence[Tensor], initial: Sequence[Tensor]) -> Drift:
    """The drift of parameters that have their gradients, before the optimizer moves them.

    Args:
        parameters: float tensors with `grad`; without one they count as having gradient 0.
        initial: tensors of the same shapes on the same device.
    """
    distances, alignments = [], []
    for parameter, start in zip(parameters, initial, strict=True):
        moved = parameter - start
        distances.append(moved.norm())
        alignments.append(moved.new_zeros(()) if parameter.grad is None else -(parameter.grad * moved).sum())
    return Drift(distances, alignments)


@torch.no_grad()
def project(parameters: Sequence[Tensor], initial: Sequence[Tensor], before: Drift, weight: float) -> None:
    """Selective projection decay after an optimizer step, in place and per tensor:

        if -<g, θ_prev - θ_init> < 0:   θ <- θ - λ r (θ - θ_init)
        r = clip((||θ - θ_init|| - ||θ_prev - θ_init||) / ||θ - θ_init||, 0, 1)

    It takes the place of weight decay (Tian et al., "Rethinking weight decay for robust fine-tuning of foundation
    models", NeurIPS 2024, arXiv 2411.01713, algorithm 1).

    Args:
        parameters: the tensors that the optimizer has moved.
        initial: θ_init, of the same shapes on the same device.
        before: what `drift` found before the step.
        weight: λ; 1 takes back the whole growth of the distance.
    """
    for parameter, start, distance, alignment in zip(parameters, initial, *before, strict=True):
        moved = parameter - start
        now = moved.norm()
        ratio = ((now - distance) / now.clamp(min=torch.finfo(now.dtype).tiny)).clamp(0, 1)
        parameter.sub_(moved * torch.where(alignment < 0, weight * ratio, 0.0))
