"""Segment pictures with any model: `python -m deft_hf.predict MODEL images/ --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging

from deft_hf.data.files import IMAGE_SUFFIXES, check_name, files_by_id
from deft_hf.data.opening import open_picture
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.report import save_json
from deft_hf.utils.console import Console, add_output_options, command_parser, sizes
from deft_hf.utils.errors import UserError, run_command
from deft_hf.utils.integrity import check_writable, writing


def main(argv: Sequence[str] | None = None) -> None:
    """Find the pictures, open the model, segment them one by one, list what was found where."""
    options = _parser().parse_intermixed_args(argv)
    console = Console(options)
    logging.disable_progress_bar()
    out = Path(options.out).expanduser()
    pictures = _pictures(options.images, out)
    check_writable(out)
    segmenter = Segmenter.open(
        options.model, options.revision, options.device, options.size, options.window, options.stride
    )
    listed, unreadable = [], []
    for key, path in tqdm(pictures.items(), unit="image", disable=True if options.quiet else None):
        try:
            image, _ = open_picture({"bytes": None, "path": path}, path)
        except UserError as error:
            unreadable.append(str(error))
            continue
        ids = segmenter.classes(image)
        with writing(out, lambda: "What was written before is whole; make room and start again."):
            written = segmenter.save(out, key, image, ids)
        size = {"height": image.height, "width": image.width}
        listed.append({"image": path, **size, "shares": segmenter.shares(ids), **written})
    facts = {"model": options.model, "revision": options.revision, "classes": segmenter.legend(), "images": listed}
    save_json(out / "predictions.json", facts)
    console.say(f"{len(listed)} images in {out}: classes/ (ids), colors/, overlays/, predictions.json")
    console.result(facts)
    if unreadable:
        raise UserError("\n".join([f"{len(unreadable)} of {len(pictures)} images were left out:", *unreadable]))


def _pictures(inputs: Sequence[str], out: Path) -> dict[str, str]:
    """By the name that its results will have, the path of each picture."""
    found: dict[str, str] = {}
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise UserError(
                    f"--out: {out} lies in {path}, so that results would be taken for pictures; choose another"
                )
            new = files_by_id(path, "")
        elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            check_name(path)
            new = {path.stem: str(path)}
        else:
            raise UserError(
                f"{given}: is no folder and no picture; expected one that ends in {', '.join(IMAGE_SUFFIXES)}"
            )
        for key, file in new.items():
            if key in found:
                raise UserError(f"{found[key]} and {file} have the same name {key}: segment them into two folders")
            found[key] = file
    return found


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`MODEL`, `--revision` and `--device`."""
    parser.add_argument("model", help="Hub name, final folder, export or checkpoint of any segmentation model")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: an accelerator where there is one)")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "predict",
        "Segment pictures with any segmentation model from the Hub or a folder, and write class ids, colours and "
        "overlays as PNG.",
        "outputs/quickstart street.jpg --out predicted",
        "nvidia/segformer-b0-finetuned-cityscapes-1024-1024 drive/ --out predicted --window 768,768",
        "outputs/quickstart drive/ --out predicted --json --quiet > predictions.json",
    )
    add_model_options(parser)
    add = parser.add_argument
    add("images", nargs="+", help="pictures, and folders of them")
    add("--out", required=True, help="the folder to write to")
    add("--size", type=_size, metavar="HEIGHT,WIDTH", help="resize images to it, or 'own' (default: the processor's)")
    add(
        "--window",
        type=sizes,
        metavar="HEIGHT,WIDTH",
        help="slide a window of this size over the image (default: none)",
    )
    add("--stride", type=sizes, metavar="DOWN,ACROSS", help="of the window (default: two thirds of it)")
    add_output_options(parser)
    return parser


def _size(text: str) -> tuple[int, int] | str:
    return text if text == "own" else sizes(text)


def run() -> None:
    """`main` for the command line."""
    run_command(main, "what was segmented is whole")


if __name__ == "__main__":
    run()
