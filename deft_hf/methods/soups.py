"""Soups: models made of those of several runs by averaging their weights, without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deft_hf.methods.averages import Averaging
from deft_hf.methods.base import Ingredient
from deft_hf.methods.deft import DeFT
from deft_hf.methods.variant import Mix
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_MEMBERS = {**{name: Averaging.variants[name] for name in ("joint_ema", "lp_ft_ema")}, "deft": DeFT.variants["deft"]}
_MIXES: dict[Mix, str] = {
    "soup": "the average of its models of all seeds, nothing trained (Wortsman et al. 2022)",
    "greedy_soup": "the average of those models that source validation takes, nothing trained (Wortsman et al. 2022)",
    "revt": "each seed's decoder on the average of all seeds' encoders, nothing trained (Termöhlen et al. 2023)",
}


class Soups(Ingredient):
    """Rows of a comparison whose models are averages of the exported models of another row's runs, one a seed.

    Model soups (Wortsman et al., ICML 2022) average runs that have the pretrained weights and the head in common.
    Seeds here have heads of their own, which meet only as far as the warm-up brings them together; ReVT (Termöhlen et
    al., 2023, https://arxiv.org/abs/2308.13331) averages encoders alone. Its runs differ in augmentation, these in the
    seed. BatchNorm statistics are taken anew on source images, as for any average of weights.
    """

    name = "soup"
    summary = "models of several seeds averaged into one, without training"
    paper = "Wortsman et al. 2022, https://arxiv.org/abs/2203.05482"
    variants = {
        f"{name}_{mix}": replace(member, note=f"{name}: {note}", tries=None, like=name, mix=mix)
        for name, member in _MEMBERS.items()
        for mix, note in _MIXES.items()
    }

    @property
    def is_on(self) -> bool:
        return False  # in no run


def averaged(models: Sequence[nn.Module], takes: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """A copy of the first model in which parameters are the means over all models: θ = Σ θ_i / n.

    Args:
        models (`Sequence[nn.Module]`):
            Models of one architecture, at least one; they are not changed. Of one alone the copy is equal to it.
        takes (`Callable`, *optional*):
            Whether a parameter is averaged, by its name; by default all are. Others, and all buffers, are those of the
            first model: BatchNorm's running statistics fit the result only once they are taken anew.

    Raises:
        UserError: Parameters of two models differ in name or shape.

    Example:

    ```python
    >>> from torch import nn
    >>> from deft_hf.methods.soups import averaged

    >>> one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> soup = averaged([one, two])
    >>> bool((soup.weight == (one.weight + two.weight) / 2).all())
    True

    ```
    """
    import torch

    every = [dict(model.named_parameters()) for model in models]
    for other in every[1:]:
        for name in [*every[0], *other]:
            found = [tuple(each[name].shape) if name in each else None for each in (every[0], other)]
            if found[0] != found[1]:
                raise UserError(f"{name} has the shapes {found[0]} and {found[1]}, so that there is no average")
    soup = copy.deepcopy(models[0])
    with torch.no_grad():
        for name, parameter in soup.named_parameters():
            if takes(name):
                # In float64, so that the order of the models does not show.
                parameter.copy_(torch.stack([each[name].double() for each in every]).mean(0))
    return soup


def greedy(members: Sequence[int], score: Callable[[Sequence[int]], float]) -> list[int]:
    """Which members a greedy soup takes.

    The best one first; then the others, from the second best on, each where the average with it scores no worse than
    without (Wortsman et al., ICML 2022, recipe 1).

    Args:
        members (`Sequence[int]`):
            The members.
        score (`Callable`):
            The score of the average of some members on held-out data, higher is better.
    """
    alone = {member: score([member]) for member in members}
    first, *others = sorted(members, key=lambda member: -alone[member])
    taken, best = [first], alone[first]
    for member in others:
        if (found := score([*taken, member])) >= best:
            taken, best = [*taken, member], found
    return taken


def is_one_model(mix: Mix | None) -> bool:
    """Whether a row that is made of all seeds is a single model, and not one a seed."""
    return mix in ("soup", "greedy_soup")
