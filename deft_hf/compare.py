"""Ask whether DeFT helps on your data: `python -m deft_hf.compare RECIPE --methods joint,lp_ft,deft --seeds 5`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from deft_hf import runs
from deft_hf.comparison import collect, cost, report, tuning
from deft_hf.comparison.jobs import execute
from deft_hf.comparison.outcomes import Comparison, Failure
from deft_hf.comparison.plan import Plan
from deft_hf.comparison.variants import VARIANTS, Variant, parse_variants
from deft_hf.errors import UserError
from deft_hf.recipe import Recipe
from deft_hf.results import hardware, versions


def compare(
    recipe: str,
    methods: str = "joint,lp_ft,deft",
    seeds: int | Sequence[int] = 3,
    overrides: Sequence[str] = (),
    baseline: str = "joint",
    jobs: int = 1,
    rates: Sequence[float] = (),
    values: bool = False,
    curve_points: int = 0,
    costs: bool = True,
    command: str = "",
) -> Comparison:
    """Train what is missing of methods x seeds, and report.

    Runs lie in `OUTPUT/runs`, each in a folder named after what it is made of; one that is there is not repeated, one
    that was broken off goes on. The report is `OUTPUT/README.md` with its tables, figures and JSON.

    Args:
        recipe: path of the recipe; OUTPUT is its `training.output_dir`.
        methods: names of `VARIANTS` with commas between them, each with settings of its own after colons.
        seeds: how many, from 0; or which.
        overrides: `key.sub=value`, as for `deft_hf.train`.
        baseline: the method that the others are compared with.
        jobs: processes at once.
        rates: learning rates to tune each method over, on source validation; none: as the recipe says.
        values: tune each method's own value too, at the rate chosen.
        curve_points: how often the first seed is scored while training.
        costs: measure time and memory of a step.
        command: what to quote as the command behind the report.

    Returns:
        What is in the report.

    Raises:
        UserError: a mistake in recipe or arguments, before anything is trained.
    """
    variants = parse_variants(methods)
    if baseline not in variants:
        raise UserError(f"--baseline: found {baseline}, expected one of the methods, {', '.join(variants)}")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    base = Recipe.load(recipe, overrides)
    folder = Path(base.training.output_dir)
    plan = Plan(recipe, tuple(overrides), folder / "runs", curve_points)
    plan.check(variants)
    source = [entry.name for entry in base.data.validation]
    unseen = [entry.name for entry in base.data.unseen]
    runs.load_domains(base)  # every image is read once, here and not in every run

    variants = _with_equal_compute(plan, variants)
    settings, trials = tuning.tune(plan, variants, rates, values, source, jobs) if rates else ({}, [])
    settings = {name: {**variant.settings, **settings.get(name, {})} for name, variant in variants.items()}
    table = {
        name: {seed: plan.run(chosen, seed, curve=seed == seeds[0]) for seed in seeds}
        for name, chosen in settings.items()
    }
    reasons = execute([run for row in table.values() for run in row.values()], jobs)
    comparison = Comparison(
        title=Path(recipe).stem,
        command=command,
        recipe=base.to_yaml(),
        baseline=baseline,
        seeds=seeds,
        source=source,
        unseen=unseen,
        labels=list(base.data.label_space().names),
        notes={name: variant.note for name, variant in variants.items()},
        settings=settings,
        outcomes={
            name: {seed: collect.outcome(run, variants[name].reading) for seed, run in row.items() if run.done}
            for name, row in table.items()
        },
        failures=[
            Failure(name, seed, reasons[run.folder])
            for name, row in table.items()
            for seed, run in row.items()
            if run.folder in reasons
        ],
        costs=cost.measure(plan, variants, folder / "costs") if costs else {},
        trials=trials,
        versions={**versions(), "hardware": hardware()},
    )
    print(f"\n{report.write_report(comparison, folder)}\n\nThe report: {folder / 'README.md'}")
    return comparison


def _with_equal_compute(plan: Plan, variants: dict[str, Variant]) -> dict[str, Variant]:
    """The variants, those of equal compute with the steps that this makes."""
    flops: dict[str, int] = {}

    def step(name: str) -> int:
        if name not in flops:
            flops[name] = cost.flops_of_a_step(plan.run(VARIANTS[name].alone, 0).recipe)
        return flops[name]

    return {
        name: variant
        if variant.compute_of is None
        else variant.lengthened(
            round(plan.steps(variant.settings) * step(variant.compute_of) / step(variant.settings["method.name"]))
        )
        for name, variant in variants.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `compare`."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    logging.disable_progress_bar()
    compare(
        options.recipe,
        options.methods,
        options.seeds,
        options.overrides,
        options.baseline,
        options.jobs,
        options.tune,
        options.tune_values,
        options.curve_points,
        not options.no_costs,
        command=f"python -m deft_hf.compare {shlex.join(argv)}",
    )


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:18} {variant.note}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog="deft_hf.compare",
        description="Train methods x seeds on one recipe and report how they differ on unseen domains.",
        epilog=f"methods (settings of one's own after colons, as deft:method.ema_decay_steps=40000):\n{known}\n\n"
        "example: python -m deft_hf.compare recipes/quickstart.yaml --methods joint,lp_ft,deft --seeds 5 --jobs 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="YAML file; see recipes/README.md")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values to use instead of the recipe's")
    parser.add_argument("--methods", default="joint,lp_ft,deft", help="names with commas between them")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: 3)")
    parser.add_argument("--baseline", default="joint", help="what the others are compared with (default: joint)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument(
        "--tune",
        type=lambda text: [float(rate) for rate in text.split(",")],
        default=[],
        metavar="RATES",
        help="learning rates, such as 3e-4,1e-3, to choose from for each method on source validation",
    )
    parser.add_argument("--tune-values", action="store_true", help="tune each method's own value too")
    parser.add_argument(
        "--curve-points", type=int, default=0, metavar="N", help="score the first seed so often while training"
    )
    parser.add_argument("--no-costs", action="store_true", help="do not measure time and memory of a step")
    return parser


def run() -> None:
    """`main` for the command line: a user's mistake is one message and exit status 2."""
    try:
        main()
    except UserError as error:
        sys.exit(_fail(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; the same command goes on with what is missing", 130))


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    run()
