"""Fine-tune as a recipe says: `deft-hf train RECIPE`, `accelerate launch -m deft_hf.train RECIPE` on several GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_recipe, command_parser
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.several.train_each`]."""
    options = _parser().parse_intermixed_args(argv)

    from transformers.utils import logging

    from deft_hf.runs.several import train_each

    logging.disable_progress_bar()
    train_each(options.recipe, options.overrides, options.dry_run, options.resume_anyway)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "train",
        "Fine-tune a segmentation model so that it still works on unseen domains. "
        "On several GPUs: accelerate launch -m deft_hf.train ...",
        "quickstart training.seed=1",
        "recipes/town.yaml --dry-run",
        "recipes/*.yaml training.seed=1",
        epilog="Several recipes are trained one after another, each in its own folder; overrides hold for all.",
    )
    add_recipe(parser)
    parser.add_argument("--dry-run", action="store_true", help="check the recipe, print it resolved, and stop")
    resume = "resume a run of another recipe, as long as its checkpoint fits; the differences are named"
    parser.add_argument("--resume-anyway", action="store_true", help=resume)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "the same command resumes from the last checkpoint")


if __name__ == "__main__":
    run()
