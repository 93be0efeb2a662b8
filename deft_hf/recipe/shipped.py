"""The recipes that come with deft_hf, found by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from deft_hf.utils.errors import UserError


def shipped_recipes() -> dict[str, Path]:
    """The file of each recipe that comes with deft_hf, by name."""
    package = Path(str(files("deft_hf")))
    installed = package / "recipes"
    folder = installed if installed.is_dir() else package.parent / "recipes"  # of a clone
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_file(name: str | os.PathLike) -> Path:
    """The file that a recipe is read from: the one at this path, or else the shipped recipe of this name.

    Args:
        name (`str` or `os.PathLike`):
            A path, or a name such as `quickstart`.

    Raises:
        UserError: There is neither; the message lists the shipped recipes.
    """
    path, known = Path(name).expanduser(), shipped_recipes()
    if str(name) in known and not os.path.isfile(path):
        return known[str(name)]
    if os.path.exists(path) or not known:
        return path
    close = get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{name}: cannot read the recipe (No such file or directory); expected a YAML file, or one of those that come "
        f"with deft_hf: {', '.join(known)}.{hint}"
    )


def split_recipes(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Tells recipes from overrides: a file, the name of a shipped recipe or what ends as a YAML file is a recipe.

    Args:
        words (`Iterable[str]`):
            Arguments of a command line.

    Returns:
        `tuple[list[str], list[str]]`: recipes and overrides.
    """
    recipes: list[str] = []
    overrides: list[str] = []
    known = shipped_recipes()
    for word in words:
        is_recipe = word in known or ("=" not in word and word.endswith((".yaml", ".yml"))) or os.path.isfile(word)
        (recipes if is_recipe else overrides).append(word)
    return recipes, overrides
