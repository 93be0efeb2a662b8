"""What is kept of the predictions on a set of images: sums by class, as large for one image as for a million."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.utils.errors import UserError

TEMPERATURES = tuple(2 ** (step / 4) for step in range(-4, 13))  # 0.5 to 8, between which sums are interpolated
REPLICATES = 200

_PIXELS = 8192  # of an image, for the sums at every temperature
_BINS, _LOWEST, _HIGHEST = 512, -6.0, 17.0  # of the log-odds of a confidence, which float32 holds up to 16.6


@dataclass(frozen=True)
class Evidence:
    """What estimates are computed from: sums over all pixels of some images, without a label among them.

    Rows are predicted classes, columns classes that the pixels may truly be. Leading dimensions (bootstrap replicates)
    are allowed everywhere.

    Attributes:
        predicted (`Tensor`):
            Pixels predicted as each class, shape `(..., K)`.
        soft (`Tensor`):
            Sums of the predicted probabilities over the pixels of each row, shape `(..., K, K)`.
        tempered (`Tensor`):
            The same with the temperatures of the calibration.
        above (`Tensor`):
            Pixels of each class whose confidence is above the threshold of the calibration, shape `(..., K)`.
        dice (`Tensor`):
            Sum over the images of the soft Dice confidence of each class, shape `(..., K)`.
        dice_images (`Tensor`):
            Images in which the class is predicted, shape `(..., K)`.
        agreement (`Tensor`):
            Pixels by the model's class (row) and another member's (column), summed over members; zero without any.
        images (`Tensor`):
            Number of images, shape `(...)`.
    """

    predicted: Tensor
    soft: Tensor
    tempered: Tensor
    above: Tensor
    dice: Tensor
    dice_images: Tensor
    agreement: Tensor
    images: Tensor

    @property
    def confidence(self) -> Tensor:
        """Mean probability of the predicted class over all pixels."""
        return self.soft.diagonal(dim1=-2, dim2=-1).sum(-1) / self.predicted.sum(-1)


class LabelledCounts:
    """Predictions on images with labels (source validation, or a corrupted copy of it), for calibration.

    Memory is O(temperatures · classes²), whatever the number of images.

    Args:
        num_labels (`int`):
            Number of classes.
        ignore_index (`int`, *optional*, defaults to `255`):
            Label of unlabelled pixels. They count in what is estimated, as all pixels of a place without labels do,
            and in no truth.
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX):
        self.num_labels = num_labels
        self.truth = ConfusionMatrix(num_labels, ignore_index)
        # The leading 2: labelled pixels, and ignored ones.
        self.predicted = torch.zeros(2, num_labels, dtype=torch.float64)
        self.soft = torch.zeros(2, num_labels, num_labels, dtype=torch.float64)
        self.grid = torch.zeros(len(TEMPERATURES), 2, num_labels, num_labels, dtype=torch.float64)
        self.histogram = torch.zeros(2, num_labels, _BINS, dtype=torch.float64)
        self.dice = torch.zeros(2, num_labels, dtype=torch.float64)  # sums, and images
        self.agreement = torch.zeros(num_labels, num_labels, dtype=torch.float64)
        self.images = 0

    def update(self, probabilities: Tensor, labels: Tensor, members: Sequence[Tensor] = ()) -> None:
        """Add an image.

        Args:
            probabilities (`Tensor`):
                Probabilities of the classes, or scores from 0 up that are divided by their sum, shape `(K, H, W)`.
            labels (`Tensor`):
                Class ids or the ignore index, integer, shape `(H, W)`.
            members (`Sequence[Tensor]`, *optional*, defaults to `()`):
                Class ids that other, independently trained models predict, each of shape `(H, W)`.

        Raises:
            UserError: If the shapes do not fit.
        """
        flat, confidence, classes = _flat(probabilities, self.num_labels)
        if labels.shape != probabilities.shape[1:]:
            raise UserError(f"labels: found {tuple(labels.shape)}, expected {tuple(probabilities.shape[1:])}")
        truth = labels.to(flat.device).flatten()
        self.truth.update(classes, truth)
        row = classes + self.num_labels * (truth == self.truth.ignore_index)
        shape = (2, self.num_labels)
        soft = _by_row(flat, row, 2 * self.num_labels)
        self.soft += soft.view(*shape, -1)
        self.predicted += torch.bincount(row, minlength=2 * self.num_labels).view(shape).cpu()
        place = (_log_odds(confidence) - _LOWEST) * (_BINS / (_HIGHEST - _LOWEST))
        cell = row * _BINS + place.long().clamp_(0, _BINS - 1)
        self.histogram += torch.bincount(cell, minlength=2 * self.num_labels * _BINS).view(*shape, _BINS).cpu()
        self.dice += torch.stack(_soft_dice(soft.view(*shape, -1).sum(0), classes))
        self.agreement += _agreement(classes, members, self.num_labels)
        self.images += 1

        step = _step(flat.shape[1], labels.shape[1])
        logs, row = flat[:, ::step].clamp_min(1e-30).log_(), row[::step]
        for index, temperature in enumerate(TEMPERATURES):
            tempered = _by_row((logs / temperature).softmax(0), row, 2 * self.num_labels)
            self.grid[index] += tempered.view(*shape, -1)

    def evidence(self, temperatures: Tensor, thresholds: Tensor) -> Evidence:
        """The sums without labels, at a temperature and a threshold (as log-odds) for each class, shape `(K,)`."""
        predicted = self.predicted.sum(0)
        rows = at_temperatures(self.grid.sum(1), temperatures)
        share = rows / rows.sum(-1, keepdim=True).clamp_min(1e-30)
        return Evidence(
            predicted=predicted,
            soft=self.soft.sum(0),
            tempered=share * predicted[:, None],
            above=above_threshold(self.histogram.sum(0), thresholds),
            dice=self.dice[0],
            dice_images=self.dice[1],
            agreement=self.agreement,
            images=torch.tensor(float(self.images), dtype=torch.float64),
        )


