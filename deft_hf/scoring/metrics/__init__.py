"""Metrics, each a row of a file here, and the registry that arguments, results, tables and intervals use.

A metric is counted image by image and computed from the sum, so that it streams, adds up over processes, keeps no
logits, and has a bootstrap interval over images like every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from deft_hf.scoring.metrics import boundary_iou, calibration_error, regions
from deft_hf.scoring.metrics.base import Metric, Segmented
from deft_hf.utils.errors import UserError
from deft_hf.utils.extensions import load_extensions

ENTRY_POINTS = "deft_hf.metrics"

METRICS: dict[str, Metric] = {
    metric.name: metric for module in (regions, boundary_iou, calibration_error) for metric in module.METRICS
}
ALWAYS = ("iou", "accuracy", "pixel_accuracy")
"""What every evaluation has; the others are asked for by name."""


def register_metric(metric: Metric) -> Metric:
    """Add a metric, which `metrics` in arguments and recipes then knows.

    A package that is installed can name its metric as an entry point of the group `deft_hf.metrics` instead, which the
    commands find by themselves.

    Args:
        metric (`Metric`):
            Its `name` is what arguments and recipes call it.

    Raises:
        UserError: Its name is taken, or the one that its mean has in results.

    Example:

    ```python
    from deft_hf.scoring.metrics import Metric, register_metric


    def precision(counts):  # hits, truth and predictions of each class, (..., 3, C)
        return counts[..., 0, :] / counts[..., 2, :]


    register_metric(Metric("precision", "precision", "van Rijsbergen 1979", precision, by_class=True))
    ```
    """
    # Results hold both names among those of other scores.
    taken = {"absent", "pixels"}.union(*({one.name, one.key} for one in METRICS.values() if one is not metric))
    if taken & {metric.name, metric.key}:
        raise UserError(f"metric {metric.name!r} is registered already; give yours another name")
    METRICS[metric.name] = metric
    return metric


def metrics() -> Mapping[str, Metric]:
    """Every metric by name: those of this package, and those that others registered."""
    _load_extensions()
    return METRICS


def further(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, without those that every evaluation has."""
    known = metrics()
    return [known[name] for name in dict.fromkeys(names) if name in known and name not in ALWAYS]


def unknown(names: Sequence[str]) -> list[str]:
    """One line for each of `names` that is no metric's."""
    known = metrics()
    expected = ", ".join(name for name in known if name not in ALWAYS)
    return [f"metrics: found {name}, expected names among {expected}" for name in names if name not in known]


def is_error(key: str) -> bool:
    """Whether lower values of a metric are better, by what it is called in a log: `eval_town_calibration_error`."""
    return any(metric.lower_is_better and key.endswith(metric.key) for metric in metrics().values())


@cache
def _load_extensions() -> None:
    load_extensions(ENTRY_POINTS, "metric", register_metric)


__all__ = ["ALWAYS", "METRICS", "Metric", "Segmented", "further", "is_error", "metrics", "register_metric", "unknown"]
