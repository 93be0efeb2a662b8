"""Which images of a domain an epoch shows, and what their crops aim at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import softmax

from deft_hf.data.class_index import ClassIndex, frequencies
from deft_hf.data.geometry import Aim
from deft_hf.utils.errors import UserError


class Sampler(Protocol):
    """Draws what an epoch shows of one domain."""

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, Sequence[Aim | None]]:
        """Positions in the domain, int64 (count,), and an aim, or none, for each."""


@dataclass(frozen=True)
class EveryImage:
    """Images in random order, so that none repeats before all were shown.

    Args:
        images (`int`):
            How many the domain has.
    """

    images: int

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, Sequence[Aim | None]]:
        return in_rounds(self.images, count, rng), [None] * count


class ClassUniform:
    """A share of the crops around centroids, equally many of each class; the others as [`EveryImage`].

    As in RobustNet's code (https://github.com/shachoi/RobustNet, class-uniform sampling): a crop covers its centroid,
    at a random place where the image leaves it one. Centroids of a class are taken in random order, so that none
    repeats before all were taken; classes that the domain lacks are left out.

    Args:
        index (`ClassIndex`):
            Of the domain, with centroids.
        share (`float`, *optional*, defaults to `0.5`):
            Share of the crops that are drawn by class, from 0 to 1.

    Raises:
        UserError: `share` is out of its range, or the index was made without tiles.
    """

    def __init__(self, index: ClassIndex, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"share: found {share}, expected 0 to 1")
        if index.pixels.any() and not len(index.centroids):
            raise UserError(
                "index: found no centroids, by which crops are drawn; make it with ClassIndex.of(tile=...)"
            )
        self.share = share
        self.images = len(index.pixels)
        self.centroids = [index.centroids[index.centroids[:, 1] == each] for each in np.unique(index.centroids[:, 1])]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, Sequence[Aim | None]]:
        by_class = apportion([self.share, 1 - self.share], count, rng)[0] if self.centroids else 0
        numbers = apportion(np.ones(len(self.centroids)), by_class, rng) if by_class else np.zeros(len(self.centroids))
        found = [
            rows[in_rounds(len(rows), int(number), rng)] for rows, number in zip(self.centroids, numbers, strict=True)
        ]
        rows = np.concatenate([np.empty((0, 4), np.int32), *found])
        images = np.concatenate([rows[:, 0], in_rounds(self.images, count - by_class, rng)]).astype(np.int64)
        aims = [*(Aim(point=(int(row), int(column))) for _, _, row, column in rows), *[None] * (count - by_class)]
        order = rng.permutation(count)
        return images[order], [aims[place] for place in order]


class RareClass:
    """Classes drawn by their rarity, then an image that shows the class, then a crop that does.

    From DAFormer (Hoyer et al., CVPR 2022, eq. 6 and 7, https://arxiv.org/abs/2111.14887): with the share f_c of class
    c in the labelled pixels, P(c) = exp((1 - f_c) / T) / Σ exp((1 - f_c') / T). Classes that the domain lacks have no
    part in it.

    Args:
        index (`ClassIndex`):
            Of the domain.
        temperature (`float`, *optional*, defaults to `0.01`):
            T: the lower, the rarer the classes that are drawn.
        pixels (`int`, *optional*, defaults to `3000`):
            An image shows a class with more than so many pixels of it; where none has as many, with any.
        crop_pixels (`int`, *optional*, defaults to `1500`):
            A crop shows it with more than so many.

    Raises:
        UserError: `temperature` is not positive.
    """

    def __init__(
        self, index: ClassIndex, temperature: float = 0.01, pixels: int = 3000, crop_pixels: int = 1500
    ) -> None:
        if not temperature > 0:
            raise UserError(f"temperature: found {temperature}, expected a number above 0")
        self.images = len(index.pixels)
        self.crop_pixels = crop_pixels
        shares = frequencies([index])
        self.classes = shares.nonzero()[0]
        rarity = (1 - shares[self.classes]) / temperature
        self.probabilities = softmax(rarity) if len(rarity) else rarity
        self.showing = [_showing(index.pixels[:, each], pixels) for each in self.classes]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, Sequence[Aim | None]]:
        if not len(self.classes):  # nothing is labelled, which the data check says
            return in_rounds(self.images, count, rng), [None] * count
        numbers = apportion(self.probabilities, count, rng)
        found = [
            images[in_rounds(len(images), number, rng)] for images, number in zip(self.showing, numbers, strict=True)
        ]
        order = rng.permutation(count)
        labels = np.repeat(self.classes, numbers)[order]
        return np.concatenate(found)[order], [Aim(label=int(label), pixels=self.crop_pixels) for label in labels]


def _showing(pixels: np.ndarray, enough: int) -> np.ndarray:
    some = (pixels > enough).nonzero()[0]
    return some if len(some) else pixels.nonzero()[0]


def apportion(weights: Sequence[float] | np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Shares out a number by weights, each share rounded to a neighbouring whole number, exact on average.

    This is systematic sampling: one random offset rounds all shares at once.
    """
    shares = np.cumsum(np.asarray(weights, np.float64))
    ends = np.floor(shares * count / shares[-1] + rng.random()).astype(np.int64)
    ends[-1] = count
    return np.diff(ends, prepend=0)


def in_rounds(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the numbers below `size` in random order, none again before all were there."""
    rounds = [rng.permutation(size) for _ in range(count // size + 1)]
    return np.concatenate(rounds)[:count]
