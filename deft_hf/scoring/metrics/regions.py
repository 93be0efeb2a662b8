"""Metrics of the pixels of each class, from the confusion matrix alone.

With the pixels R_c of a class in the truth, P_c predicted, T_c both, and N in all:

* intersection over union T / (R + P - T) and accuracy T / R, see [`~deft_hf.scoring.confusion.ConfusionMatrix`];
* pixel accuracy Σ T / N and frequency-weighted IoU Σ (R / N) T / (R + P - T) (Long, Shelhamer and Darrell, CVPR 2015,
  section 5, https://arxiv.org/abs/1411.4038);
* F-score 2 T / (R + P), the Dice coefficient (van Rijsbergen 1979, Information Retrieval, chapter 7, β = 1).
"""

from __future__ import annotations

from torch import Tensor

from deft_hf.scoring.confusion import class_accuracy, class_iou
from deft_hf.scoring.metrics.base import Metric


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of the pixels that are predicted right."""
    hits, truth, _ = counts.unbind(-2)
    return hits.sum(-1) / truth.sum(-1)


def f_score(counts: Tensor) -> Tensor:
    """Harmonic mean of precision and recall of each class; NaN for one that is nowhere."""
    hits, truth, predicted = counts.unbind(-2)
    return 2 * hits / (truth + predicted)


def frequency_weighted_iou(counts: Tensor) -> Tensor:
    """IoU of the classes, each counting by its share of the pixels of the truth."""
    truth = counts[..., 1, :]
    return (truth * class_iou(counts).nan_to_num()).sum(-1) / truth.sum(-1)


_LONG = "Long et al. 2015, section 5"
METRICS = (
    Metric("iou", "IoU", "Everingham et al. 2015, section 4.1.2", class_iou, by_class=True),
    Metric("accuracy", "accuracy", _LONG, class_accuracy, by_class=True),
    Metric("pixel_accuracy", "pixel accuracy", _LONG, pixel_accuracy),
    Metric("f_score", "F-score", "van Rijsbergen 1979, chapter 7", f_score, by_class=True),
    Metric("frequency_weighted_iou", "frequency-weighted IoU", _LONG, frequency_weighted_iou),
)