class PlaceCounts:
    """Predictions on images without labels, with the replicates of a bootstrap over images.

    Bootstrap samples are drawn as the images come: in each replicate an image counts Poisson(1) times, which is how
    often a draw with replacement takes it (Oza & Russell, "Online Bagging and Boosting", AISTATS 2001; Chamandy et
    al., "Estimating Uncertainty for Massive Data Streams", Google 2012). Memory is O(replicates · classes²).

    Args:
        temperatures (`Tensor`):
            Of the calibration, by predicted class.
        thresholds (`Tensor`):
            Of the calibration, log-odds, by predicted class.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the replicates.
    """

    def __init__(self, temperatures: Tensor, thresholds: Tensor, seed: int = 0):
        self.num_labels = len(temperatures)
        self.temperatures, self.thresholds = temperatures.float(), thresholds.float()
        self._generator = torch.Generator().manual_seed(seed)
        self._sizes = [self.num_labels] * 4 + [self.num_labels**2] * 3 + [1]
        self._sums = torch.zeros(REPLICATES + 1, sum(self._sizes), dtype=torch.float64)

    def update(self, probabilities: Tensor, members: Sequence[Tensor] = ()) -> None:
        """Add an image; see [`LabelledCounts.update`]."""
        flat, confidence, classes = _flat(probabilities, self.num_labels)
        size, device = self.num_labels, flat.device
        soft = _by_row(flat, classes, size)
        above = _log_odds(confidence) > self.thresholds.to(device)[classes]
        logs = flat.clamp_min(1e-30).log_().div_(self.temperatures.to(device)[classes])
        sums = [
            torch.bincount(classes, minlength=size).cpu(),
            torch.bincount(classes[above], minlength=size).cpu(),
            *_soft_dice(soft, classes),
            soft.flatten(),
            _by_row(logs.softmax(0), classes, size).flatten(),
            _agreement(classes, members, size).flatten(),
            torch.ones(1),
        ]
        weights = torch.poisson(torch.ones(REPLICATES + 1, dtype=torch.float64), generator=self._generator)
        weights[0] = 1  # the images themselves
        self._sums += weights[:, None] * torch.cat([part.double() for part in sums])

    def evidence(self) -> Evidence:
        """The sums of the images (first) and of the replicates that drew any."""
        sums = self._sums[self._sums[:, -1] > 0]
        predicted, above, dice, dice_images, soft, tempered, agreement, images = sums.split(self._sizes, 1)
        square = (len(sums), self.num_labels, self.num_labels)
        return Evidence(
            predicted=predicted,
            soft=soft.reshape(square),
            tempered=tempered.reshape(square),
            above=above,
            dice=dice,
            dice_images=dice_images,
            agreement=agreement.reshape(square),
            images=images[:, 0],
        )

    @property
    def images(self) -> int:
        """Number of images so far."""
        return int(self._sums[0, -1])


