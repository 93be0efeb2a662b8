"""Bootstrap intervals over the images of a domain.

Images are drawn with replacement, as many as there are; a score is computed from the summed counts of those drawn, and
the interval holds the middle 95 % of what the resamples score (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, section 13.3: the percentile interval). It says how much other images of the domain might change the score,
and nothing of other trainings. Frames of one video are alike; drawing them as if each were new makes it too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deft_hf.scoring.metrics import ALWAYS, METRICS, Metric
from deft_hf.scoring.tally import counted_as

LEVEL = 0.95
RESAMPLES = 2000
_AT_ONCE = 2**22  # weights: images x resamples

Counts = Mapping[str, Tensor]
"""Of a domain, as [`~deft_hf.scoring.tally.Tally.by_image`] gives them."""
Intervals = dict[str, Any]
"""`{"domains": {domain: {key: [low, high]}}, "unseen_mean": {key: [low, high]}}`, as JSON has it."""


def draws(images: int, generator: np.random.Generator, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each image is drawn, int64 (resamples, images), in parts that fit into memory."""
    if not images:
        yield np.zeros((resamples, 0), np.int64)
        return
    step = max(1, _AT_ONCE // images)
    for start in range(0, resamples, step):
        yield generator.multinomial(images, np.full(images, 1 / images), size=min(step, resamples - start))


def resampled(counts: Tensor, weights: np.ndarray, mean: Callable[[Tensor], Tensor]) -> np.ndarray:
    """A score of a domain whose images count several times or not at all.

    Args:
        counts (`Tensor`):
            Of each image, (images, K, L).
        weights (`np.ndarray`):
            How often each image counts, (resamples, images).
        mean (`Callable`):
            The score (resamples,) of summed counts (resamples, K, L), float64.

    Returns:
        `np.ndarray`: float64 (resamples,), NaN where nothing counts.
    """
    # Whole numbers below 2^53: float64 products are exact and as fast as BLAS.
    flat = counts.flatten(1).double()
    totals = torch.from_numpy(weights.astype(np.float64, copy=False)) @ flat
    return mean(totals.view(-1, *counts.shape[1:])).numpy()


def percentiles(values: np.ndarray) -> list[float]:
    """The ends of the middle 95 % of values, those that are NaN left out; NaN of none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return [float("nan")] * 2
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return [float(low), float(high)]


def intervals(
    domains: Mapping[str, Counts],
    unseen: Sequence[str],
    metrics: Sequence[Metric] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals:
    """95 % intervals of the scores of domains, and of their mean over the unseen ones, each domain counting once.

    Args:
        domains (`Mapping[str, Counts]`):
            By name, the counts of the images; the order decides what is drawn for each.
        unseen (`Sequence[str]`):
            Names of the unseen domains.
        metrics (`Sequence[Metric]`, *optional*, defaults to `()`):
            Further metrics that were counted.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws; the same one gives the same intervals.

    Returns:
        `Intervals`: both ends, by the key of results; under `domains` by name too, and under `unseen_mean`.
    """
    chosen = [*(METRICS[name] for name in ALWAYS), *metrics]
    values: dict[str, dict[str, np.ndarray]] = {}
    for index, (name, counts) in enumerate(domains.items()):
        images, generator = len(next(iter(counts.values()))), np.random.default_rng([seed, 1 + index])
        parts: dict[str, list[np.ndarray]] = {metric.key: [] for metric in chosen}
        for weights in draws(images, generator, resamples):
            for metric in chosen:
                parts[metric.key].append(resampled(counts[counted_as(metric)], weights, metric.mean))
        values[name] = {key: np.concatenate(found) for key, found in parts.items()}
    means = {m.key: np.mean([values[name][m.key] for name in unseen], axis=0) for m in chosen if unseen}
    return {
        "domains": {name: {key: percentiles(one) for key, one in found.items()} for name, found in values.items()},
        "unseen_mean": {key: percentiles(one) for key, one in means.items()},
    }
