"""The commands: `deft-hf COMMAND ...`, or `python -m deft_hf COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from deft_hf.utils.console import COMMANDS, program
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """List the commands, or run the one that is named.

    Args:
        argv (`Sequence[str]`, *optional*):
            The command and its arguments; by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    usage = f"usage: {program()} COMMAND ...\n\n{listed}\n\n"
    usage += "Each has --help with examples. On several devices: accelerate launch -m deft_hf.train ..."
    if not argv or argv[0] in ("-h", "--help"):
        run_command(lambda: print(usage), "")
    elif argv[0] in COMMANDS:
        import_module(f"deft_hf.{argv[0]}").run(argv[1:])
    else:
        print(f"{usage}\n\nerror: no such command: {argv[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
