"""Metrics, each a row of a file here, and the registry that arguments, results, tables and the documentation use.

A metric is counted image by image and computed from the sum, so that it streams, adds up over processes, keeps no
logits, and has a bootstrap interval over images like every other.
"""

from __future__ import annotations

from collections.abc import Sequence

from deft_hf.scoring.metrics import boundary_iou, calibration_error, regions
from deft_hf.scoring.metrics.base import Metric, Segmented
from deft_hf.utils.errors import UserError

METRICS: dict[str, Metric] = {
    metric.name: metric for module in (regions, boundary_iou, calibration_error) for metric in module.METRICS
}
ALWAYS = ("iou", "accuracy", "pixel_accuracy")
"""What every evaluation has; the others are asked for by name."""


def register_metric(metric: Metric) -> Metric:
    """Add a metric, which `metrics` in arguments and recipes then knows.

    Raises:
        UserError: Its name is taken.
    """
    if METRICS.get(metric.name, metric) is not metric:
        raise UserError(f"metric {metric.name!r} is registered already; give yours another name")
    METRICS[metric.name] = metric
    return metric


def further(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, without those that every evaluation has."""
    return [METRICS[name] for name in dict.fromkeys(names) if name in METRICS and name not in ALWAYS]


def unknown(names: Sequence[str]) -> list[str]:
    """One line for each of `names` that is no metric's."""
    known = ", ".join(name for name in METRICS if name not in ALWAYS)
    return [f"metrics: found {name}, expected names among {known}" for name in names if name not in METRICS]


def is_error(key: str) -> bool:
    """Whether lower values of a metric are better, by what it is called in a log: `eval_town_calibration_error`."""
    return any(metric.lower_is_better and key.endswith(metric.key) for metric in METRICS.values())


__all__ = ["ALWAYS", "METRICS", "Metric", "Segmented", "further", "is_error", "register_metric", "unknown"]
