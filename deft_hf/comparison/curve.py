"""The results of methods along the values of a setting, from which the page is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft_hf.comparison.statistics import Interval, t_interval
from deft_hf.utils.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

# Values count as ten times another within this factor: half decades, 1e-4 and 3e-4, are not quite even.
_ABOUT = 1.15


@dataclass(frozen=True)
class MethodCurve:
    """One method along the values.

    Attributes:
        source (`dict[int, list[float]]`):
            By seed, mean over the source validation domains of mean IoU at each value; NaN where a run has no score.
        unseen (`dict[int, list[float]]`):
            By seed, the same over the unseen domains.
    """

    source: dict[int, list[float]]
    unseen: dict[int, list[float]]

    def at(self, index: int) -> Interval:
        """Unseen mean at a value, and its t interval over the seeds."""
        return t_interval([row[index] for row in self.unseen.values() if not math.isnan(row[index])])

    def source_at(self, index: int) -> float:
        """Source mean at a value, over the seeds."""
        return t_interval([row[index] for row in self.source.values() if not math.isnan(row[index])]).mean

    def seeds_at(self, index: int) -> int:
        """How many seeds have an unseen mean at a value."""
        return sum(not math.isnan(row[index]) for row in self.unseen.values())

    @cached_property
    def best(self) -> int | None:
        """The value with the highest unseen mean over the seeds, among those at which most seeds have one.

        Nobody who chooses without labels there can know it.
        """
        seeds = [self.seeds_at(index) for index in range(len(next(iter(self.unseen.values()))))]
        means = [self.at(index).mean if count == max(seeds) else math.nan for index, count in enumerate(seeds)]
        return _highest(means)

    @cached_property
    def chosen(self) -> dict[int, int]:
        """By seed, the value that source validation chooses."""
        found = {seed: _highest(row) for seed, row in self.source.items()}
        return {seed: index for seed, index in found.items() if index is not None}

    @cached_property
    def regret(self) -> Interval:
        """The unseen mean at the value that source validation chooses, less that at the best one; over the seeds."""
        if self.best is None:
            return t_interval([])
        losses = [self.unseen[seed][index] - self.unseen[seed][self.best] for seed, index in self.chosen.items()]
        return t_interval([loss for loss in losses if not math.isnan(loss)])

    def loss_at_ten_times(self, values: Sequence[Any]) -> Interval | None:
        """The unseen mean at ten times the best value, less that at the best one; `None` where it was not tried."""
        if self.best is None or not _are_positive(values):
            return None
        near = [i for i, value in enumerate(values) if 1 / _ABOUT <= value / (10 * values[self.best]) <= _ABOUT]
        if not near:
            return None
        losses = [row[near[0]] - row[self.best] for row in self.unseen.values()]
        return t_interval([loss for loss in losses if not math.isnan(loss)])


@dataclass(frozen=True)
class Curve(Result):
    """Methods x values x seeds on one recipe.

    Attributes:
        key (`str`):
            Recipe key that is varied.
        values (`list[Any]`):
            Its values, in order.
        seeds (`list[int]`):
            All seeds asked for.
        methods (`dict[str, MethodCurve]`):
            By method.
        reasons (`dict[str, str]`):
            By folder of a run that failed, why.
        command (`str`):
            Command that reproduces it.
        recipe (`str`):
            The resolved recipe, YAML.
        versions (`dict[str, str]`):
            Versions of packages and the hardware.
        folder (`Path`):
            Where the page was written.
    """

    key: str
    values: list[Any]
    seeds: list[int]
    methods: dict[str, MethodCurve]
    reasons: dict[str, str]
    command: str
    recipe: str
    versions: dict[str, str]
    folder: Path

    def to_pandas(self) -> DataFrame:
        """A row for each method, value and seed: its source and its unseen mean of mean IoU."""
        import pandas

        rows = [
            {"method": name, self.key: value, "seed": seed, "source": own.source[seed][i], "unseen": row[i]}
            for name, own in self.methods.items()
            for seed, row in own.unseen.items()
            for i, value in enumerate(self.values)
        ]
        return pandas.DataFrame(rows).set_index(["method", self.key, "seed"])

    def pictures(self) -> list[Path]:
        return [self.folder / "curve.png"]


def _highest(values: Sequence[float]) -> int | None:
    """The first of the highest; `None` where none is known."""
    known = [index for index, value in enumerate(values) if not math.isnan(value)]
    return max(known, key=values.__getitem__) if known else None


def _are_positive(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values)
