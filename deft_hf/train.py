"""Fine-tune as a recipe says: `accelerate launch -m deft_hf.train recipes/NAME.yaml [key.sub=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers.utils import logging

from deft_hf.publish.push import check_repository, push_folder
from deft_hf.recipe import Recipe
from deft_hf.runs import results
from deft_hf.runs import steps as runs
from deft_hf.runs.folder import claimed_folder
from deft_hf.utils.console import command_parser, is_main, say
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Recipe, data, training of every method, evaluation of every domain, export, card, push."""
    options = _parser().parse_args(argv)
    logging.disable_progress_bar()
    recipe = Recipe.load(options.recipe, options.overrides)
    runs.check_arguments(recipe)
    say(recipe.to_yaml())
    if options.dry_run:
        return
    publish = recipe.publish
    target = {"private": publish.private, "revision": publish.revision}
    if publish.push_to_hub and is_main():
        check_repository(publish.repo_id, **target)
    with claimed_folder(recipe, options.resume_anyway) as folder:
        domains = runs.load_domains(recipe)
        for method in [*recipe.method.baselines, recipe.method.name]:
            runs.train_method(recipe, method, domains, options.resume_anyway)
        if is_main():
            facts = results.read_results(recipe)
            table = results.report(recipe, domains, facts)
            results.write_model_card(recipe, domains, facts)
            print(f"\nmean IoU in per cent\n\n{table}\n\nThe model, a plain Hub folder: {folder}")
            if publish.push_to_hub:
                print(f"On the Hub: {push_folder(folder, publish.repo_id, **target)}")


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
