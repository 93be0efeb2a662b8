"""Fine-tune as a recipe says: `accelerate launch -m deft_hf.train recipes/NAME.yaml [key.sub=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers.utils import logging

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments
from deft_hf.runs.train import train
from deft_hf.utils.console import command_parser, say
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Recipe, data, training of every method, evaluation of every domain, export, card, push."""
    options = _parser().parse_args(argv)
    logging.disable_progress_bar()
    recipe = Recipe.load(options.recipe, options.overrides)
    check_arguments(recipe)
    say(recipe.to_yaml())
    if options.dry_run:
        return
    train(recipe, options.resume_anyway)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "train",
        "Fine-tune a segmentation model so that it still works on unseen domains. "
        "On several GPUs: accelerate launch -m deft_hf.train ...",
        "recipes/quickstart.yaml training.seed=1",
        "recipes/quickstart.yaml --dry-run",
    )
    parser.add_argument("recipe", help="YAML file; see recipes/README.md")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values to use instead of the recipe's")
    parser.add_argument("--dry-run", action="store_true", help="check the recipe, print it resolved, and stop")
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="go on with a run of another recipe, as long as its state fits; what differs is named",
    )
    return parser


def run() -> None:
    """`main` for the command line."""
    run_command(main, "the same command goes on from the last checkpoint")


if __name__ == "__main__":
    run()
