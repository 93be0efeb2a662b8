"""Leaf through a finished run on a local page: `deft-hf view RUN`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import command_parser
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.view.server.view`]."""
    options = vars(_parser().parse_args(argv))

    from transformers.utils import logging

    from deft_hf.runs.view.server import view

    logging.disable_progress_bar()
    view(**options)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "view",
        "Open a page on this machine to leaf through a finished run: domains, methods, errors, where methods differ, "
        "and pictures of your own.",
        "outputs/quickstart",
        "outputs/quickstart --port 9000 --no-browser",
        epilog="On a machine elsewhere: ssh -L 8008:127.0.0.1:8008 HOST, then open http://127.0.0.1:8008/ here.",
    )
    add = parser.add_argument
    add("run", help="the output folder of a training run")
    add("--port", type=int, default=8008, help="on this machine (default: 8008)")
    add("--device", help="such as cpu or cuda:1 (default: an accelerator where there is one)")
    add("--no-browser", dest="browser", action="store_false", help="print the address only")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "nothing was written")


if __name__ == "__main__":
    run()
