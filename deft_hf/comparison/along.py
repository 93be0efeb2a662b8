"""Methods along the values of one setting, from request to page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from deft_hf.comparison import cost
from deft_hf.comparison.checks import sets_both_rates
from deft_hf.comparison.curve import Curve, MethodCurve
from deft_hf.comparison.curve_report import write_curve
from deft_hf.comparison.jobs import execute
from deft_hf.comparison.plan import Run
from deft_hf.comparison.request import Request
from deft_hf.comparison.variants import parse_variants
from deft_hf.methods.variant import Variant
from deft_hf.runs.provenance import hardware, versions
from deft_hf.scoring.report import unseen_mean
from deft_hf.utils.errors import UserError

_EXPONENT = r"[+-]?[\d.]+[eE][+-]?\d+"  # of which YAML makes texts


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
            Other options of a comparison, which a curve refuses.

    Raises:
        UserError: If recipe or arguments contain a mistake, or OUTPUT holds something else; before any training.
    """
    key, values = parse_curve(curve)
    if others:
        raise UserError(f"curve: found {', '.join(others)} beside it, which curves do not use; leave it out")
    variants = parse_variants(methods)
    asked = Request.checked(recipe, seeds, overrides, jobs, tunes=key == "training.learning_rate")
    base, plan, seeds = asked.base, asked.plan, asked.seeds
    if not base.data.validation or not any(entry.labelled for entry in base.data.unseen):
        raise UserError(
            "curve: expected data.validation, on which a value is chosen, and data.unseen with labels, which is scored"
        )
    variants = cost.with_equal_compute(plan, variants)
    for name, variant in variants.items():
        if variant.mix:
            raise UserError(f"curve: {name} is made of the runs of all seeds and has no curve; leave it out")
        if key in variant.own:
            raise UserError(f"curve: {name} sets {key} itself; leave the row out, or vary another key")
    rows = {name: [replace(each, own={**each.own, key: value}) for value in values] for name, each in variants.items()}
    for name, row in rows.items():
        plan.check({f"{name}:{key}={value}": each for value, each in zip(values, row, strict=True)})
        made = [plan.run(each.settings, 0) for each in row]
        if len({run.folder for run in made}) < len(made):
            raise UserError(f"curve: two values of {key} make the same run of {name}; vary a key that changes it")
        if key == "training.learning_rate" and sets_both_rates(made[0].recipe.method):
            raise UserError(
                f"curve: {name} sets method.encoder_learning_rate and method.decoder_learning_rate, beside which "
                "training.learning_rate changes nothing; vary one of these"
            )
    with asked.claimed() as domains:
        runs = {
            (name, seed): [plan.run(each.settings, seed) for each in rows[name]] for seed in seeds for name in rows
        }
        for run in (run for row in runs.values() for run in row if run.done):
            _ = run.facts  # damaged results of earlier runs are found before others are trained
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
            folder=asked.folder / "curves" / key,
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
    except (yaml.YAMLError, ValueError):  # `1.2.3e4`, or a date such as 2024-13-45
        return None


def _curve_of(
    variant: Variant, runs: Mapping[int, Sequence[Run]], source: Sequence[str], unseen: Sequence[str]
) -> MethodCurve:
    def mean(run: Run, domains: Sequence[str]) -> float:
        return unseen_mean(run.scores(variant.reading), domains) if run.done else math.nan

    return MethodCurve(
        *({s: [mean(run, each) for run in row] for s, row in runs.items()} for each in (source, unseen))
    )
