"""What a metric is: counts of an image that add up, and the score that follows from their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from deft_hf.data.constants import IGNORE_INDEX


@dataclass(frozen=True)
class Segmented:
    """An image's truth, and what a model made of it.

    Args:
        classes (`Tensor`):
            Predicted class ids, integer (H, W).
        labels (`Tensor`):
            True class ids or 255, integer (H, W), on the same device.
        num_labels (`int`):
            Number of classes.
        scores (`Callable`, *optional*):
            Gives the probabilities of the classes, float32 (C, H, W); see [`Metric.of_probabilities`].
    """

    classes: Tensor
    labels: Tensor
    num_labels: int
    scores: Callable[[], Tensor] | None = None

    @cached_property
    def valid(self) -> Tensor:
        """Where there is a truth, bool (H, W)."""
        return self.labels != IGNORE_INDEX

    @cached_property
    def probabilities(self) -> Tensor:
        """Probabilities of the classes, float32 (C, H, W), which add up to 1."""
        assert self.scores is not None  # whoever scores asks the metrics whether they need them
        return self.scores()


@dataclass(frozen=True)
class Metric:
    """A score of a domain that follows from counts, which add up over images and processes.

    Results call a score by class what the metric is called, and its mean `mean_NAME`.

    Args:
        name (`str`):
            What arguments and results call it.
        title (`str`):
            What tables call it.
        source (`str`):
            Where its definition stands: paper, equation, link.
        compute (`Callable`):
            From counts (..., K, L), float64, the score (...), or with `by_class` that of each class (..., C); NaN
            where there was nothing to score. Leading dimensions are resamples.
        by_class (`bool`, *optional*, defaults to `False`):
            Whether it is one score a class.
        count (`Callable`, *optional*):
            From a [`Segmented`] image its counts, integer or float64 (K, L). By default they are the `class_counts`
            of its confusion matrix.
        of_probabilities (`bool`, *optional*, defaults to `False`):
            Whether `count` needs `Segmented.probabilities`.
        lower_is_better (`bool`, *optional*, defaults to `False`):
            Whether it is an error.
    """

    name: str
    title: str
    source: str
    compute: Callable[[Tensor], Tensor]
    by_class: bool = False
    count: Callable[[Segmented], Tensor] | None = None
    of_probabilities: bool = False
    lower_is_better: bool = False

    @property
    def key(self) -> str:
        """What results call the number of a domain."""
        return f"mean_{self.name}" if self.by_class else self.name

    def mean(self, counts: Tensor) -> Tensor:
        """The number of a domain, float64 (...), from its counts (..., K, L): the mean over the classes with one."""
        found = self.compute(counts.double())
        return found.nanmean(-1) if self.by_class else found

    def values(self, counts: Tensor) -> dict[str, float | list[float]]:
        """The number, and with `by_class` that of each class, from counts (K, L), by the names that results have."""
        found: dict[str, float | list[float]] = {self.key: float(self.mean(counts))}
        return found | {self.name: self.compute(counts.double()).tolist()} if self.by_class else found