def at_temperatures(grid: Tensor, temperatures: Tensor) -> Tensor:
    """Rows (K, K) of sums at every temperature (T, K, K), each at its own: linear in the logarithm between two."""
    place = ((temperatures.log2() + 1) * 4).clamp(0, len(TEMPERATURES) - 1)
    low = place.long().clamp_max(len(TEMPERATURES) - 2)
    row = torch.arange(len(temperatures))
    return torch.lerp(grid[low, row], grid[low + 1, row], (place - low)[:, None].to(grid))


def above_threshold(histogram: Tensor, thresholds: Tensor) -> Tensor:
    """How many pixels of each row of the histogram (K, bins) lie above its threshold, a log-odds."""
    place = ((thresholds.double() - _LOWEST) * (_BINS / (_HIGHEST - _LOWEST))).clamp(0, _BINS)
    edges = F.pad(histogram.flip(-1).cumsum(-1).flip(-1), (0, 1))  # at each lower edge of a bin, and above the last
    low = place.long().clamp_max(_BINS - 1)[:, None]
    return torch.lerp(edges.gather(-1, low), edges.gather(-1, low + 1), (place[:, None] - low).to(edges))[:, 0]


def threshold_for(histogram: Tensor, share: float) -> float:
    """The log-odds above which a share of the pixels of a histogram (bins,) lies."""
    above = F.pad(histogram.flip(-1).cumsum(-1).flip(-1), (0, 1)) / histogram.sum()
    low = int((above >= share).nonzero().max().clamp_max(_BINS - 1))
    inside = (above[low] - share) / (above[low] - above[low + 1]).clamp_min(1e-30)
    return _LOWEST + (low + float(inside.clamp(0, 1))) * (_HIGHEST - _LOWEST) / _BINS


def _flat(probabilities: Tensor, num_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    if probabilities.ndim != 3 or len(probabilities) != num_labels:
        raise UserError(f"probabilities: found {tuple(probabilities.shape)}, expected ({num_labels}, height, width)")
    if probabilities.device.type == "mps":  # which has no float64
        probabilities = probabilities.cpu()
    flat = probabilities.reshape(num_labels, -1).float()
    flat = flat / flat.sum(0)
    return flat, *flat.max(0)


def _by_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums (rows, K) of the columns of (K, N) by their row."""
    sums = values.new_zeros(values.shape[0], rows).double()
    return sums.index_add_(1, row, values.double()).T.cpu()


def _log_odds(confidence: Tensor) -> Tensor:
    return confidence.clamp(1e-7, 1 - 6e-8).logit()


def _soft_dice(soft: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.bincount(classes, minlength=len(soft)).cpu().double()
    present = count > 0
    return torch.where(present, 2 * soft.diagonal() / (soft.sum(0) + count), 0), present.double()


def _agreement(classes: Tensor, members: Sequence[Tensor], size: int) -> Tensor:
    total = torch.zeros(size, size, dtype=torch.float64)
    for member in members:
        pair = classes * size + member.to(classes.device).flatten().long()
        total += torch.bincount(pair, minlength=size * size).view(size, size).cpu()
    return total


def _step(pixels: int, width: int) -> int:
    """Every how many pixels one is taken: a step that has no factor in common with the width meets every column."""
    step = math.ceil(pixels / _PIXELS)
    while math.gcd(step, width) > 1:
        step += 1
    return step
