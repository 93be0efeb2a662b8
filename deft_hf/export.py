"""Export a checkpoint as a plain Hub folder: `deft-hf export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deft_hf.utils.console import add_output_options, add_overrides, add_trust, command_parser, file_size, parse, sizes
from deft_hf.utils.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and hand it to [`~deft_hf.runs.export.export`]."""
    console, options = parse(_parser(), argv)

    from transformers.utils import logging

    from deft_hf.recipe import Recipe
    from deft_hf.runs.export import export, run_recipe

    logging.disable_progress_bar()
    path, overrides = options.pop("recipe"), options.pop("overrides")
    if path or overrides:
        options["recipe"] = Recipe.load(path, overrides) if path else run_recipe(options["checkpoint"], overrides)
    found = export(**options)
    console.say(str(found))
    console.result(found.to_dict())


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "export",
        "Export a checkpoint as a plain Hub folder, and check in a fresh process that it gives equal logits.",
        "outputs/quickstart/checkpoint-800 half-way --which interpolated --alpha 0.5 --bn reestimate",
        "outputs/quickstart at-the-client --bn-images client/ --dtype bfloat16 --onnx",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint-N, or a final folder")
    add("out", help="the folder to write; new or empty")
    add_overrides(parser)
    add("--which", choices=("generalized", "usual", "interpolated"), help="component (default: the exported one)")
    add("--alpha", type=float, help="of interpolated: 0 is the last stage's initialisation, 1 the usual component")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of weights (default: float32)")
    add("--max-shard-size", type=file_size, default="5GB", help="of each file of weights (default: 5GB)")
    add("--bn", dest="batchnorm", choices=("keep", "reestimate"), default="keep", help="statistics (default: keep)")
    add("--bn-images", dest="batchnorm_images", metavar="FOLDER", help="statistics of its images, without labels")
    add("--recipe", help="whose source images --bn reestimate takes (default: the run's own)")
    add("--onnx", nargs="?", default=False, const=True, type=sizes, metavar="HEIGHT,WIDTH", help="also model.onnx")
    add_trust(parser)
    add_output_options(parser, overwrite=True)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """`main` for the command line."""
    run_command(lambda: main(argv), "nothing was written")


if __name__ == "__main__":
    run()
