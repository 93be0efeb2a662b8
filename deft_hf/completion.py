"""Print the completion of the command line for a shell: `deft-hf completion bash`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from deft_hf.utils.completion import SHELLS, script
from deft_hf.utils.console import COMMANDS, command_parser
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand all of them to [`~deft_hf.utils.completion.script`]."""
    shell = _parser().parse_args(argv).shell

    from deft_hf.recipe.shipped import shipped_recipes

    parsers = {name: import_module(f"deft_hf.{name}")._parser() for name in COMMANDS}
    print(script(shell, parsers, COMMANDS, list(shipped_recipes())))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "completion",
        "Print the completion of deft-hf's commands, options and recipes for a shell (the completion extra).",
        "bash > ~/.local/share/bash-completion/completions/deft-hf",
        "zsh > ~/.zfunc/_deft-hf",
        "fish > ~/.config/fish/completions/deft-hf.fish",
        epilog="A new shell reads it; of zsh, where ~/.zfunc is in $fpath before compinit runs.",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "nothing was written")


if __name__ == "__main__":
    run()
