"""`python -m deft_hf`: the commands; `python -m deft_hf COMMAND ...` runs one."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "train": "fine-tune as a recipe says, score every domain, export",
    "compare": "train methods x seeds on one recipe and report how they differ",
    "evaluate": "score any model on the domains of a recipe",
    "predict": "segment pictures with any model",
    "export": "write a checkpoint as a plain Hub folder, or a component of it, in other types and shards, as ONNX",
    "push": "push a folder to the Hub",
    "env": "print versions and devices, for a report of a bug",
}


def main(argv: list[str]) -> None:
    """List the commands, or run the one that is named."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    usage = f"usage: python -m deft_hf COMMAND ... (or python -m deft_hf.COMMAND ...)\n\n{listed}\n\n"
    usage += "Each has --help with examples. On several devices: accelerate launch -m deft_hf.train ..."
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
    elif argv[0] in COMMANDS:
        sys.argv = [f"{sys.argv[0]} {argv[0]}", *argv[1:]]
        import_module(f"deft_hf.{argv[0]}").run()
    else:
        print(f"{usage}\n\nerror: no such command: {argv[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
