"""Fine-tune as a recipe says: `deft-hf train RECIPE`, `accelerate launch -m deft_hf.train RECIPE` on several GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_recipe, command_parser, say
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.train.train`]."""
    options = _parser().parse_args(argv)

    from transformers.utils import logging

    from deft_hf.recipe import Recipe
    from deft_hf.runs.arguments import check_arguments
    from deft_hf.runs.train import train

    logging.disable_progress_bar()
    recipe = Recipe.load(options.recipe, options.overrides)
    check_arguments(recipe)
    say(recipe.to_yaml())
    if not options.dry_run:
        train(recipe, options.resume_anyway)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "train",
        "Fine-tune a segmentation model so that it still works on unseen domains. "
        "On several GPUs: accelerate launch -m deft_hf.train ...",
        "quickstart training.seed=1",
        "recipes/town.yaml --dry-run",
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
