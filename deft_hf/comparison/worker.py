"""One run of a comparison, for a process of its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from transformers.utils import logging

from deft_hf.comparison.plan import FAILURE
from deft_hf.publish.export import export_generalized
from deft_hf.recipe import Recipe
from deft_hf.runs import steps as runs
from deft_hf.runs.results import HISTORY, METRICS, RECIPE
from deft_hf.scoring.report import save_json
from deft_hf.utils.errors import TrainingDiverged

COUNTS = Path("results") / "image_counts.npz"


def work(folder: Path, environment: Mapping[str, str]) -> None:
    """Train and score what the folder's recipe says, unless that is done; a divergence is written down.

    Args:
        folder: holds the recipe; takes the log and everything that comes of the run.
        environment: variables to set, `OMP_NUM_THREADS` among them.
    """
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with open(folder / "log.txt", "a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    logging.disable_progress_bar()
    recipe = Recipe.load(folder / RECIPE)
    # Should a comparison be started while runs of one that was killed still go on, it waits for them here.
    with FileLock(folder / ".lock"):
        if (folder / METRICS).is_file() or (folder / FAILURE).is_file():
            return
        try:
            _run(recipe, folder)
        # It would come again; what other errors speak of, memory, files, packages, may be mended by the next call.
        except (TrainingDiverged, ArithmeticError) as error:
            save_json(folder / FAILURE, {"reason": f"{type(error).__name__}: {str(error).strip()}"})
            raise


def _run(recipe: Recipe, folder: Path) -> None:
    domains = runs.load_domains(recipe)
    trainer = runs.make_trainer(recipe, recipe.method.name, domains)
    facts = runs.fit(trainer, recipe, domains, keep_images=True)
    initial = trainer.pathways.whole_initial()
    facts["layer_distances"] = {
        "exported": runs.layer_distances(recipe, domains, trainer.generalized_model, initial),
        "usual": runs.layer_distances(recipe, domains, trainer.pathways.usual, initial),
    }
    export_generalized(trainer.generalized_model, folder, trainer.processing_class)
    (folder / COUNTS).parent.mkdir(exist_ok=True)
    np.savez_compressed(folder / COUNTS, **{key: counts.numpy() for key, counts in trainer.image_counts.items()})
    save_json(folder / HISTORY, trainer.state.log_history)
    save_json(folder / METRICS, facts)  # a run that has it is done
    # Only now: half a checkpoint would be gone on from.
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
