"""Ask whether DeFT helps on your data: `python -m deft_hf.compare RECIPE --methods joint,lp_ft,deft --seeds 5`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from transformers.utils import logging

from deft_hf.comparison.experiment import compare
from deft_hf.methods import variants
from deft_hf.utils.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to `compare`."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_intermixed_args(argv)
    logging.disable_progress_bar()
    compare(
        options.recipe,
        options.methods,
        options.seeds,
        options.overrides,
        baselines=options.baseline.split(","),
        jobs=options.jobs,
        rates=_rates(options.tune),
        values=options.tune_values,
        curve_points=options.curve_points,
        costs=not options.no_costs,
        command=f"python -m deft_hf.compare {shlex.join(argv)}",
    )


def _rates(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--tune: found {text!r}, expected learning rates, such as 3e-4,1e-3") from None


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:18} {variant.note}" for name, variant in variants().items())
    parser = argparse.ArgumentParser(
        prog="python -m deft_hf.compare",
        description="Train methods x seeds on one recipe and report how they differ on unseen domains.",
        epilog=f"methods (settings of one's own after colons, as deft:method.ema_decay_steps=40000):\n{known}\n\n"
        "examples:\n  python -m deft_hf.compare recipes/quickstart.yaml --methods joint,lp_ft,deft --seeds 5 --jobs 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipe", help="YAML file; see recipes/README.md")
    add("overrides", nargs="*", metavar="key.sub=value", help="values to use instead of the recipe's")
    add("--methods", default="joint,lp_ft,deft", help="names with commas between them")
    add("--seeds", type=int, default=3, help="how many seeds, from 0 (default: 3)")
    add("--baseline", default="joint", help="what the others are compared with (default: joint); several: a page each")
    add("--jobs", type=int, default=1, help="runs at once (default: 1)")
    add("--tune", default="", metavar="RATES", help="learning rates, such as 3e-4,1e-3, to choose from on source data")
    add("--tune-values", action="store_true", help="tune each method's own value too")
    add("--curve-points", type=int, default=0, metavar="N", help="score the first seed so often while training")
    add("--no-costs", action="store_true", help="do not measure time and memory of a step")
    return parser


def run() -> None:
    """`main` for the command line."""
    run_command(main, "the same command goes on with what is missing")


if __name__ == "__main__":
    run()
