"""Score any model on the domains of a recipe: `python -m deft_hf.evaluate MODEL RECIPE --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm
from transformers.utils import logging

from deft_hf.data.labels import LabelSpace
from deft_hf.data.unreadable import Reader
from deft_hf.models.processor import segmentation_processor
from deft_hf.predict import add_model_options
from deft_hf.recipe import Recipe
from deft_hf.runs.data import load_domains
from deft_hf.runs.provenance import data_lists, hardware, versions
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.report import class_table, domain_table, save_json, save_panels
from deft_hf.utils.console import Console, add_output_options, command_parser
from deft_hf.utils.errors import UserError, run_command
from deft_hf.utils.files import METRICS
from deft_hf.utils.integrity import check_writable


def main(argv: Sequence[str] | None = None) -> None:
    """Recipe, model, every image of every domain, scores, pictures."""
    options = _parser().parse_intermixed_args(argv)
    console = Console(options)
    logging.disable_progress_bar()
    recipe, out = Recipe.load(options.recipe, options.overrides), Path(options.out).expanduser()
    labels = recipe.data.label_space()
    segmenter = _segmenter(options, recipe, labels)
    check_writable(out)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"check": False})})
    domains = load_domains(recipe.data)
    reader = Reader(domains.evaluated, recipe.data.unreadable)
    scores, rows = {}, []
    for which, domain in enumerate(domains.evaluated):
        matrix = ConfusionMatrix(labels.num_labels)
        for index in tqdm(range(len(domain)), desc=domain.name, unit="image", disable=True if options.quiet else None):
            image, truth, is_it = reader.load(which, index)
            if not is_it:
                continue
            ids = segmenter.classes(image)
            matrix.update(torch.from_numpy(ids), torch.from_numpy(truth))
            if options.pictures:
                segmenter.save(out / domain.name, domain.ids[index], image, ids)
            if index == len(domain) // 2:
                rows.append((domain.name, image, truth, {"prediction": ids}))
        scores[domain.name] = matrix.compute(labels.names).to_dict()
    name = options.name or Path(options.model).name
    source, unseen = [domain.name for domain in domains.validation], [domain.name for domain in domains.unseen]
    tables = [domain_table({name: scores}, source, unseen)]
    tables += [f"## {domain}\n\n{class_table({name: scores}, domain, labels.names)}" for domain in scores]
    facts = {
        "model": options.model,
        "revision": options.revision,
        "scores": scores,
        "unreadable": reader.found(),
        "data": data_lists(validation=domains.validation, unseen=domains.unseen),
        "recipe": yaml.safe_load(recipe.to_yaml()),
        "versions": versions(),
        "hardware": hardware(),
    }
    save_json(out / METRICS, facts)
    (out / "results" / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    if rows:
        save_panels(out / "figures" / "panels.png", rows, labels)
    console.say(f"mean IoU in per cent\n\n{tables[0]}\n\n{out}: results/table.md, {METRICS}, figures/panels.png")
    console.result({"model": options.model, "folder": str(out), "scores": scores})


def _segmenter(options: argparse.Namespace, recipe: Recipe, labels: LabelSpace) -> Segmenter:
    """The model, shown images as the recipe shows them.

    Raises:
        UserError: its classes are not the recipe's.
    """
    data = recipe.data
    segmenter = Segmenter.open(options.model, options.revision, options.device, None, data.window, data.stride)
    names = list(labels.names)
    nameless = all(name in (f"LABEL_{index}", str(index)) for index, name in enumerate(segmenter.names))
    if len(segmenter.names) != len(names) or not (nameless or segmenter.names == names):
        raise UserError(
            f"{options.model} has the classes {_some(segmenter.names)}, {options.recipe} has {_some(names)}: expected "
            "the same in the same order. Map the recipe's masks to the model's classes under data.labels."
        )
    processor = segmentation_processor(segmenter.processor, data.image_size)
    return replace(segmenter, processor=processor, palette=labels.colorize(np.arange(len(names))), size=None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluate",
        "Score any segmentation model on the validation and unseen domains of a recipe: tables and pictures.",
        "outputs/quickstart recipes/quickstart.yaml --out scores",
        "outputs/quickstart/checkpoint-400 recipes/quickstart.yaml --out scores --no-pictures --json",
    )
    add_model_options(parser)
    add = parser.add_argument
    add("recipe", help="YAML file; its data section is what counts")
    add("overrides", nargs="*", metavar="key.sub=value", help="values to use instead of the recipe's")
    add("--out", required=True, help="the folder to write to")
    add("--name", help="of the model in tables (default: the last part of MODEL)")
    add("--no-pictures", action="store_false", dest="pictures", help="write no PNG of every image")
    add_output_options(parser)
    return parser


def run() -> None:
    """`main` for the command line."""
    run_command(main, "nothing is lost but what was not yet scored")


if __name__ == "__main__":
    run()
