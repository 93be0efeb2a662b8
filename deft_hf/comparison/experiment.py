"""A comparison from request to report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from deft_hf.comparison import collect, cost, places, soups, tuning
from deft_hf.comparison.jobs import execute
from deft_hf.comparison.outcomes import Comparison, Failure
from deft_hf.comparison.report import write_report
from deft_hf.comparison.request import Request
from deft_hf.comparison.variants import parse_variants
from deft_hf.methods.soups import is_one_model
from deft_hf.runs.provenance import hardware, versions
from deft_hf.utils.errors import UserError


def compare(
    recipe: str,
    methods: str = "joint,lp_ft,deft",
    seeds: int | Sequence[int] = 3,
    overrides: Sequence[str] = (),
    *,
    baselines: Sequence[str] = ("joint",),
    jobs: int = 1,
    rates: Sequence[float] = (),
    values: bool = False,
    curve_points: int = 0,
    costs: bool = True,
    command: str = "",
) -> Comparison:
    """Train what is missing of methods x seeds, and report.

    Runs lie in `OUTPUT/runs`, each in a folder named after what it is made of; one that is there is not repeated, one
    that was interrupted is resumed. The report is `OUTPUT/README.md` with its tables, figures and JSON; for each
    further baseline there is one in `OUTPUT/against_BASELINE`. A script must call this under
    `if __name__ == "__main__":`, since runs have processes of their own.

    Args:
        recipe (`str`):
            Path of the recipe; OUTPUT is its `training.output_dir`.
        methods (`str`, *optional*, defaults to `"joint,lp_ft,deft"`):
            Names of rows, separated by commas, each with settings of its own after colons. A soup (`deft_soup`) is
            made of the runs of its row, which are trained where they are missing.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to `3`):
            Number of seeds, from 0 on, or the seeds themselves.
        overrides (`Sequence[str]`, *optional*, defaults to `()`):
            Overrides `key.sub=value`, as for `deft_hf.train`.
        baselines (`Sequence[str]`, *optional*, defaults to `('joint',)`):
            Methods that the others are compared with, one report per baseline.
        jobs (`int`, *optional*, defaults to `1`):
            Number of processes at a time. They share the cores, unless OMP_NUM_THREADS says how many threads a process
            has; another number of threads rounds differently.
        rates (`Sequence[float]`, *optional*, defaults to `()`):
            Learning rates to tune each method over, on source validation; without any, the recipe's are used.
        values (`bool`, *optional*, defaults to `False`):
            Whether to tune each method's own value too, at the chosen rate.
        curve_points (`int`, *optional*, defaults to `0`):
            How often the first seed is scored during training; finished runs do not change.
        costs (`bool`, *optional*, defaults to `True`):
            Whether to measure time and memory of a step.
        command (`str`, *optional*, defaults to `""`):
            Command to quote in the report.

    Returns:
        `Comparison`: The results in the first report.

    Raises:
        UserError: If recipe or arguments contain a mistake, or OUTPUT holds something else; before any training.

    Example:

    ```python
    from deft_hf import compare

    if __name__ == "__main__":
        found = compare("quickstart", "joint,lp_ft,deft", seeds=5, jobs=2)
        print(found.to_pandas().groupby(["method", "role"])["mean_iou"].mean())
    ```
    """
    variants = parse_variants(methods)
    for name in baselines:
        if name not in variants:
            raise UserError(f"baselines: found {name}, expected among the methods, {', '.join(variants)}")
    asked = Request.checked(recipe, seeds, overrides, jobs, rates, values, curve_points, tunes=bool(rates))
    base, plan, seeds, folder = asked.base, asked.plan, asked.seeds, asked.folder
    plan.check(variants, values)
    soups.check(variants, baselines, base)
    with asked.claimed() as domains:
        source = [domain.name for domain in domains.validation]
        cost.with_equal_compute(plan, variants)  # refuses before anything is trained
        tuned, trials = tuning.tune(plan, variants, rates, values, source, jobs) if rates else ({}, [])
        variants = {
            name: replace(variant, own={**variant.own, **tuned.get(name, {})}) for name, variant in variants.items()
        }
        variants = cost.with_equal_compute(plan, variants)
        table: soups.Rows = {
            name: {seed: plan.run(variant.settings, seed, curve=seed == seeds[0]) for seed in seeds}
            for name, variant in variants.items()
        }
        pooled = {name: [seeds[0]] if is_one_model(v.mix) else seeds for name, v in variants.items() if v.mix}
        for name, row in table.items():  # damaged results of earlier runs are found before others are trained
            for run in row.values():
                if run.done:
                    collect.outcome(run, variants[name].reading)
        # Seed by seed, so that one that is broken off has something of every method.
        reasons = execute([row[seed] for seed in seeds for row in table.values()], jobs)
        table, unmade = soups.make(variants, table, domains)

        alone = {name: variant.own for name, variant in variants.items()}
        trained = {name: own for name, own in alone.items() if name not in pooled}
        comparison = Comparison(
            title=Path(recipe).stem,
            command=command,
            recipe=base.to_yaml(),
            baseline=baselines[0],
            seeds=seeds,
            source=source,
            unseen=[domain.name for domain in domains.unseen],
            labels=list(domains.labels.names),
            notes={name: variant.note for name, variant in variants.items()},
            settings=alone,
            outcomes={
                name: {seed: collect.outcome(run, variants[name].reading) for seed, run in row.items() if run.done}
                for name, row in table.items()
            },
            failures=unmade
            + [
                Failure(name, seed, reasons[run.folder])
                for name, row in table.items()
                for seed, run in row.items()
                if run.folder in reasons
            ],
            costs=cost.measure(plan, trained, folder / "costs") if costs else {},
            trials=trials,
            versions={**versions(), "hardware": hardware(), **collect.commits(table)},
            folder=folder,
            places=places.look(table, seeds, base, domains, folder) if domains.places else {},
            pooled=pooled,
        )
        print(f"\n{write_report(comparison, folder)}\n\nThe report: {folder / 'README.md'}")
        for name in baselines[1:]:
            place = folder / against(name)
            write_report(replace(comparison, baseline=name, places={}), place)
            print(f"Against {name}: {place / 'README.md'}")
        return comparison


def against(baseline: str) -> str:
    """The folder of the report against a further baseline, whose name may have settings in it."""
    name = re.sub(r"[^\w.=+,-]", "_", baseline)
    return (
        f"against_{name}" if len(name) <= 100 else f"against_{name[:80]}_{sha256(baseline.encode()).hexdigest()[:12]}"
    )
