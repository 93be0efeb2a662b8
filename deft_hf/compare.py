"""Ask whether DeFT helps on your data: `deft-hf compare RECIPE --methods joint,lp_ft,deft --seeds 5`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from deft_hf.utils.console import add_recipe, command_parser, numbers
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Hand the command line to [`~deft_hf.comparison.experiment.compare`], or to `deft_hf.comparison.along.along`."""
    argv, parser = sys.argv[1:] if argv is None else argv, _parser()
    options = vars(parser.parse_intermixed_args(argv))
    from transformers.utils import logging

    from deft_hf.comparison.along import along
    from deft_hf.comparison.experiment import compare

    logging.disable_progress_bar()
    (along if "curve" in options else compare)(**options, command=f"{parser.prog} {shlex.join(argv)}")


def _parser() -> argparse.ArgumentParser:
    from deft_hf.methods import variants

    listed = "\n".join(f"  {name:22} {variant.note}" for name, variant in variants().items())
    parser = command_parser(
        "compare",
        "Train methods x seeds on one recipe and report how they differ on unseen domains.",
        "quickstart --methods joint,lp_ft,deft --seeds 5 --jobs 2",
        epilog=f"methods (settings of one's own after colons, as deft:method.ema_decay_steps=40000):\n{listed}",
    )
    add_recipe(parser)
    parser.argument_default = argparse.SUPPRESS  # the functions have the defaults, and a curve refuses what is not its
    add = parser.add_argument
    add("--methods", help="names with commas between them (default: joint,lp_ft,deft)")
    add("--seeds", type=int, help="how many seeds, from 0 (default: 3)")
    baseline = "what the others are compared with (default: joint); several: a page each"
    add("--baseline", dest="baselines", type=lambda text: text.split(","), help=baseline)
    add("--jobs", type=int, help="runs at once (default: 1)")
    rates = "learning rates, such as 3e-4,1e-3, to choose from on source data"
    add("--tune", dest="rates", type=numbers, metavar="RATES", help=rates)
    add("--tune-values", dest="values", action="store_true", help="tune each method's own value too")
    add("--curve-points", type=int, metavar="N", help="score the first seed so often while training")
    add("--curve", metavar="KEY=V,V", help="score methods at these values of a recipe key instead")
    add("--no-costs", dest="costs", action="store_false", help="do not measure time and memory of a step")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "the same command resumes with what is missing")


if __name__ == "__main__":
    run()
