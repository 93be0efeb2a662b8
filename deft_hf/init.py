"""Look at a folder of images and write a recipe for it: `deft-hf init FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_output_options, command_parser, parse
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.init.init`]."""
    console, options = parse(_parser(), argv)

    from deft_hf.runs.init import init

    found = init(**options, progress=not console.quiet)
    console.say(str(found))
    console.result(found.to_dict())


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "init",
        "Look at a folder of images and labels, however it is laid out, and write a recipe that can be trained as it "
        "is, with the reason of each choice; beside it a picture of what was found.",
        "photos/",
        "photos/ --out recipes/photos.yaml --model nvidia/mit-b1",
        "OWNER/NAME --config CONFIGURATION",
    )
    add = parser.add_argument
    add("folder", help="folder of images and labels, in which nothing is changed, or data set on the Hub")
    add("--out", default="recipe.yaml", help="the recipe to write (default: recipe.yaml; the picture is recipe.png)")
    add("--config", help="configuration of a data set on the Hub that has several")
    add("--model", help="Hub name or folder of the model to start from (default: by size of data and machine)")
    add_output_options(parser, overwrite=True)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "nothing was written")


if __name__ == "__main__":
    run()
