"""Expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3).

The pixels with a truth fall into 15 bins of equal width by their confidence, the probability of the predicted class:
ECE = Σ_b (n_b / n) |accuracy of b - mean confidence of b| (https://arxiv.org/abs/1706.04599). A model that classifies
masks gives scores from 0 up in place of logits; divided by their sum over the classes they are its probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft_hf.scoring.metrics.base import Metric, Segmented

BINS = 15


def count(image: Segmented) -> Tensor:
    """Pixels, right ones, and the sum of the confidences in each bin, float64 (3, 15), on the CPU."""
    # On the CPU, since not every device has float64, in which the sums over millions of pixels stay exact.
    confidence = image.probabilities.amax(0).cpu()[image.valid.cpu()]
    right = (image.classes == image.labels)[image.valid].cpu()
    bins = (confidence * BINS).ceil().long().sub(1).clamp_(0, BINS - 1)
    return torch.stack(
        [
            torch.bincount(bins, weights=weights.double(), minlength=BINS)
            for weights in (torch.ones_like(confidence), right, confidence)
        ]
    )


def error(counts: Tensor) -> Tensor:
    """Mean distance of accuracy and confidence, over the pixels."""
    pixels, right, confidence = counts.unbind(-2)
    return (right - confidence).abs().sum(-1) / pixels.sum(-1)


METRICS = (
    Metric(
        "calibration_error",
        "calibration error",
        "Guo et al. 2017, equation 3",
        error,
        count=count,
        of_probabilities=True,
        lower_is_better=True,
    ),
)
