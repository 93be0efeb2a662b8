"""Push a model folder to the Hub: `deft-hf push FOLDER REPO`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_output_options, command_parser, parse
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.publish.push.push_folder`]."""
    console, options = parse(_parser(), argv)

    from huggingface_hub.utils import disable_progress_bars

    from deft_hf.publish.push import push_folder
    from deft_hf.trainer.components import model_folder

    if console.quiet:
        disable_progress_bars()
    folder = model_folder(options.pop("folder"))
    address = push_folder(folder, **options)
    console.say(f"{folder} is at {address}")
    console.result({"folder": str(folder), "url": address, "revision": options["revision"] or "main"})


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "push",
        "Push a final folder, an export or a checkpoint to a model repository on the Hub. Only what a model needs is "
        "pushed: no optimizer state, no pickles, no baselines. The token is HF_TOKEN or that of `hf auth login`.",
        "outputs/quickstart ana/quickstart",
        "outputs/quickstart/checkpoint-800 lab/quickstart --public --revision step-800",
    )
    add = parser.add_argument
    add("folder", help="final folder, export or checkpoint-N")
    add("repo_id", metavar="repo", help="user/name or organisation/name; made where there is none")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_true",
        default=True,
        help="a new repository is private, and a public one is refused (default)",
    )
    visibility.add_argument("--public", action="store_false", dest="private", help="a new repository is public")
    add("--revision", help="branch, made where there is none (default: main)")
    add("--message", default="Upload model", help="of the commit")
    add_output_options(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "the same command pushes what is missing")


if __name__ == "__main__":
    run()
