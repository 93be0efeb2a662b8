"""Boundary IoU (Cheng et al., CVPR 2021, section 4, equation 3, https://arxiv.org/abs/2103.16562).

The IoU of the pixels of a class that are at most d from the contour of its region: |G_d ∩ P_d| / |G_d ∪ P_d|, with the
inner bands G_d of the truth and P_d of the prediction. As in the authors' code d is 0.02 of the image's diagonal, at
least one pixel, distances are those of a square (erosion with 3 x 3 ones, d times), and the border of the image is a
contour. Counts are summed over the images of a domain before they are divided, as for IoU. Where the truth ignores
pixels, so does the prediction: both have a contour there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.scoring.confusion import class_iou
from deft_hf.scoring.metrics.base import Metric, Segmented

DILATION = 0.02
_OUTSIDE = -1


def count(image: Segmented) -> Tensor:
    """Pixels of the bands of each class, int64 (3, C), as `class_counts`: in both, in the truth, in the prediction."""
    size, valid = image.num_labels, image.valid.cpu()
    truth = np.where(valid, image.labels.cpu(), IGNORE_INDEX).astype(np.int16)
    predicted = np.where(valid, image.classes.cpu(), IGNORE_INDEX).astype(np.int16)
    radius = max(1, round(DILATION * math.hypot(*truth.shape)))
    in_truth, in_prediction = (_band(ids, radius) & valid.numpy() for ids in (truth, predicted))
    groups = truth[in_truth & in_prediction & (truth == predicted)], truth[in_truth], predicted[in_prediction]
    return torch.from_numpy(np.stack([np.bincount(ids, minlength=size)[:size] for ids in groups]))


def _band(ids: np.ndarray, radius: int) -> np.ndarray:
    """Where a square of `2 radius + 1` holds another id than that of its middle, or leaves the image."""
    # One look at the lowest and the highest id of a square serves all classes at once.
    window = {"size": 2 * radius + 1, "mode": "constant", "cval": _OUTSIDE}
    return ndimage.minimum_filter(ids, **window) != ndimage.maximum_filter(ids, **window)


METRICS = (
    Metric("boundary_iou", "boundary IoU", "Cheng et al. 2021, equation 3", class_iou, by_class=True, count=count),
)
