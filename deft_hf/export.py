"""Export a checkpoint as a plain Hub folder: `python -m deft_hf.export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import BaseImageProcessor
from transformers.utils import logging

from deft_hf.methods.core.batchnorm import batchnorm_modules
from deft_hf.models.processor import open_processor
from deft_hf.publish.export import export_generalized, verify_export
from deft_hf.publish.onnx import check_onnx, export_onnx
from deft_hf.recipe import Recipe
from deft_hf.runs.batchnorm import reestimate_batchnorm
from deft_hf.trainer.components import load_component, model_folder
from deft_hf.utils.console import Console, add_output_options, command_parser, sizes
from deft_hf.utils.errors import UserError, run_command
from deft_hf.utils.files import RECIPE
from deft_hf.utils.integrity import partial_folder, writing

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: Sequence[str] | None = None) -> None:
    """Load the component, mend its BatchNorm, write, verify in a fresh process, put in place."""
    options = _parser().parse_intermixed_args(argv)
    console = Console(options)
    logging.disable_progress_bar()
    folder, out = model_folder(options.checkpoint), Path(options.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; nothing was touched. Choose another folder, or remove it.")
    recipe, encoder, window = _recipe(options, folder)
    processor = open_processor(str(folder))
    onnx_size = _onnx_size(options, processor)
    model = load_component(folder, options.which, options.alpha, encoder)
    facts = {"folder": str(out), "checkpoint": str(folder), "which": options.which, "alpha": options.alpha}
    if options.bn == "reestimate":
        facts["batchnorm_batches"] = reestimate_batchnorm(model, processor, recipe.data, recipe.training_arguments())
    elif options.which == "interpolated" and batchnorm_modules(model):
        console.warn("the BatchNorm statistics are those of the usual component; --bn reestimate takes them anew")
    dtype = _DTYPES[options.dtype]
    partial = partial_folder(out.absolute())
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(partial, lambda: "Make room and export again."):
            export_generalized(model, partial, processor, dtype=dtype, max_shard_size=options.max_shard_size)
        checked = verify_export(partial, model, _example(), dtype, window)
        if onnx_size is not None:
            facts["onnx_max_difference"] = export_onnx(model, partial, onnx_size)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = sorted(path.name for path in out.iterdir())
    console.say(f"{out}: {', '.join(files)}; opens in a fresh process, with equal logits")
    console.result({**facts, "dtype": options.dtype, "files": files, **checked})


def _recipe(options: argparse.Namespace, folder: Path) -> tuple[Recipe | None, str | None, tuple[int, int] | None]:
    """The recipe to take source images from, with the encoder's place and the window in it; that of the run, if none
    is named.
    """
    places = [folder.absolute(), *list(folder.absolute().parents)[:3]]  # baselines/METHOD/checkpoint-N lies deepest
    path = options.recipe or next((place / RECIPE for place in places if (place / RECIPE).is_file()), None)
    if options.bn != "reestimate" and options.recipe is None:
        return None, *_kept(path)
    if path is None:
        raise UserError(
            f"--bn reestimate needs source images, and no {RECIPE} lies in {folder} or above it: name one with "
            "--recipe."
        )
    recipe = Recipe.load(path, options.overrides)
    return recipe, recipe.model.encoder, recipe.data.window


def _kept(path: Path | None) -> tuple[str | None, tuple[int, int] | None]:
    """The encoder's place and the window in the recipe that a run has kept, whose data may be gone."""
    try:
        recipe = yaml.safe_load(path.read_text("utf-8")) if path else {}
        return recipe["model"].get("encoder"), recipe["data"].get("window")
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None, None  # of no run


def _onnx_size(options: argparse.Namespace, processor: BaseImageProcessor) -> tuple[int, int] | None:
    if options.onnx is None:
        return None
    check_onnx()
    own = getattr(processor, "size", None) or {}
    if not options.onnx and not (processor.do_resize and own.get("height") and own.get("width")):
        raise UserError("--onnx: the processor leaves images at their own size; name one, as --onnx 512,1024")
    return options.onnx or (own["height"], own["width"])


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMG]B", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 500MB or 5GB")
    return text


def _example() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "export",
        "Export a checkpoint as a plain Hub folder, safetensors only, and check in a fresh process that it opens with "
        "equal logits.",
        "outputs/quickstart/checkpoint-800 exported",
        "outputs/quickstart/checkpoint-800 half-way --which interpolated --alpha 0.5 --bn reestimate",
        "outputs/quickstart small --dtype bfloat16 --onnx",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint-N, or a final folder")
    add("out", help="the folder to write; it must not be there yet")
    add("overrides", nargs="*", metavar="key.sub=value", help="values to use instead of the recipe's, as data.root=..")
    add(
        "--which",
        choices=("generalized", "usual", "interpolated"),
        help="component of a checkpoint (default: the one that it was saved to be)",
    )
    add("--alpha", type=float, help="of interpolated: 0 is the last stage's initialisation, 1 the usual component")
    add("--dtype", choices=_DTYPES, default="float32", help="of the weights (default: float32)")
    add(
        "--max-shard-size",
        type=_size,
        default="5GB",
        help="larger weights are spread over several files (default: 5GB)",
    )
    add("--bn", choices=("keep", "reestimate"), default="keep", help="BatchNorm statistics (default: keep)")
    add("--recipe", help="whose source images --bn reestimate takes (default: the run's own)")
    add(
        "--onnx",
        nargs="?",
        const=(),
        type=sizes,
        metavar="HEIGHT,WIDTH",
        help="write model.onnx too, for images of this size (default: the processor's)",
    )
    add_output_options(parser)
    return parser


def run() -> None:
    """`main` for the command line."""
    run_command(main, "nothing was written")


if __name__ == "__main__":
    run()
