"""What the commands have in common: their help, and where they speak."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState


def command_parser(name: str, purpose: str, *examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m deft_hf.NAME`; mistakes go to stderr, with status 2.

    Args:
        name (`str`):
            Name of the command.
        purpose (`str`):
            One sentence that says what the command does.
        examples (`str`):
            Examples of arguments, at least one.
    """
    lines = "\n".join(f"  python -m deft_hf.{name} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"python -m deft_hf.{name}",
        description=purpose,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`, which `Console` obeys."""
    parser.add_argument("--quiet", action="store_true", help="print only errors, and the JSON of --json")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout; all else goes to stderr")


class Console:
    """Prints for people, or for the program at the other end of a pipe.

    Args:
        options (`argparse.Namespace`):
            Parsed options with `quiet` and `json`; see [`add_output_options`].
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.quiet, self.json = options.quiet, options.json

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def warn(self, text: str) -> None:
        """A line on stderr that people should see, whatever else is printed."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def result(self, facts: Mapping[str, Any]) -> None:
        """The one JSON object, where it is asked for."""
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


def say(text: str) -> None:
    """Print on the main process."""
    if is_main():
        print(text, flush=True)


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return PartialState().is_main_process
