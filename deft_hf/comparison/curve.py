"""How methods depend on one setting: methods x values x seeds on one recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from deft_hf.comparison import collect, cost
from deft_hf.comparison.checks import check_data, check_folder, check_request
from deft_hf.comparison.jobs import execute
from deft_hf.comparison.plan import Plan, Run
from deft_hf.comparison.statistics import Interval, t_interval
from deft_hf.comparison.variants import parse_variants
from deft_hf.methods.variant import Variant
from deft_hf.recipe import Recipe
from deft_hf.runs.data import load_domains
from deft_hf.runs.provenance import hardware, versions
from deft_hf.runs.settle import overrides as chosen_overrides
from deft_hf.runs.settle import settled
from deft_hf.utils.errors import UserError
from deft_hf.utils.outputs import claimed
from deft_hf.utils.places import check_temporary
from deft_hf.utils.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

# Values count as ten times another within this factor: half decades, 1e-4 and 3e-4, are not quite even.
_ABOUT = 1.15
_EXPONENT = r"[+-]?[\d.]+[eE][+-]?\d+"  # of which YAML makes texts


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

    @cached_property
    def best(self) -> int | None:
        """The value with the highest unseen mean over the seeds, of which nobody who chooses knows."""
        return _highest([self.at(index).mean for index in range(len(next(iter(self.unseen.values()))))])

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


def along(
    recipe: str,
    methods: str = "joint,lp_ft,deft",
    seeds: int | Sequence[int] = 3,
    overrides: Sequence[str] = (),
    *,
    curve: str,
    jobs: int = 1,
    command: str = "",
    **others: Any,
) -> Curve:
    """Train what is missing of methods x values x seeds, and report how scores depend on the value.

    Runs are those of [`~deft_hf.comparison.experiment.compare`], in the same folder, and none is repeated. The page is
    `OUTPUT/curves/KEY/README.md`, with a table, a picture and JSON.

    Args:
        recipe (`str`):
            Path of the recipe; OUTPUT is its `training.output_dir`.
        methods (`str`, *optional*, defaults to `"joint,lp_ft,deft"`):
            Names of rows, separated by commas, each with settings of its own after colons.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to `3`):
            Number of seeds, from 0 on, or the seeds themselves.
        overrides (`Sequence[str]`, *optional*, defaults to `()`):
            Overrides `key.sub=value`, as for `deft_hf.train`.
        curve (`str`):
            Key and values, `training.learning_rate=1e-4,1e-3`.
        jobs (`int`, *optional*, defaults to `1`):
            Number of processes at a time.
        command (`str`, *optional*, defaults to `""`):
            Command to quote on the page.
        others (`Any`):
            Options of a comparison, none of which goes with a curve.

    Raises:
        UserError: If recipe or arguments contain a mistake, or OUTPUT holds something else; before any training.
    """
    from deft_hf.comparison.curve_report import write_curve

    key, values = parse_curve(curve)
    if set_ones := [name for name in ("rates", "values", "curve_points") if others.get(name)]:
        raise UserError(
            f"curve: found {', '.join(set_ones)} beside it, which choose or score otherwise; leave them out"
        )
    variants = parse_variants(methods)
    for name, variant in variants.items():
        if key in variant.own:
            raise UserError(f"curve: {name} sets {key} itself; leave the row out, or vary another key")
    base = settled(Recipe.load(recipe, overrides), selects=False, tunes=key.endswith("learning_rate"))
    overrides = [*overrides, *chosen_overrides(base.choices)]
    check_request(base, seeds, jobs, (), False, 0)
    if not base.data.validation or not base.data.unseen:
        raise UserError(
            "curve: expected data.validation, on which a value is chosen, and data.unseen, which is scored"
        )
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    folder = Path(base.training.output_dir)
    plan = Plan(recipe, tuple(overrides), folder / "runs")
    variants = cost.with_equal_compute(plan, variants)
    rows = {name: [replace(each, own={**each.own, key: value}) for value in values] for name, each in variants.items()}
    for name, row in rows.items():
        plan.check({f"{name}:{key}={value}": each for value, each in zip(values, row, strict=True)})
    check_temporary()
    with claimed(folder, "compare", lambda: check_folder(folder), "training.output_dir"):
        domains = load_domains(base.data)
        check_data(folder / "runs", base, domains)
        runs = {
            (name, seed): [plan.run(each.settings, seed) for each in rows[name]] for seed in seeds for name in rows
        }
        reasons = execute([run for row in runs.values() for run in row], jobs)
        names = [domain.name for domain in domains.validation], [domain.name for domain in domains.unseen]
        found = Curve(
            key=key,
            values=values,
            seeds=seeds,
            methods={
                name: _curve_of(variants[name], {seed: runs[name, seed] for seed in seeds}, *names) for name in rows
            },
            reasons={str(place): reason for place, reason in reasons.items()},
            command=command,
            recipe=base.to_yaml(),
            versions={**versions(), "hardware": hardware()},
            folder=folder / "curves" / key,
        )
        print(f"\n{write_curve(found)}\n\nThe page: {found.folder / 'README.md'}")
        return found


def parse_curve(text: str) -> tuple[str, list[Any]]:
    """Key and values of `KEY=V,V,...`, the values as YAML has them.

    Raises:
        UserError: It is written otherwise, or has fewer than two different values.
    """
    key, equals, listed = text.partition("=")
    values = [_value(each) for each in listed.split(",")] if equals else []
    if "." not in key or len(values) < 2 or len({str(value) for value in values}) < len(values) or None in values:
        raise UserError(
            f"curve: found {text!r}, expected a recipe key and its values, training.learning_rate=1e-4,1e-3"
        )
    return key, values


def _value(text: str) -> Any:
    """A value as YAML has it; `None` for what it cannot read."""
    try:
        return float(text) if re.fullmatch(_EXPONENT, text.strip()) else yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _curve_of(
    variant: Variant, runs: Mapping[int, Sequence[Run]], source: Sequence[str], unseen: Sequence[str]
) -> MethodCurve:
    def mean(run: Run, domains: Sequence[str]) -> float:
        if not run.done:
            return math.nan
        scores = collect.outcome(run, variant.reading).scores
        found = [scores[domain]["mean_iou"] for domain in domains]
        return math.nan if None in found else float(np.mean(found))

    return MethodCurve(
        *({s: [mean(run, each) for run in row] for s, row in runs.items()} for each in (source, unseen))
    )


def _highest(values: Sequence[float]) -> int | None:
    """The first of the highest; `None` where none is known."""
    known = [index for index, value in enumerate(values) if not math.isnan(value)]
    return max(known, key=values.__getitem__) if known else None


def _are_positive(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values)
