"""Segment pictures with any model: `deft-hf predict MODEL images/ --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_model, add_output_options, add_views, command_parser, numbers, parse
from deft_hf.utils.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.predict.predict`]."""
    console, options = parse(_parser(), argv)

    from transformers.utils import logging

    from deft_hf.runs.predict import predict

    logging.disable_progress_bar()
    found = predict(**options, progress=not console.quiet)
    count, archive = len(found.images), f", {found.archive}" if found.archive else ""
    kinds = "classes/ (ids), colors/" + ", overlays/" * options["overlays"]
    console.say(f"{count} images in {options['out']}: {kinds}, predictions.json{archive}")
    console.result(found.to_dict())
    if found.unreadable:
        left_out = f"{len(found.unreadable)} of {count + len(found.unreadable)} images were left out:"
        raise UserError("\n".join([left_out, *found.unreadable]))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "predict",
        "Segment pictures with any segmentation model from the Hub or a folder, and write class ids, colours and "
        "overlays as PNG.",
        "outputs/quickstart street.jpg --out predicted",
        "nvidia/segformer-b0-finetuned-cityscapes-1024-1024 drive/ --out predicted --window 768,768",
        "outputs/quickstart drive/ --out predicted --json --quiet > predictions.json",
    )
    add_model(parser)
    add = parser.add_argument
    add("images", nargs="+", help="pictures, and folders of them")
    add("--out", required=True, help="the folder to write to; new or empty")
    add_views(parser)
    add("--value-range", type=numbers, metavar="LOW,HIGH", help="of images of more than 8 bits (default: the model's)")
    add("--as", dest="server", metavar="SERVER", help="write what a server takes too: cityscapes, acdc, wilddash")
    add("--no-overlays", dest="overlays", action="store_false", help="write ids and colours alone, which is quicker")
    add_output_options(parser, overwrite=True)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "the files written so far are complete")


if __name__ == "__main__":
    run()
