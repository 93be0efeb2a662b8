"""A model's trained tensors in two groups, by how much their gradients vary, in place of encoder and decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from deft_hf.methods.core.ema import EMA, run_decay, share_left
from deft_hf.methods.core.stages import Part

if TYPE_CHECKING:
    from torch import nn

Group = Literal["stable", "unstable"]
GROUPS: tuple[Group, Group] = ("stable", "unstable")

# W of the lowest rank of a group, and how much it grows up to the highest.
BASES: dict[Group, tuple[float, float]] = {"stable": (0.99, 0.01), "unstable": (0.999, 0.001)}


@dataclass(frozen=True)
class Layers:
    """Names of trained parameters by group, in each from the lowest variance to the highest.

    Args:
        stable (`tuple[str, ...]`):
            Those whose gradients vary least.
        unstable (`tuple[str, ...]`):
            The others.
    """

    stable: tuple[str, ...]
    unstable: tuple[str, ...]

    @classmethod
    def by_variance(cls, variances: Mapping[str, float], unstable_ratio: float) -> Layers:
        """The share of the parameters whose gradients vary most is unstable; either group has at least one.

        Args:
            variances (`Mapping[str, float]`):
                Variance of the gradient of each parameter; two parameters at least.
            unstable_ratio (`float`):
                The share, in [0, 1], rounded down.
        """
        names = sorted(variances, key=variances.__getitem__)
        stable = len(names) - min(max(int(unstable_ratio * len(names)), 1), len(names) - 1)
        return cls(tuple(names[:stable]), tuple(names[stable:]))

    def decays(self, steps: int, quoted_steps: int | None) -> dict[str, float]:
        """By name, W = base + growth · rank / size of the group, re-scaled to the run as `run_decay` does.

        Args:
            steps (`int`):
                Optimizer steps of the stage.
            quoted_steps (`int`, *optional*):
                Steps that W is quoted at.
        """
        found = {}
        for group in GROUPS:
            (base, growth), names = BASES[group], getattr(self, group)
            for rank, name in enumerate(names):
                found[name] = run_decay(base + growth * rank / len(names), steps, quoted_steps)
        return found


@dataclass(frozen=True)
class LayerEMA(EMA):
    """The plain moving average with a decay for each tensor, once it is known; until then it is that of its part.

    Args:
        steps (`int`, *optional*, defaults to `1`):
            Updates of the stage.
        quoted_steps (`int`, *optional*):
            Steps that W is quoted at.
        layers (`Mapping[str, Sequence[float]]`):
            By part, decays of its trained tensors, in the order of the model.
        sizes (`Mapping[str, Sequence[int]]`):
            Their elements.
    """

    steps: int = 1
    quoted_steps: int | None = None
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def decays(self) -> dict[str, float]:
        """Decay of the lowest rank by group."""
        return {group: run_decay(base, self.steps, self.quoted_steps) for group, (base, _) in BASES.items()}

    def weight(self, part: Part, updates: int) -> float | list[float]:
        return [1.0 - decay for decay in self.layers[part]] if self.layers else super().weight(part, updates)

    def share_left(self, part: Part, updates: int) -> float:
        """The mean over the elements of a part; 1 where nothing of it is trained."""
        if not self.layers:
            return super().share_left(part, updates)
        pairs = list(zip(self.layers[part], self.sizes[part], strict=True))
        left = sum(share_left(decay, updates) * size for decay, size in pairs)
        return left / sum(self.sizes[part]) if pairs else 1.0


def branches(usual: nn.Module, generalized: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The models whose losses train a group each: its tensors are the usual ones, the others the generalized.

    They share all parameters and buffers with the two components, by which they stay up to date. The branch of the
    stable tensors has the generalized component's BatchNorm statistics, the other one the usual component's.

    Args:
        usual (`nn.Module`):
            The component that gradients train.
        generalized (`nn.Module`):
            The one that the average moves.
        layers (`Layers`):
            Which parameter is in which group.
    """
    return {
        "stable": _exchanged(generalized, usual, layers.stable),
        "unstable": _exchanged(usual, generalized, layers.stable),
    }


def _exchanged(model: nn.Module, other: nn.Module, names: Collection[str]) -> nn.Module:
    """`model` with the parameters `names` of `other`, in training mode."""
    from deft_hf.models.views import exchange, sharing

    view, wanted = sharing(model).train(), set(names)
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    # A parameter that is in two places has one name, and goes as a whole.
    every = model.named_parameters(remove_duplicate=False)
    exchange(view, {n: other.get_parameter(n) for n, p in every if canonical[id(p)] in wanted})
    return view
