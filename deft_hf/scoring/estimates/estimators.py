"""Estimators of the IoU of each class from predictions alone, one function each, from sums to `(..., K)`.

Most predict the confusion matrix that labels would give. Its row `c` are the pixels predicted as class `c`; the share
of them that is right, the precision, is what confidence can tell. The rest of a row is spread over the other classes
as the predicted probabilities are. Then, as for a counted matrix, IoU = T / (R + P - T) with diagonal T, row sum P and
column sum R.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deft_hf.scoring.estimates.counts import TEMPERATURES, Evidence, LabelledCounts, threshold_for

_ABSENT = 0.01  # of a class's share of the source: a place without predictions of it and with less is without it
_ENOUGH = 200  # pixels predicted as a class, for a temperature, a threshold and a difference of its own


@dataclass(frozen=True)
class Parameters:
    """What confidence means on the source: one value per predicted class, shape `(K,)`.

    A class that is predicted on fewer than 200 labelled pixels, or never, gets the value of all classes together.

    Attributes:
        temperatures (`Tensor`):
            Class-wise temperatures, see [`temperature`].
        thresholds (`Tensor`):
            Class-wise thresholds of the confidence, as log-odds, see [`thresholded`].
        gaps (`Tensor`):
            Mean confidence minus precision, see [`difference`].
        shares (`Tensor`):
            Share of the labelled pixels that are of each class.
    """

    temperatures: Tensor
    thresholds: Tensor
    gaps: Tensor
    shares: Tensor

    @classmethod
    def fit(cls, counts: LabelledCounts) -> Parameters:
        """Fits all of them to the labelled pixels."""
        matrix = counts.truth.counts.double()  # rows are truth
        predicted, hits = matrix.sum(0), matrix.diagonal()
        confidences = counts.soft[0].diagonal()
        histogram = counts.histogram[0]

        def fitted(row: int | slice) -> tuple[float, float, float]:
            total = predicted[row].sum().clamp_min(1)
            precision = float(hits[row].sum() / total)
            grid = counts.grid[:, 0]
            at_each = grid.diagonal(dim1=-2, dim2=-1)[:, row].reshape(len(TEMPERATURES), -1).sum(1)
            at_each = at_each / grid[:, row].reshape(len(TEMPERATURES), -1).sum(1).clamp_min(1e-30)
            level = histogram[row].reshape(-1, histogram.shape[1]).sum(0)
            gap = float(confidences[row].sum() / total) - precision
            return _temperature_for(at_each, precision), threshold_for(level, precision), gap

        if not predicted.sum():
            values = [(1.0, 0.0, 0.0)] * counts.num_labels
        else:
            together = fitted(slice(None))
            values = [fitted(row) if predicted[row] >= _ENOUGH else together for row in range(counts.num_labels)]
        temperatures, thresholds, gaps = (
            torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True)
        )
        return cls(temperatures, thresholds, gaps, shares=matrix.sum(1) / matrix.sum().clamp_min(1))


def confidence(evidence: Evidence, parameters: Parameters) -> Tensor:
    """Plain confidence: probabilities are taken at their word.

    The expected confusion matrix is the sum of the predicted probabilities over the pixels of each row; for two
    classes, the "average confidence" of Li et al. (MICCAI 2022, https://arxiv.org/abs/2207.09957).
    """
    return _scored(matrix_iou(evidence.soft), evidence, parameters)


def temperature(evidence: Evidence, parameters: Parameters) -> Tensor:
    """Soft confusion matrix after class-wise temperature scaling.

    Li et al., MICCAI 2022 (https://arxiv.org/abs/2207.09957): the logits z of a pixel that is predicted as class c are
    divided by T_c, with T_c such that on the source the mean of `max softmax(z / T_c)` over the pixels predicted as c
    equals the share of them that is right. `softmax(log p / T) = softmax(z / T)`, so probabilities are enough. For two
    classes the authors choose the foreground's T so that soft Dice equals Dice; here every class is treated alike.
    """
    return _scored(matrix_iou(evidence.tempered), evidence, parameters)


def thresholded(evidence: Evidence, parameters: Parameters) -> Tensor:
    """Class-wise average thresholded confidence (ATC).

    Garg et al., "Leveraging Unlabeled Data to Predict Out-of-Distribution Performance", ICLR 2022
    (https://arxiv.org/abs/2201.04234), class by class as in Li et al. 2022: the precision of class c is the share of
    its pixels whose confidence is above t_c, chosen so that on the source this share equals the precision.
    """
    return _scored(matrix_iou(with_precision(evidence.soft, evidence.above)), evidence, parameters)


def difference(evidence: Evidence, parameters: Parameters) -> Tensor:
    """Class-wise difference of confidences (DoC).

    Guillory et al., "Predicting with Confidence on Unseen Distributions", ICCV 2021
    (https://arxiv.org/abs/2107.03315), class by class as in Li et al. 2022: the precision of class c is its mean
    confidence minus the gap between confidence and precision on the source, cut to [0, 1].
    """
    hits = evidence.soft.diagonal(dim1=-2, dim2=-1) - parameters.gaps * evidence.predicted
    hits = torch.minimum(hits.clamp_min(0), evidence.predicted)
    return _scored(matrix_iou(with_precision(evidence.soft, hits)), evidence, parameters)


def soft_dice(evidence: Evidence, parameters: Parameters) -> Tensor:
    """Soft Dice confidence (SDC), image by image.

    Borges et al., "Soft Dice Confidence: A Near-Optimal Confidence Estimator for Selective Prediction in Semantic
    Segmentation", 2024 (https://arxiv.org/abs/2402.10665): with probabilities p and the predicted mask ŷ of a class,
    SDC = 2 Σ p ŷ / (Σ p + Σ ŷ) over the pixels of an image. The mean D over the images in which the class is predicted
    is turned into IoU = D / (2 - D). Summed over all images first it would equal [`confidence`].
    """
    dice = evidence.dice / evidence.dice_images
    return _scored(dice / (2 - dice), evidence, parameters)


def agreement(evidence: Evidence, parameters: Parameters) -> Tensor:
    """IoU between the model's prediction and those of independently trained members.

    Baek et al., "Agreement-on-the-Line", NeurIPS 2022 (https://arxiv.org/abs/2206.13089): agreement between two models
    falls from one domain to another along the same line as accuracy does. [`Calibration`] does the rest: on the source
    agreement and accuracy (here IoU) are known, and the slope comes from corrupted copies, where the authors take it
    from many pairs of models. NaN without members.
    """
    found = _scored(matrix_iou(evidence.agreement), evidence, parameters)
    members = evidence.agreement.sum((-2, -1)) > 0
    return torch.where(members[..., None], found, torch.nan)


ESTIMATORS: dict[str, Callable[[Evidence, Parameters], Tensor]] = {
    "confidence": confidence,
    "temperature": temperature,
    "thresholded": thresholded,
    "difference": difference,
    "soft_dice": soft_dice,
    "agreement": agreement,
}


def matrix_iou(matrix: Tensor) -> Tensor:
    """IoU per class of confusion matrices `(..., K, K)`, counted or expected, whose rows are predicted classes."""
    hits = matrix.diagonal(dim1=-2, dim2=-1)
    return hits / (matrix.sum(-1) + matrix.sum(-2) - hits)


def with_precision(soft: Tensor, hits: Tensor) -> Tensor:
    """The matrix with another diagonal, and the rest of each row spread as it was."""
    diagonal = soft.diagonal(dim1=-2, dim2=-1)
    rest = (soft.sum(-1) - diagonal).clamp_min(1e-30)
    scaled = soft * ((soft.sum(-1) - hits) / rest)[..., None]
    return scaled - torch.diag_embed(scaled.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(hits)


def _scored(iou: Tensor, evidence: Evidence, parameters: Parameters) -> Tensor:
    """IoU with classes that are nowhere predicted: 0 where they are there and missed, NaN where they are absent.

    A class counts as absent where less is expected of it than a hundredth of its share of the source, unless fewer
    than two classes, over which a mean IoU is none, were left.
    """
    shares = evidence.tempered.sum(-2) / evidence.predicted.sum(-1, keepdim=True)
    predicted, known = evidence.predicted > 0, parameters.shares > 0
    there = predicted | (known & (shares >= _ABSENT * parameters.shares))
    there = torch.where(there.sum(-1, keepdim=True) < 2, predicted | known, there)
    missed = torch.where(there, 0.0, torch.nan).to(iou)
    return torch.where(predicted, iou, missed)


def _temperature_for(confidences: Tensor, precision: float) -> float:
    """Where mean confidence, which falls as the temperature grows, equals the precision."""
    above = int((confidences >= precision).sum())
    if above == 0:
        return TEMPERATURES[0]
    if above == len(TEMPERATURES):
        return TEMPERATURES[-1]
    high, low = float(confidences[above - 1]), float(confidences[above])
    return TEMPERATURES[above - 1] * 2 ** (0.25 * (high - precision) / max(high - low, 1e-30))
