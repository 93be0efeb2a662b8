"""The same tuning budget for every method, spent on source validation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_hf.comparison.jobs import execute
from deft_hf.comparison.outcomes import Trial
from deft_hf.comparison.plan import Plan, Run
from deft_hf.methods import methods
from deft_hf.methods import variants as known_variants
from deft_hf.methods.variant import Settings, Variant
from deft_hf.recipe import Recipe

RATE = "training.learning_rate"
# No reported seed: the choice would fit its noise.
SEED = 10_000


def tune(
    plan: Plan, variants: Mapping[str, Variant], rates: Sequence[float], values: bool, source: Sequence[str], jobs: int
) -> tuple[dict[str, Settings], list[Trial]]:
    """Choose each variant's learning rate and, on request, then its own value (`Variant.tries`) at that rate.

    Every variant is tried at the same rates, and those that have a value of their own at the same number of values
    (three), one run each at a seed that is not reported. A variant that is `like` another takes what was chosen for
    that one, asked for or not. What a variant sets of its own is left at that, and nothing else is tried for it.

    Args:
        plan (`Plan`):
            Plan of the comparison.
        variants (`Mapping[str, Variant]`):
            Rows by name.
        rates (`Sequence[float]`):
            Learning rates to try.
        values (`bool`):
            Whether to try each method's own value too.
        source (`Sequence[str]`):
            Names of the source validation domains.
        jobs (`int`):
            Number of processes at a time.

    Returns:
        `tuple[dict[str, Settings], list[Trial]]`: The chosen settings of each variant, and everything that was tried.
    """
    trials: list[Trial] = []
    tuned = {name: variant for name, variant in variants.items() if variant.like is None}
    for variant in variants.values():
        if variant.like is not None:
            tuned.setdefault(variant.like, known_variants()[variant.like])
    fixed = {name: _own_settings(name, variant) for name, variant in tuned.items()}
    by_rate = {
        name: [{RATE: rate} for rate in _rates(plan.run(variant.settings, SEED).recipe, RATE in fixed[name], rates)]
        for name, variant in tuned.items()
    }
    chosen = _best(plan, tuned, by_rate, source, jobs, trials)
    by_value = {}
    for name, variant in tuned.items():
        if values and variant.tries is not None:
            key, tried = variant.tries(chosen[name][RATE], plan.steps(variant.settings))
            if key not in fixed[name]:
                by_value[name] = [{**chosen[name], key: value} for value in tried]
    chosen |= _best(plan, tuned, by_value, source, jobs, trials)
    settings: dict[str, Settings] = {}
    for name, variant in variants.items():
        own = _own_settings(name, variant)
        settings[name] = {key: value for key, value in chosen[variant.like or name].items() if key not in own}
    return settings, trials


def _rates(recipe: Recipe, is_fixed: bool, rates: Sequence[float]) -> Sequence[float]:
    """The rates to try: one where it is fixed, or where it moves nothing that is trained."""
    decoder_alone = not methods()[recipe.method.name].trains_encoder()
    moves_nothing = decoder_alone and recipe.method.decoder_learning_rate is not None
    return [recipe.training.learning_rate] if is_fixed or moves_nothing else rates


def _own_settings(name: str, variant: Variant) -> set[str]:
    """Keys that a variant sets otherwise than the one that it is tuned as: by what it is about, or by its name."""
    common = known_variants()[variant.like or name.partition(":")[0]].settings
    return {key for key, value in variant.settings.items() if common.get(key) != value}


def _best(
    plan: Plan,
    variants: Mapping[str, Variant],
    candidates: Mapping[str, list[dict[str, Any]]],
    source: Sequence[str],
    jobs: int,
    trials: list[Trial],
) -> dict[str, Settings]:
    runs = {
        name: [plan.run({**variants[name].settings, **settings}, SEED, source_only=True) for settings in options]
        for name, options in candidates.items()
    }
    execute([run for group in runs.values() for run in group], jobs)
    best: dict[str, Settings] = {}
    for name, options in candidates.items():
        found = [source_mean(run, variants[name].reading, source) for run in runs[name]]
        # The first of the best; where all failed, the first that was tried.
        place = max(range(len(found)), key=[-1.0 if value is None else value for value in found].__getitem__)
        best[name] = options[place]
        trials += [
            Trial(name, settings, value, chosen=index == place)
            for index, (settings, value) in enumerate(zip(options, found, strict=True))
        ]
    return best


def source_mean(run: Run, reading: str, source: Sequence[str]) -> float | None:
    """Mean IoU over the source validation domains; `None` where the run failed."""
    if not run.done:
        return None
    scores = run.scores(reading)
    return float(np.mean([scores[domain]["mean_iou"] for domain in source]))
