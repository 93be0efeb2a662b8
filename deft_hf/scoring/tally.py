"""The counts of a domain, image by image: what its metrics and their intervals follow from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deft_hf.scoring.confusion import class_counts
from deft_hf.scoring.metrics import Metric, Segmented

REGIONS = "regions"
"""Under which a tally has the `class_counts` of each image."""


class Tally:
    """Collects the counts of each image of a domain; an image takes 3 numbers a class, and those of further metrics.

    Args:
        num_labels (`int`):
            Number of classes.
        metrics (`Sequence[Metric]`, *optional*, defaults to `()`):
            Further metrics.
    """

    def __init__(self, num_labels: int, metrics: Sequence[Metric] = ()) -> None:
        self.num_labels = num_labels
        self.metrics = metrics
        self._counts: dict[str, list[Tensor]] = {REGIONS: []}
        self._counts |= {metric.name: [] for metric in metrics if metric.count is not None}

    @property
    def of_probabilities(self) -> bool:
        """Whether a metric needs the probabilities of the classes."""
        return any(metric.of_probabilities for metric in self.metrics)

    def add(
        self, confusion: Tensor, classes: Tensor, labels: Tensor, probabilities: Callable[[], Tensor] | None = None
    ) -> None:
        """Add an image.

        Args:
            confusion (`Tensor`):
                Its confusion matrix, int64 (C, C); rows are truth.
            classes (`Tensor`):
                Predicted class ids, integer (H, W).
            labels (`Tensor`):
                True class ids or 255, integer (H, W).
            probabilities (`Callable`, *optional*):
                Gives the probabilities of the classes, float32 (C, H, W), where a metric needs them.
        """
        self._counts[REGIONS].append(class_counts(confusion))
        streamed = [metric for metric in self.metrics if metric.count is not None]
        image = Segmented(classes, labels.to(classes.device), self.num_labels, probabilities) if streamed else None
        for metric in streamed:
            assert metric.count is not None and image is not None
            self._counts[metric.name].append(metric.count(image))

    def gather(self, gather: Callable[[list[Tensor]], Sequence[Sequence[Tensor]]]) -> None:
        """Take over the images of all processes, of which each has every n-th.

        Args:
            gather (`Callable`):
                Gives the lists of all processes, in their order, for that of this one.
        """
        for name, counts in self._counts.items():
            shares = gather([each.cpu() for each in counts])
            longest = max(map(len, shares))
            self._counts[name] = [share[place] for place in range(longest) for share in shares if place < len(share)]

    def by_image(self) -> dict[str, Tensor]:
        """By what is counted, [`REGIONS`] and names of metrics, the counts (images, K, L), on the CPU."""
        nothing = torch.zeros(0, 3, self.num_labels)
        return {name: torch.stack(counts).cpu() if counts else nothing for name, counts in self._counts.items()}

    def more(self) -> dict[str, float | list[float]]:
        """The further metrics of the domain, as [`~deft_hf.scoring.confusion.Scores`] has them."""
        totals = {name: counts.sum(0) for name, counts in self.by_image().items()}
        return {
            key: value for metric in self.metrics for key, value in metric.values(totals[counted_as(metric)]).items()
        }


def counted_as(metric: Metric) -> str:
    """Under which name a tally has what a metric is computed from."""
    return REGIONS if metric.count is None else metric.name
