"""How well a model does where there are no labels: estimates of IoU with intervals.

A [`Calibration`] is made from source validation and corrupted copies of it, one pass over each; it then estimates the
mean IoU and the IoU of each class at a place from predicted probabilities, one pass too. Memory does not grow with the
number of images.
"""

from deft_hf.scoring.estimates.calibration import DEFAULT_METHOD, Calibration, Estimate
from deft_hf.scoring.estimates.counts import LabelledCounts, PlaceCounts
from deft_hf.scoring.estimates.estimators import ESTIMATORS

__all__ = ["DEFAULT_METHOD", "ESTIMATORS", "Calibration", "Estimate", "LabelledCounts", "PlaceCounts"]
