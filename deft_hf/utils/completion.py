"""Completion of the command line for shells, as shtab writes it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from deft_hf.utils.errors import UserError

SHELLS = ("bash", "zsh", "fish")


def script(
    shell: str, commands: Mapping[str, argparse.ArgumentParser], purposes: Mapping[str, str], recipes: Iterable[str]
) -> str:
    """The script that a shell reads to complete `deft-hf`: commands, their options and choices, recipes, files.

    Args:
        shell (`str`):
            One of `SHELLS`.
        commands (`Mapping[str, argparse.ArgumentParser]`):
            By name, the parser of each command.
        purposes (`Mapping[str, str]`):
            By name, what the command is for.
        recipes (`Iterable[str]`):
            Names of recipes, which are offered beside files.

    Raises:
        UserError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError("completion: found no shtab, which writes it; pip install 'deft-hf[completion]'") from None
    whole = argparse.ArgumentParser("deft-hf")
    subparsers = whole.add_subparsers()
    for name, parser in commands.items():
        subparsers.add_parser(name, parents=[parser], add_help=False, help=purposes[name])
        for action in parser._actions:
            named = action.dest in ("recipe", "overrides")
            if named or not (action.option_strings or action.choices):
                action.complete = _recipes(recipes) if named else shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(whole, shell=shell)


def _recipes(names: Iterable[str]) -> dict[str, Any]:
    words = " ".join(names)
    function = "_deft_hf_recipes"
    bash = f"""{function}() {{
  compgen -W "{words}" -- "$1"
  compgen -f -X '!*.y*ml' -- "$1"
  compgen -d -S / -- "$1"
}}"""
    zsh = f"""{function}() {{
  _alternative 'recipes:recipe:({words})' 'files:file:_files -g "*.(yaml|yml)"'
}}"""
    fish = f"""function {function}
  printf '%s\\n' {words}
  __fish_complete_suffix .yaml
end"""
    preamble = {"bash": bash, "zsh": zsh, "fish": fish}
    return {"bash": function, "zsh": function, "fish": f"({function})", "preamble": preamble}
