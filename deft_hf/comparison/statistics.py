r"""How sure a comparison can be: means over seeds, and differences to the baseline, seed by seed.

Two intervals of 95 % are given, which answer two questions:

* **t interval over seeds** (Student 1908, https://doi.org/10.1093/biomet/6.1.1): $\bar d \pm t_{0.975, n - 1} \, s /
  \sqrt n$ over the $n$ seeds. Would other seeds, on these very images, say the same? Differences are paired: both
  methods at one seed share what the seed decides, the order of the data first of all, so that this cancels.
* **Bootstrap over seeds and images** (Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3: the
  percentile interval). Would other images of these domains say the same, too? Seeds are drawn with replacement and,
  within each domain, images are, the same ones for both methods and all seeds; mean IoU is computed from the summed
  confusion counts of the drawn images. Seeds and images are crossed, each seed is scored on each image, and drawing
  either by itself is Owen's pigeonhole bootstrap (2007, https://doi.org/10.1214/07-AOAS122).

What they cannot do. Percentiles of few seeds are too narrow: a resample of n seeds varies by (n - 1) / n of the
variance and knows nothing of t's heavy tails; with 3 seeds and no spread among images the interval is their range, at
most two fifths as wide as the t interval. Where few seeds were run, the t interval is the one to trust. Frames of one
video are alike, and drawing them as if each were new makes the bootstrap too narrow again. Neither interval speaks of
unseen domains that were not scored, and of many intervals of 95 % one in twenty leaves out the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from deft_hf.comparison.outcomes import Comparison, Outcome
from deft_hf.scoring.bootstrap import LEVEL, RESAMPLES
from deft_hf.scoring.bootstrap import resampled as resampled_scores
from deft_hf.scoring.confusion import class_counts
from deft_hf.scoring.metrics import METRICS
from deft_hf.scoring.report import unseen_mean

SOURCE_MEAN = "source mean"
UNSEEN_MEAN = "unseen mean"

# By domain, method and seed: mean IoU on each resample of the domain's images, float64 (resamples,).
Resampled = dict[str, dict[str, dict[int, np.ndarray]]]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; NaN where there is nothing to take them from."""

    mean: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval is known and leaves out zero."""
        return self.low > 0 or self.high < 0

    def in_points(self) -> str:
        """As a difference in percentage points, `+1.2 [+0.3, +2.1]`; `+1.2` without an interval, NaN as a dash."""
        if math.isnan(self.mean):
            return "-"
        mean, low, high = (f"{100 * value:+.1f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Difference:
    """A method's mean IoU less the baseline's.

    Attributes:
        values (`dict[int, float]`):
            Difference by seed, for the seeds that both have; empty for a method that is made of all seeds.
        interval (`Interval`):
            Mean and t interval over these seeds.
        bootstrap (`Interval` or `None`):
            The same mean and its interval over seeds and images; `None` if counts are missing.
    """

    values: dict[int, float]
    interval: Interval
    bootstrap: Interval | None

    @property
    def seeds(self) -> int:
        """Number of seeds that both have."""
        return len(self.values)


@dataclass(frozen=True)
class Summary:
    """What is known of one method. Keys are each domain, [`SOURCE_MEAN`] and, with unseen domains, [`UNSEEN_MEAN`].

    Attributes:
        values (`dict[str, dict[int, float]]`):
            By key and seed, mean IoU; NaN where a domain has no score.
        means (`dict[str, Interval]`):
            By key, mean and t interval over the seeds with a score.
        differences (`dict[str, Difference]`):
            By key, the difference to the baseline; empty for the baseline itself.
    """

    values: dict[str, dict[int, float]]
    means: dict[str, Interval]
    differences: dict[str, Difference]


def unseen_means(outcomes: Mapping[int, Outcome], unseen: Sequence[str]) -> dict[int, float]:
    """By seed, the mean over the unseen domains of mean IoU, each domain counting once.

    NaN where one of them has no score: means over different domains cannot be compared.
    """
    return {seed: unseen_mean(outcome.scores, unseen) for seed, outcome in outcomes.items()}


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t interval of independent values; no interval of fewer than two, no mean of none."""
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else math.nan, math.nan, math.nan)
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def resampled_mean_iou(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean IoU of a domain whose images count several times or not at all.

    The definition is that of [`~deft_hf.scoring.confusion.ConfusionMatrix`]: a class that is predicted without being
    there has an IoU of 0, one that is neither is left out of the mean.

    Args:
        counts (`np.ndarray`):
            Confusion matrix of each image, integer (images, C, C), rows are truth.
        weights (`np.ndarray`):
            How often each image counts, (resamples, images).

    Returns:
        `np.ndarray`: float64 (resamples,), NaN where no pixel counts.
    """
    return resampled_scores(class_counts(torch.from_numpy(counts)), weights, METRICS["iou"].mean)


def summarize(comparison: Comparison, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Summary]:
    """Means, differences to the baseline and intervals of every method, in the order of the report.

    Args:
        comparison (`Comparison`):
            Results to summarize.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap; the same one gives the same intervals.

    Raises:
        ValueError: If runs were not scored on the same images in the same order.
    """
    averaged = {domain: [domain] for domain in (*comparison.source, *comparison.unseen)}
    averaged |= {SOURCE_MEAN: comparison.source} if comparison.source else {}
    averaged |= {UNSEEN_MEAN: comparison.unseen} if comparison.unseen else {}

    values = {}
    for method in dict.fromkeys((*comparison.notes, comparison.baseline)):
        outcomes = comparison.outcomes.get(method, {})
        outcomes = {s: outcomes[s] for s in comparison.seeds if s in outcomes}
        values[method] = {key: unseen_means(outcomes, domains) for key, domains in averaged.items()}

    resampled = _resample_images(comparison, resamples, seed)
    summaries = {}
    for method in comparison.notes:
        if method in comparison.pooled:
            summaries[method] = _pooled(values[method], values[comparison.baseline])
            continue
        means = {key: t_interval(list(_known(by_seed).values())) for key, by_seed in values[method].items()}
        differences = {}
        for key, domains in averaged.items() if method != comparison.baseline else ():
            base = values[comparison.baseline][key]
            paired = _known({s: value - base[s] for s, value in values[method][key].items() if s in base})
            interval = t_interval(list(paired.values()))
            runs = [(resampled[d].get(method, {}), resampled[d].get(comparison.baseline, {})) for d in domains]
            bootstrap = _bootstrap(runs, list(paired), interval.mean, seed)
            differences[key] = Difference(paired, interval, bootstrap)
        summaries[method] = Summary(values[method], means, differences)
    return summaries


def _pooled(values: dict[str, dict[int, float]], baseline: Mapping[str, Mapping[int, float]]) -> Summary:
    """Of models that are made of all seeds: differences of means, and no interval, since they vary together."""
    means = {
        key: Interval(t_interval(list(_known(found).values())).mean, math.nan, math.nan)
        for key, found in values.items()
    }
    differences = {}
    for key, mean in means.items():
        less = t_interval(list(_known(baseline[key]).values())).mean
        differences[key] = Difference({}, Interval(mean.mean - less, math.nan, math.nan), None)
    return Summary(values, means, differences)


def _resample_images(comparison: Comparison, resamples: int, seed: int) -> Resampled:
    """Mean IoU of every run that kept its counts, all on the same resamples of each domain's images."""
    resampled: Resampled = {}
    for index, domain in enumerate((*comparison.source, *comparison.unseen)):
        resampled[domain] = {}
        shared: tuple[np.ndarray, np.ndarray] | None = None
        for method, outcomes in comparison.outcomes.items():
            kept = {s: outcome.counts[domain] for s, outcome in outcomes.items() if domain in outcome.counts}
            for run, counts in kept.items():
                if shared is None:
                    images, generator = len(counts), np.random.default_rng([seed, 1 + index])
                    weights = generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)
                    shared = counts.sum(2), weights
                truth, weights = shared
                if not np.array_equal(truth, counts.sum(2)):
                    raise ValueError(f"{method}, seed {run}: scored on other images of {domain!r} than the others.")
                resampled[domain].setdefault(method, {})[run] = resampled_mean_iou(counts, weights)
    return resampled


def _bootstrap(
    domains: Sequence[tuple[dict[int, np.ndarray], dict[int, np.ndarray]]], seeds: list[int], mean: float, seed: int
) -> Interval | None:
    """The percentile interval over seeds and images, around `mean`, for the `seeds` that both methods have.

    Each of the `domains` averaged over is a pair: resampled mean IoU of the method and of the baseline, by seed.
    """
    if not seeds or not all(s in side for pair in domains for side in pair for s in seeds):
        return None
    differences = np.mean([[method[s] - base[s] for s in seeds] for method, base in domains], axis=0).T
    drawn = np.random.default_rng([seed, 0]).integers(len(seeds), size=differences.shape)
    means = np.take_along_axis(differences, drawn, axis=1).mean(1)
    low, high = np.nanquantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(mean, float(low), float(high))


def _known(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if not math.isnan(value)}
