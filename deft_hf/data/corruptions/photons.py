"""Photons counted at the pixels of an image: Poisson draws for 256 means, by table."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import pdtr

_CELLS = 2**12
_BITS = 2**16  # values of the first draw of a pixel, of which a cell takes 16
_UNSETTLED = 255
_VALUES = 2**16  # at a time, so that what is worked on stays in the processor's cache


def counted_photons(levels: np.ndarray, photons: int, rng: np.random.Generator) -> np.ndarray:
    """Draws from Poisson distributions by inversion: a uniform draw becomes the count at which they pass it.

    The first 12 bits of the draw settle nearly all counts, from a table. Where a distribution passes a count within
    these, more bits are drawn, as many as a float64 has.

    Args:
        levels (`np.ndarray`):
            uint8, any shape. A level of 255 expects `photons`, others their share.
        photons (`int`):
            Less than 255.
        rng (`np.random.Generator`):
            Source of every random choice.

    Returns:
        `np.ndarray`: uint8 of the same shape; what is more than `photons` counts as `photons`, which is white.
    """
    settled, passed = _tables(photons)
    counts, means = np.empty(levels.size, np.uint8), levels.ravel()
    for start in range(0, levels.size, _VALUES):
        level = means[start : start + _VALUES].astype(np.intp)
        drawn = rng.integers(0, _BITS, level.size, np.uint16)
        part = settled.take(level * _CELLS + drawn // (_BITS // _CELLS))
        places = np.flatnonzero(part == _UNSETTLED)
        level = level[places]
        exact = (drawn[places] + rng.random(places.size)) / _BITS
        count = np.searchsorted(passed, level + exact, "right") - level * photons
        part[places] = np.minimum(count, photons)
        counts[start : start + _VALUES] = part
    return counts.reshape(levels.shape)


@cache
def _tables(photons: int) -> tuple[np.ndarray, np.ndarray]:
    """The count by level and cell, and the ascending level + P(count <= k) for each level and k < `photons`."""
    edges = np.arange(_CELLS + 1) / _CELLS
    levels = np.arange(256)[:, None]
    shares = pdtr(np.arange(photons), levels * (photons / 255))
    least = np.stack([np.searchsorted(row, edges[:-1], "right") for row in shares])
    most = np.stack([np.searchsorted(row, edges[1:], "left") for row in shares])
    return np.where(least == most, least, _UNSETTLED).astype(np.uint8).ravel(), (levels + shares).ravel()
