"""Print what a report of a bug needs: `deft-hf env`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_output_options, command_parser, parse
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Print what [`~deft_hf.runs.environment.environment`] finds."""
    console, _ = parse(_parser(), argv)

    import yaml

    from deft_hf.runs.environment import environment

    facts = environment()
    if not console.json:
        console.say(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).strip())
    console.result(facts)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "env",
        "Print versions, devices and settings for a report of a bug: no tokens, none of your folders.",
        "",
        "--json",
    )
    add_output_options(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "nothing was written")


if __name__ == "__main__":
    run()
