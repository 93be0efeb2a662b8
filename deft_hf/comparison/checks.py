"""Checks of a request for a comparison, before anything is trained."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from deft_hf.comparison import tuning
from deft_hf.data.roles import Domains
from deft_hf.recipe import MethodSection, Recipe
from deft_hf.runs.provenance import data_lists, same_list
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS, RECIPE
from deft_hf.utils.outputs import command_of, is_housekeeping
from deft_hf.utils.places import link_out

_RUN = re.compile(r".+-s\d+-[0-9a-f]+")  # see `Plan.run`


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
    if recipe.training.early_stop is not None:
        raise UserError("training.early_stop: all methods are compared after their last step; take it out")
    if values and not rates:
        raise UserError("values: found without rates, expected learning rates to tune over too, such as 3e-4,1e-3")
    if not rates:
        return
    if not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"rates: found {', '.join(map(str, rates))}, expected learning rates above 0")
    if not recipe.data.validation:
        raise UserError("data.validation: missing, expected source data, on which tuning chooses")
    if sets_both_rates(recipe.method):
        raise UserError(
            "rates: tuning tries values of training.learning_rate, but method.encoder_learning_rate and "
            "method.decoder_learning_rate are both set; take one of them out of the recipe"
        )


def sets_both_rates(method: MethodSection) -> bool:
    """Whether encoder and decoder have rates of their own, beside which `training.learning_rate` says nothing."""
    return None not in (method.encoder_learning_rate, method.decoder_learning_rate)


def check_folder(folder: Path) -> None:
    """Check that a report would not be written among unrelated files.

    Raises:
        UserError: If the folder holds files that are not a comparison's, or a link that leads out of it.
    """
    command = command_of(folder) if folder.is_dir() else None
    ours = command == "compare" or (command is None and folder.is_dir() and _is_older(folder))
    found = (place for place in folder.rglob("*") if place.is_symlink() or not place.is_dir())
    if not ours and (folder.is_file() or not all(is_housekeeping(place) for place in found)):
        raise UserError(
            f"training.output_dir: {folder} exists and is no comparison of deft_hf; nothing was touched. "
            "Choose another with training.output_dir=FOLDER."
        )
    if link := link_out(folder):
        raise UserError(
            f"training.output_dir: {link} leads out of {folder}, to {link.resolve()}; nothing was touched. Remove the "
            "link, or choose another with training.output_dir=FOLDER."
        )


def _is_older(folder: Path) -> bool:
    """Whether a folder is the comparison of a version that left no marker."""
    if any(_RUN.fullmatch(path.parent.name) for path in (folder / "runs").glob(f"*/{RECIPE}")):
        return True
    try:
        return "methods" in json.loads((folder / "comparison.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


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
            data = yaml.safe_load((run / RECIPE).read_text("utf-8"))["data"]
            then = json.loads(path.read_text("utf-8")).get("data", now)  # earlier versions did not write it down
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            kind = type(error).__name__
            raise UserError(f"{run}: cannot be read ({kind}); remove it, and it is run again") from error
        if any(data.get(key) != wanted.get(key) for key in ("root", "labels")):
            continue
        for section, current in now.items():
            found = then[section] if data.get(section) == wanted.get(section) else current
            for before, after in zip(found, current, strict=True):
                if not same_list(before, after):
                    raise UserError(
                        f"data.{section}: {after['name']} has {after['images']} images now and had "
                        f"{before['images']}, or others, when {run} ran, so that new runs cannot be compared with it. "
                        f"Choose another folder with training.output_dir=FOLDER, or remove {runs}"
                    )
