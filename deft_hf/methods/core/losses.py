"""The losses of a step that takes two groups of tensors apart, one for each group that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from deft_hf.methods.core.halves import halves
from deft_hf.methods.core.staged import can_be_staged, staged
from deft_hf.methods.core.stages import Stage


def losses_by_group(
    loss: Callable[[str, Mapping[str, Any], Tensor], Tensor],
    groups: tuple[str, str],
    stage: Stage,
    batch: Mapping[str, Any],
    items: Tensor,
    turn: int,
    ahead: Sequence[Tensor],
) -> dict[str, Tensor]:
    """The losses of a batch in the stages `warmup`, `decoupled`, `split` and `alternating`, by group.

    Args:
        loss (`Callable`):
            From a group, a batch and its items, the loss that trains the group, a float scalar with a graph.
        groups (`tuple[str, str]`):
            Encoder and decoder, or what is in their place.
        stage (`Stage`):
            The stage.
        batch (`Mapping[str, Any]`):
            Images and targets.
        items (`Tensor`):
            The objective's items of the optimizer step; where the stage splits batches, those of each group.
        turn (`int`):
            Which of the groups it is the turn of in `alternating`, 0 or 1.
        ahead (`Sequence[Tensor]`):
            Tensors that the second loss trains, if their gradients may be taken ahead of the backward.
    """
    first, second = groups
    batches, counts = (halves(batch), items) if stage == "split" else ((batch, batch), (items, items))
    of_first, of_second = (partial(loss, *each) for each in zip(groups, batches, counts, strict=True))
    if stage == "warmup" or (stage == "alternating" and turn):
        return {second: of_second()}
    if stage == "alternating":
        return {first: of_first()}
    second_loss = staged(of_second, ahead) if can_be_staged(ahead) else of_second()
    return {first: of_first(), second: second_loss}
