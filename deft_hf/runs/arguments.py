"""The Trainer's arguments for each of a recipe's methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deft_hf.methods import identity_defaults
from deft_hf.recipe import PublishSection, Recipe
from deft_hf.runs.data import own_transform
from deft_hf.runs.folder import method_folder
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.limits import check_optimizer
from deft_hf.trainer.optimizer import schedule_shape
from deft_hf.utils.errors import UserError


def check_arguments(recipe: Recipe) -> None:
    """Build the arguments of every method, so that what they refuse comes out before any file is read.

    Raises:
        UserError: If arguments exclude each other, no optimizer or schedule can be made of them, or `data.transform`
            cannot be used.
    """
    own_transform(recipe.data)
    for method in [*recipe.method.baselines, recipe.method.name]:
        args = method_arguments(recipe, method)
        try:
            check_optimizer(args)
            schedule_shape(args, steps=100)
        except UserError as error:
            raise UserError(f"{recipe.path}: training.{error}") from error


def method_arguments(recipe: Recipe, method: str) -> DeFTTrainingArguments:
    """The Trainer's arguments for one of the recipe's methods.

    A baseline has the defaults of what makes the recipe's own method another one, such as its average or a
    regulariser.

    Args:
        recipe (`Recipe`):
            The recipe.
        method (`str`):
            Method of the recipe, or one of its baselines.
    """
    changes = {"method": method, **identity_defaults()} if method != recipe.method.name else _pushing(recipe.publish)
    folder = method_folder(recipe.training.output_dir, method, recipe.method.name)
    name = recipe.training.run_name or Path(recipe.training.output_dir).resolve().name
    if recipe.training.early_stop is not None:
        changes["restore_callback_states_from_checkpoint"] = True  # evaluations without a better score so far
    changes["run_name"] = f"{name}-{method}" if recipe.method.baselines else name
    return recipe.training_arguments(output_dir=str(folder), **changes)


def _pushing(publish: PublishSection) -> dict[str, Any]:
    """Trainer's arguments for what is pushed while training; the finished run is pushed after it."""
    if not (publish.push_to_hub and publish.every_save):
        return {}
    return {
        "push_to_hub": True,
        "hub_model_id": publish.repo_id,
        "hub_private_repo": publish.private,
        "hub_revision": publish.revision,
    }
