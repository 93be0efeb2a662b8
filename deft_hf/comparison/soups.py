"""Rows that are made of the models of other runs: averaged, scored as those were, and kept in folders like theirs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from deft_hf.comparison.outcomes import Failure
from deft_hf.comparison.plan import Run
from deft_hf.data.collate import collate
from deft_hf.data.domains import Domain
from deft_hf.data.roles import Domains
from deft_hf.methods.soups import averaged, greedy, is_one_model
from deft_hf.methods.variant import Mix, Variant
from deft_hf.models.families import resolve_family
from deft_hf.models.opening import open_model
from deft_hf.models.processor import open_processor
from deft_hf.publish.export import export_generalized
from deft_hf.recipe import ModelSection, Recipe
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.batchnorm import reestimate_batchnorm
from deft_hf.runs.data import evaluation_sets
from deft_hf.runs.provenance import git_states
from deft_hf.scoring.confusion import Scores
from deft_hf.scoring.inference import score_batches
from deft_hf.scoring.metrics import further
from deft_hf.scoring.report import save_json
from deft_hf.scoring.tally import Tally
from deft_hf.scoring.test_time import Views
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import COUNTS, HISTORY, METRICS
from deft_hf.utils.integrity import writing
from deft_hf.utils.randomness import own_randomness

Rows = Mapping[str, Mapping[int, Run]]


def check(variants: Mapping[str, Variant], baselines: Sequence[str], recipe: Recipe) -> None:
    """Check that rows that are made of others have what they need, before anything is trained.

    Args:
        variants (`Mapping[str, Variant]`):
            Rows by name.
        baselines (`Sequence[str]`):
            Rows that the others are compared with.
        recipe (`Recipe`):
            The recipe.

    Raises:
        UserError: One of them is a baseline, or chooses its members without source validation.
    """
    for name, variant in variants.items():
        if variant.mix is not None and name in baselines:
            raise UserError(
                f"baselines: found {name}, which is made of the runs of all seeds; expected a row with a run at each "
                "seed, with which others are paired"
            )
        if variant.mix == "greedy_soup" and not recipe.data.validation:
            raise UserError(
                f"{name}: data.validation is missing, expected source data, on which its members are taken"
            )


def make(variants: Mapping[str, Variant], table: Rows, domains: Domains) -> tuple[Rows, list[Failure]]:
    """Makes what is missing of the rows that are made of others; trains nothing.

    Args:
        variants (`Mapping[str, Variant]`):
            Rows by name.
        table (`Rows`):
            By row and seed, its run, or the run that it is made of.
        domains (`Domains`):
            The data, loaded.

    Returns:
        `tuple[Rows, list[Failure]]`: the table with soups, which look like runs, in the place of what they are made
        of, and the rows that could not be made, with the reason.
    """
    made, failures = {**table}, []
    mixed = [name for name, variant in variants.items() if variant.mix]
    for name in tqdm(mixed, desc="averaging", unit="method", disable=not mixed):
        mix, members = variants[name].mix, table[name]
        made[name] = _places(mix, members)
        try:
            if not all(soup.done for soup in made[name].values()):
                _make(mix, _Members(members), made[name], domains)
        except UserError as error:
            tqdm.write(f"{name}: {error}", file=sys.stderr)
            failures.append(Failure(name, next(iter(members)), str(error)))
    return made, failures


def _places(mix: Mix | None, members: Mapping[int, Run]) -> dict[int, Run]:
    """By seed, or for one model by the first, what looks like a run; its folder is named after what it is made of."""
    names, soups = [run.folder.name for run in members.values()], {}
    for seed, run in list(members.items())[: 1 if is_one_model(mix) else None]:
        digest = hashlib.sha256(json.dumps([mix, seed, *names]).encode()).hexdigest()[:12]
        name = f"{run.recipe.method.name}-{mix}-s{seed}-{digest}"
        soups[seed] = Run(run.recipe, seed, run.folder.parent.parent / "soups" / name)
    return soups


class _Members:
    """The runs that a row is made of, by seed, with their models."""

    def __init__(self, runs: Mapping[int, Run]) -> None:
        if missing := [str(seed) for seed, run in runs.items() if not run.done]:
            raise UserError(f"made of the runs of all seeds, of which {', '.join(missing)} has no result")
        if gone := [run.folder for run in runs.values() if not any(run.folder.glob("model*.safetensors"))]:
            raise UserError(f"{gone[0]}: its model is gone; remove the folder, and it is run again")
        self.runs, self.first = runs, next(iter(runs))
        model: ModelSection = runs[self.first].recipe.model
        self.trusted = model.trust_remote_code
        self.models: dict[int, Any] = {s: open_model(run.folder, None, self.trusted) for s, run in runs.items()}
        self.family = resolve_family(self.models[self.first], model.encoder)

    def processor(self, seed: int) -> BaseImageProcessor:
        return open_processor(str(self.runs[seed].folder), trust_remote_code=self.trusted)

    def mixed(self, seeds: Sequence[int], takes: Callable[[str], bool], at: int) -> tuple[Any, int]:
        """The average of models, with the rest and the source batches of seed `at`, and how many batches these were.

        One model alone stays itself, with its own BatchNorm statistics.
        """
        models = [self.models[seed] for seed in sorted(seeds, key=lambda seed: seed != at)]
        soup: Any = averaged(models, takes)
        if len(models) == 1:
            return soup, 0
        recipe = self.runs[at].recipe
        args = method_arguments(recipe, recipe.method.name)
        return soup, reestimate_batchnorm(soup.to(args.device), self.processor(at), recipe.data, args)

    def scores(self, model: Any, domains: Sequence[Domain], at: int) -> dict[str, tuple[Scores, list[Tensor]]]:
        """By domain, the scores that a trainer would find, and the confusion matrix of each image."""
        recipe, found = self.runs[at].recipe, {}
        data, args = recipe.data, method_arguments(recipe, recipe.method.name)
        names = data.label_space().names
        for domain, images in evaluation_sets(data, list(domains), self.processor(at)).items():
            counts: list[Tensor] = []
            tally = Tally(len(names), further(recipe.training.metrics or ()))
            with own_randomness(args.seed, args.device):
                matrix = score_batches(
                    model.to(args.device),
                    self.family,
                    DataLoader(images, args.eval_batch_size, collate_fn=collate),
                    len(names),
                    args.device,
                    window=data.window,
                    stride=data.stride,
                    images=counts,
                    tally=tally,
                    views=Views(tuple(data.test_scales), data.test_flip),
                )
            found[domain] = replace(matrix.compute(names), more=tally.more()), counts
        return found


def _make(mix: Mix | None, members: _Members, soups: Mapping[int, Run], domains: Domains) -> None:
    def takes(name: str) -> bool:
        return mix != "revt" or members.family.part_of(name) == "encoder"

    def score(seeds: Sequence[int]) -> float:
        found = members.scores(members.mixed(seeds, takes, min(seeds))[0], domains.validation, min(seeds))
        return float(np.mean([scores.mean_iou for scores, _ in found.values()]))

    seeds = sorted(greedy(list(members.runs), score)) if mix == "greedy_soup" else list(members.runs)
    for seed, soup in soups.items():
        if not soup.done:
            at = seed if seed in seeds else min(seeds)  # a greedy soup may leave the first out
            model, batches = members.mixed(seeds, takes, at)
            facts = {"seeds": seeds, "batchnorm_batches": batches}
            _write(soup, model, members, domains, at, {"mix": mix, **facts})


def _write(soup: Run, model: Any, members: _Members, domains: Domains, at: int, facts: Mapping[str, Any]) -> None:
    """Score a soup, and write what `collect.outcome` reads of a run, the scores last."""
    found = members.scores(model, domains.evaluated, at)
    with writing(soup.folder, lambda: "Make room and start again."):
        (soup.folder / METRICS).parent.mkdir(parents=True, exist_ok=True)
        export_generalized(model.to("cpu"), soup.folder, members.processor(at))
        save_json(soup.folder / HISTORY, [])
        counts: dict[str, Any] = {f"eval_{name}": np.stack(images) for name, (_, images) in found.items()}
        np.savez_compressed(soup.folder / COUNTS, **counts)
        own = {
            "made_of": [run.folder.name for run in members.runs.values()],
            "scores": {name: scores.to_dict() for name, (scores, _) in found.items()},
            "layer_distances": {"exported": {}},  # it has no one start
            "train_seconds": 0.0,
            "git": git_states(soup.recipe.path),
        }
        save_json(soup.folder / METRICS, {**facts, **own})
