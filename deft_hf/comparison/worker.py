"""One run of a comparison, for a process of its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from transformers.utils import logging

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.finish import finish
from deft_hf.runs.provenance import Origin
from deft_hf.runs.trackers import own_tracker_run
from deft_hf.runs.train import fit, make_trainer
from deft_hf.scoring.report import save_json
from deft_hf.utils.errors import TrainingDiverged
from deft_hf.utils.files import FAILURE, LOCK, LOG, METRICS, RECIPE


def work(folder: Path, environment: Mapping[str, str]) -> None:
    """Train and score what the folder's recipe says, unless that is done; a divergence is written down.

    Args:
        folder (`Path`):
            Folder with the recipe, which receives the log and the results.
        environment (`Mapping[str, str]`):
            Environment variables to set, such as `OMP_NUM_THREADS`.
    """
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with open(folder / LOG, "a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    logging.disable_progress_bar()
    recipe = Recipe.load(folder / RECIPE)
    # Should a comparison be started while runs of one that was killed still go on, it waits for them here.
    with FileLock(folder / LOCK):
        if (folder / METRICS).is_file() or (folder / FAILURE).is_file():
            return
        try:
            _run(recipe, folder)
        # It would come again; what other errors are about, memory, files, packages, may be fixed by the next call.
        except (TrainingDiverged, ArithmeticError) as error:
            save_json(folder / FAILURE, {"reason": f"{type(error).__name__}: {str(error).strip()}"})
            raise


def _run(recipe: Recipe, folder: Path) -> None:
    domains = load_domains(recipe.data)
    args = method_arguments(recipe, recipe.method.name)
    with own_tracker_run(args, group=folder.parent.parent.name):
        trainer = make_trainer(args, recipe.model, recipe.data, domains)
        facts = fit(trainer, recipe.data, domains, Origin.of(recipe), keep_images=True)
        finish(trainer, facts, recipe.model, recipe.data, domains, compared=True)
    # Only now: a checkpoint that is half removed must not be resumed from.
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
