"""Checks of a request for a comparison, before anything is trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from deft_hf.comparison import tuning
from deft_hf.data.domains import Domains
from deft_hf.recipe import Recipe
from deft_hf.runs.provenance import data_lists
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS, RECIPE


def check_request(
    recipe: Recipe,
    seeds: int | Sequence[int],
    jobs: int,
    rates: Sequence[float],
    values: bool,
    curve_points: int,
) -> None:
    """Check the numbers of a request, and that tuning has something to choose between and to choose by.

    Raises:
        UserError: If a number is out of range or an option does not fit the others.
    """
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise UserError(f"seeds: found {seeds}, expected how many, 1 or more")
    if jobs < 1:
        raise UserError(f"jobs: found {jobs}, expected how many runs at once, 1 or more")
    if curve_points < 0:
        raise UserError(f"curve_points: found {curve_points}, expected how many, 0 or more")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "found several processes of a launcher, expected one: start the comparison without it and "
            "set how many jobs run at once"
        )
    if tuning.SEED in numbers:
        raise UserError(f"seeds: found {tuning.SEED}, which is the seed that tuning tries settings at; leave it out")
    if values and not rates:
        raise UserError("values: found without rates, expected learning rates to tune over too, such as 3e-4,1e-3")
    if not rates:
        return
    if not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"rates: found {', '.join(map(str, rates))}, expected learning rates above 0")
    if not recipe.data.validation:
        raise UserError("data.validation: missing, expected source data, on which tuning chooses")
    if None not in (recipe.method.encoder_learning_rate, recipe.method.decoder_learning_rate):
        raise UserError(
            "rates: tuning tries values of training.learning_rate, but method.encoder_learning_rate and "
            "method.decoder_learning_rate are both set; take one of them out of the recipe"
        )


def check_folder(folder: Path) -> None:
    """Check that a report would not be written among unrelated files.

    Raises:
        UserError: If the folder holds files that are not a comparison's.
    """
    ours = (folder / "comparison.json").is_file() or any((folder / "runs").glob(f"*/{RECIPE}"))
    if not ours and (folder.is_file() or any(path.is_file() for path in folder.rglob("*"))):
        raise UserError(
            f"training.output_dir: {folder} exists and is no comparison of deft_hf; nothing was touched. "
            "Choose another with training.output_dir=FOLDER."
        )


def check_data(runs: Path, recipe: Recipe, domains: Domains) -> None:
    """Check that finished runs saw the same images as new ones would.

    Args:
        runs (`Path`):
            Folder that holds one folder per run.
        recipe (`Recipe`):
            Recipe of the comparison.
        domains (`Domains`):
            The domains as they are now.

    Raises:
        UserError: If a domain of a finished run with the same recipe had other images, or a run's files are damaged.
    """
    now = data_lists(source=domains.source, validation=domains.validation, unseen=domains.unseen)
    wanted = yaml.safe_load(recipe.to_yaml())["data"]
    for path in sorted(runs.glob(f"*/{METRICS}")):
        run = path.parent.parent
        try:
            data = yaml.safe_load((run / RECIPE).read_text())["data"]
            then = json.loads(path.read_text()).get("data", now)  # earlier versions did not write it down
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            kind = type(error).__name__
            raise UserError(f"{run}: cannot be read ({kind}); remove it, and it is run again") from error
        if any(data.get(key) != wanted.get(key) for key in ("root", "labels")):
            continue
        for section, current in now.items():
            found = then[section] if data.get(section) == wanted.get(section) else current
            for before, after in zip(found, current, strict=True):
                if before != after:
                    raise UserError(
                        f"data.{section}: {after['name']} has {after['images']} images now and had "
                        f"{before['images']}, or others, when {run} ran, so that new runs cannot be compared with it. "
                        f"Choose another folder with training.output_dir=FOLDER, or remove {runs}"
                    )
