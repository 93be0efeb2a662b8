"""What the commands have in common: their help, and where they speak."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    "init": "look at a folder of images and write a recipe for it",
    "train": "fine-tune as a recipe says, score every domain, export",
    "compare": "train methods x seeds on one recipe and report how they differ",
    "evaluate": "score any model on the domains of a recipe",
    "predict": "segment pictures with any model",
    "export": "write a checkpoint, or a component of it, as a plain Hub folder, in other types and shards, as ONNX",
    "view": "leaf through a finished run on a local page",
    "push": "push a folder to the Hub",
    "completion": "print the completion of this command line for bash, zsh or fish",
    "env": "print versions and devices, for a report of a bug",
}
"""What people type after `deft-hf`, each a module of this name, and what it is for."""


def program(command: str | None = None) -> str:
    """How this program, or one of its commands, is called: as the user just did, through `deft-hf` or through Python.

    Args:
        command (`str`, *optional*):
            Name of the command, such as `train`.
    """
    called = Path(sys.argv[0])
    if called.stem == "deft-hf":
        words = ["deft-hf", command]
    elif called.parts[-2:] == ("deft_hf", "__main__.py") or command is None:
        words = ["python -m deft_hf", command]
    else:
        words = [f"python -m deft_hf.{command}"]
    return " ".join(filter(None, words))


def command_parser(name: str, purpose: str, *examples: str, epilog: str = "") -> argparse.ArgumentParser:
    """The parser of a command. It reports mistakes on stderr and exits with status 2.

    Args:
        name (`str`):
            Name of the command.
        purpose (`str`):
            One sentence.
        examples (`str`):
            Arguments of an example, at least one.
        epilog (`str`, *optional*, defaults to `""`):
            What the help says before the examples.
    """
    prog = program(name)
    lines = "\n".join(f"  {prog} {example}".rstrip() for example in examples)
    return argparse.ArgumentParser(
        prog=prog,
        description=purpose,
        epilog=f"{epilog}\n\nexamples:\n{lines}".lstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`RECIPE` and overrides of its values."""
    parser.add_argument(
        "recipe", help="YAML file, or the name of a recipe that comes with deft_hf, such as quickstart"
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`key.sub=value`, any number of times."""
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values that replace the recipe's")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`MODEL`, `--revision`, `--trust-remote-code` and `--device`."""
    parser.add_argument("model", help="Hub name, final folder, export or checkpoint of any segmentation model")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    add_trust(parser)
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: an accelerator where there is one)")


def add_views(parser: argparse.ArgumentParser) -> None:
    """How a model sees an image: `--size`, `--window`, `--stride`, `--test-scales` and `--test-flip`."""
    add = parser.add_argument
    add("--size", type=sizes_or_own, metavar="HEIGHT,WIDTH", help="of the images, or 'own' (default: the processor's)")
    add("--window", type=sizes, metavar="HEIGHT,WIDTH", help="slide a window of this size over the image")
    add("--stride", type=sizes, metavar="DOWN,ACROSS", help="step of the window (default: two thirds of it)")
    add("--test-scales", type=numbers, metavar="SCALE,...", help="see each image at these scales (default: as it is)")
    add("--test-flip", action="store_true", help="see each image mirrored too")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--trust-remote-code`."""
    trust = "run Python code of the model's repository, at the revision named (default: never)"
    parser.add_argument("--trust-remote-code", action="store_true", help=trust)


def add_output_options(parser: argparse.ArgumentParser, overwrite: bool = False) -> None:
    """`--quiet` and `--json`, for `parse`; `--overwrite` for a command that writes to a folder."""
    if overwrite:
        replaced = "replace what this command wrote to that folder before; files of anything else stay as they are"
        parser.add_argument("--overwrite", action="store_true", help=replaced)
    parser.add_argument("--quiet", action="store_true", help="print only errors, and the JSON of --json")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout; all else goes to stderr")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Console, dict[str, Any]]:
    """Parses a command line that has the options of `add_output_options`.

    Args:
        parser (`argparse.ArgumentParser`):
            The parser of the command.
        argv (`Sequence[str]` or `None`):
            Arguments; `None` stands for those of the process.

    Returns:
        `tuple[Console, dict[str, Any]]`: a console that obeys these options, and the other arguments by name.
    """
    options = vars(parser.parse_intermixed_args(argv))
    return Console(options.pop("quiet"), options.pop("json")), options


class Console:
    """Prints for people, or for the program at the other end of a pipe.

    Args:
        quiet (`bool`, *optional*, defaults to `False`):
            Print errors and JSON alone.
        json (`bool`, *optional*, defaults to `False`):
            Print one JSON object on stdout; all else goes to stderr.
    """

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json

    def say(self, text: str) -> None:
        """Print a line for people."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def result(self, facts: Mapping[str, Any]) -> None:
        """Print the one JSON object, where it is asked for."""
        if self.json:
            print(json.dumps(facts, indent=2, ensure_ascii=False))


def sizes(text: str) -> tuple[int, int]:
    """`512,1024` as (height, width), for `type=` of an argument."""
    try:
        height, width = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected HEIGHT,WIDTH in pixels, such as 512,1024"
        ) from None
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected sides of at least one pixel")
    return height, width


def sizes_or_own(text: str) -> tuple[int, int] | str:
    """`512,1024` as (height, width), or `own` as it is, for `type=` of an argument."""
    return text if text == "own" else sizes(text)


def numbers(text: str) -> list[float]:
    """`3e-4,1e-3` as numbers, for `type=` of an argument."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers, such as 3e-4,1e-3") from None


def file_size(text: str) -> str:
    """`500MB` as it is, for `type=` of an argument."""
    if not re.fullmatch(r"[1-9]\d*[KMG]B", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 500MB or 5GB")
    return text


def say(text: str) -> None:
    """Print on the main process."""
    if is_main():
        print(text, flush=True)


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    from accelerate import PartialState  # loads torch, which `--help` does without

    return PartialState().is_main_process
