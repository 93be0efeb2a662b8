"""Score any model on the domains of a recipe: `deft-hf evaluate MODEL RECIPE --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_model, add_output_options, add_recipe, command_parser, parse
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.evaluate.evaluate`]."""
    console, options = parse(_parser(), argv)

    from transformers.utils import logging

    from deft_hf.recipe import Recipe
    from deft_hf.runs.evaluate import evaluate

    logging.disable_progress_bar()
    recipe = Recipe.load(options.pop("recipe"), options.pop("overrides"))
    found = evaluate(**options, recipe=recipe, progress=not console.quiet)
    model, out = options["model"], options["out"]
    written = ", ".join(["results/table.md, results/metrics.json, figures/panels.png", *found.archives])
    console.say(f"mean IoU in per cent\n\n{found.table()}\n\n{out}: {written}")
    console.result({"model": model, "folder": out, "scores": found.score_dicts()})


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluate",
        "Score any segmentation model on the validation and unseen domains of a recipe: tables and pictures.",
        "outputs/quickstart quickstart --out scores",
        "outputs/town/checkpoint-400 recipes/town.yaml --out scores --no-pictures --json",
    )
    add_model(parser)
    add_recipe(parser)
    parser.add_argument("--out", required=True, help="the folder to write to; new or empty")
    parser.add_argument("--name", help="what tables call the model (default: the last part of MODEL)")
    parser.add_argument("--no-pictures", action="store_false", dest="pictures", help="write no PNG of every image")
    server = "write a zip too, with the ids and file names that a benchmark's server takes: cityscapes, acdc, wilddash"
    parser.add_argument("--as", dest="server", metavar="SERVER", help=server)
    add_output_options(parser, overwrite=True)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "nothing is lost but what was not yet scored")


if __name__ == "__main__":
    run()
