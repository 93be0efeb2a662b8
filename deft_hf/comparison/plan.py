"""The runs behind a comparison: which recipe each has, and which folder it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deft_hf.data.own_transform import described
from deft_hf.methods import DEFAULT, identity_defaults, settings_of_others
from deft_hf.methods.variant import Settings, Variant
from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import FAILURE, METRICS, RECIPE
from deft_hf.utils.integrity import read_json

# What a run looks like from outside, and how often it looks at itself, makes no other run of it.
_NO_MATTER = {
    "method": ("baselines",),
    "data": ("check", "images_while_training", "augment"),  # what `augment` sets is in the other keys
    "training": (
        "output_dir",
        "eval_strategy",
        "eval_steps",
        "logging_steps",
        "logging_strategy",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "per_device_eval_batch_size",
    ),
}
# Raised when a release changes what a run computes: until then it recognises the runs of older ones.
_SAME_NUMBERS_SINCE = "0.1.0"


@dataclass(frozen=True)
class Plan:
    """The common ground of all runs.

    Args:
        recipe (`str`):
            Path of the recipe.
        overrides (`tuple[str, ...]`):
            Overrides `key=value` of the command line.
        folder (`Path`):
            Folder of the run folders.
        curve_points (`int`, *optional*, defaults to `0`):
            How often, and on how many images a domain, the first seed is scored while training.
    """

    recipe: str
    overrides: tuple[str, ...]
    folder: Path
    curve_points: int = 0
    curve_images: int = 24

    def run(self, settings: Settings, seed: int, curve: bool = False, source_only: bool = False) -> Run:
        """The run of some settings at a seed.

        Args:
            settings (`Settings`):
                Recipe keys and their values.
            seed (`int`):
                Random seed.
            curve (`bool`, *optional*, defaults to `False`):
                Whether to score during training, if the plan asks for it.
            source_only (`bool`, *optional*, defaults to `False`):
                Whether to leave the unseen domains out, so that nothing can be chosen on them.

        Raises:
            UserError: If the recipe refuses the settings.
        """
        changes: dict[str, Any] = {**settings, "training.seed": seed, "data.check": False}
        if curve and self.curve_points:
            steps = self.steps(settings)
            changes |= {
                "training.eval_strategy": "steps",
                "training.eval_steps": max(steps // self.curve_points, 1),
                "data.images_while_training": self.curve_images,
            }
        recipe = self._load(changes)
        folder = self.folder / f"{recipe.method.name}-s{seed}-{address(recipe)}"
        recipe.training.output_dir = str(folder)
        if source_only:
            recipe.data.unseen = []
        return Run(recipe, seed, folder)

    def check(self, variants: Mapping[str, Variant], values: bool = False) -> None:
        """Build the arguments of every variant, so that what they refuse comes out before anything is trained.

        Args:
            variants (`Mapping[str, Variant]`):
                Rows by name.
            values (`bool`, *optional*, defaults to `False`):
                Whether values will be tuned that depend on the number of steps.

        Raises:
            UserError: If the recipe or the arguments refuse a variant, with its name, or the recipe chooses a
                checkpoint, by one component where two rows may be read from one run.
        """
        for name, variant in variants.items():
            try:
                recipe = self.run(variant.settings, 0, curve=True).recipe
                check_arguments(recipe)
                if values or variant.compute_of is not None:
                    self.steps(variant.settings)  # refuses epochs
                if recipe.training.load_best_model_at_end:
                    raise UserError(
                        "training.load_best_model_at_end: found true, but all methods are compared after their last "
                        "step; take it out"
                    )
            except UserError as error:
                raise UserError(f"{name}: {error}") from error

    def steps(self, settings: Settings) -> int:
        """`training.max_steps` under these settings.

        Raises:
            UserError: If the recipe counts epochs.
        """
        steps = self._load(settings).training.max_steps
        if steps < 1:
            raise UserError(
                f"training.max_steps: found {steps}, expected the length in optimizer steps, by which curves, equal "
                "compute and tuned values go"
            )
        return steps

    def _load(self, changes: Settings) -> Recipe:
        # What the recipe asks of DeFT, a regulariser for one, is none of a rival's business, nor are the settings that
        # a method of another package has for itself.
        method = changes.get("method.name", DEFAULT)
        settings = {} if method == DEFAULT else identity_defaults()
        settings |= settings_of_others(method)
        neutral = {f"method.{name}": value for name, value in settings.items()}
        alone = {"method.baselines": [], "publish.push_to_hub": False, "publish.every_save": False}
        changes = {**alone, **neutral, **changes}
        texts = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in changes.items()]
        recipe = Recipe.load(self.recipe, [*self.overrides, *texts])
        # A place without labels is looked at afterwards: adding one repeats no run.
        recipe.data.unseen = [entry for entry in recipe.data.unseen if entry.labelled]
        return recipe


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a resolved recipe and the folder that holds what came of it."""

    recipe: Recipe
    seed: int
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / METRICS).is_file()

    @property
    def failure(self) -> str | None:
        """Why it failed, where trying again would give the same."""
        path = self.folder / FAILURE
        if self.done or not path.is_file():
            return None
        return read_json(path, lambda found: isinstance(found.get("reason"), str), "remove it, and it is run again")[
            "reason"
        ]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the finished run wrote down."""
        return read_json(self.folder / METRICS, _is_facts, f"remove {self.folder}, and it is run again")

    def scores(self, reading: str) -> dict[str, dict[str, Any]]:
        """By domain, the scores of the `exported` or the `usual` component, which may be the one that is exported."""
        return self.facts["usual_scores" if reading == "usual" and "usual_scores" in self.facts else "scores"]

    def prepare(self) -> None:
        """Make the folder with its recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RECIPE).write_text(self.recipe.to_yaml(), encoding="utf-8")


def _is_facts(found: Any) -> bool:
    kinds = (
        [found["scores"], *([found["usual_scores"]] if "usual_scores" in found else [])] if "scores" in found else []
    )
    return bool(kinds) and all("mean_iou" in scores for kind in kinds for scores in kind.values())


def address(recipe: Recipe) -> str:
    """Twelve hexadecimal digits that are equal for recipes of the same run, wherever it lies.

    Only what differs from the defaults counts, so that a new key with a default leaves the old runs their addresses.
    """
    content = recipe.model_dump(exclude_defaults=True, exclude={"publish", "training"})
    content["training"] = recipe.training.model_dump(exclude_unset=True)
    for section, keys in _NO_MATTER.items():
        for key in keys:
            content.get(section, {}).pop(key, None)
    if content["training"].get("bf16") is False:  # what no recipe had to say before there were choices
        del content["training"]["bf16"]
    if recipe.data.transform is not None:
        content["transform"] = described(recipe.data.transform)
    content["version"] = _SAME_NUMBERS_SINCE
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
