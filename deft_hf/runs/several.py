"""Recipes of one command line, trained one after another."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Sequence

import torch
from accelerate import PartialState

from deft_hf.recipe import Recipe
from deft_hf.recipe.protocols import described
from deft_hf.recipe.shipped import split_recipes
from deft_hf.runs.arguments import check_arguments
from deft_hf.runs.settle import settled
from deft_hf.runs.train import train
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError, workers_explained
from deft_hf.utils.text import without_credentials


def train_each(recipe: str, words: Sequence[str] = (), dry_run: bool = False, resume_anyway: bool = False) -> None:
    """Check, print and train a recipe, or several of them in order, each in its own folder.

    One of several that fails does not hold up the others.

    Args:
        recipe (`str`):
            The file or name of the first recipe.
        words (`Sequence[str]`, *optional*):
            Further recipes, and overrides for all of them.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only check and print.
        resume_anyway (`bool`, *optional*, defaults to `False`):
            See [`~deft_hf.runs.train.train`].

    Raises:
        UserError: What is wrong with the only recipe; or which of several failed, after the others are done.
    """
    others, overrides = split_recipes(words)
    if not others:
        _train(recipe, overrides, dry_run, resume_anyway)
        return
    recipes, failed = [recipe, *others], []
    for name in recipes:
        say(f"# {name}")
        try:
            with workers_explained():
                _train(name, overrides, dry_run, resume_anyway)
        except Exception as error:
            if PartialState().num_processes > 1:
                raise  # the other processes may still wait for this one
            failed.append(name)
            if isinstance(error, UserError):
                print(f"error: {without_credentials(str(error))}", file=sys.stderr)
            else:
                traceback.print_exc()
        # What was trained is not to share memory with what comes next.
        gc.collect()
        torch.cuda.empty_cache()
    if failed:
        raise UserError(f"{len(failed)} of {len(recipes)} recipes failed, see above: {', '.join(failed)}")


def _train(name: str, overrides: Sequence[str], dry_run: bool, resume_anyway: bool) -> None:
    recipe = settled(Recipe.load(name, overrides))
    check_arguments(recipe)
    say(described(recipe.data) + "\n" * (recipe.data.protocol is not None) + recipe.to_yaml())
    if not dry_run:
        train(recipe, resume_anyway)
