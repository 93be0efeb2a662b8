"""What corruptions are made of: kernels to filter with, and drawn fog, flakes and frost.

Lengths are in pixels of the image at hand.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_PANE = 512  # the shorter side, in pixels, of the drawing that frost of any size is made from
_FERNS = 40  # on a square pane
_FROST_TINT = np.array([0.86, 0.94, 1.0], np.float32)


def filtered(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves each channel of (H, W, C) with a kernel of odd sides and sum 1, the image mirrored at its borders."""
    from scipy.signal import fftconvolve  # takes half a second, and is for few recipes

    rows, columns = (side // 2 for side in kernel.shape)
    padded = np.pad(pixels, ((rows, rows), (columns, columns), (0, 0)), mode="reflect")
    return fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def gaussian_kernel(sigma: float) -> np.ndarray:
    """A Gaussian cut off at four standard deviations."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return _of_sum_one(np.outer(weights, weights))


def disk_kernel(radius: float) -> np.ndarray:
    """A disk, the image of a point out of focus; pixels on its edge count by how far they lie inside."""
    reach = math.ceil(radius)
    offsets = np.arange(-reach, reach + 1)
    return _of_sum_one(np.clip(radius + 0.5 - np.hypot(offsets[:, None], offsets), 0, 1))


def motion_kernel(radius: float, sigma: float, angle: float) -> np.ndarray:
    """A streak along a direction in degrees, whose weights fall as half a Gaussian over twice the radius.

    That is ImageMagick's motion blur, but for its place: there the streak starts at the pixel and so carries the image
    away from its labels; here its centre of mass lies on the pixel.
    """
    steps = np.arange(round(2 * radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    steps = steps - np.average(steps, weights=weights)
    down, right = steps * math.sin(math.radians(angle)), steps * math.cos(math.radians(angle))
    reach = math.ceil(np.abs(steps).max()) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    top, left = np.floor(down).astype(int), np.floor(right).astype(int)
    for row, share in ((top, top + 1 - down), (top + 1, down - top)):
        for column, part in ((left, left + 1 - right), (left + 1, right - left)):
            np.add.at(kernel, (row + reach, column + reach), weights * share * part)
    return _of_sum_one(kernel)


def plasma(size: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """A plasma fractal by the diamond-square algorithm, on a torus.

    Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", CACM 25(6), 1982. Random displacements
    shrink by `decay` squared from one octave to the next: the corruptions' authors scale a uniform draw, whose bounds
    shrink by `decay`, by its bounds.

    Returns:
        `np.ndarray`: float32 (H, W) that fills the range from 0 to 1.
    """
    heights, reach = np.zeros((1, 1), np.float32), np.float32(1)

    def displaced(*neighbours: np.ndarray) -> np.ndarray:
        noise = rng.random(neighbours[0].shape, np.float32) * 2 - 1
        return sum(neighbours) / np.float32(4) + reach * noise

    while len(heights) < max(size):
        below, right = np.roll(heights, -1, 0), np.roll(heights, -1, 1)
        centres = displaced(heights, below, right, np.roll(below, -1, 1))
        finer = np.empty((2 * len(heights), 2 * len(heights)), np.float32)
        finer[::2, ::2], finer[1::2, 1::2] = heights, centres
        finer[::2, 1::2] = displaced(heights, right, centres, np.roll(centres, 1, 0))
        finer[1::2, ::2] = displaced(heights, below, centres, np.roll(centres, 1, 1))
        heights, reach = finer, reach / np.float32(decay**2)
    heights = heights[: size[0], : size[1]]
    lowest, highest = heights.min(), heights.max()
    return (heights - lowest) / max(highest - lowest, np.float32(1e-12))


def flakes(
    size: tuple[int, int], mean: float, deviation: float, cell: float, threshold: float, rng: np.random.Generator
) -> np.ndarray:
    """Spots where Gaussian noise, drawn on a grid of so many pixels a cell, is above a threshold; 0 elsewhere.

    Returns:
        `np.ndarray`: float32 (H, W) in 0..1.
    """
    grid = [math.ceil(side / max(cell, 1)) + 1 for side in size]
    noise = Image.fromarray(rng.normal(mean, deviation, grid).astype(np.float32))
    layer = np.asarray(noise.resize(size[::-1], Image.Resampling.BILINEAR))
    return np.where(layer < threshold, np.float32(0), layer.clip(0, 1))


def frost(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Ice on a pane: ferns that grow inwards from the borders, milky where they are dense. A drawing of ours.

    Returns:
        `np.ndarray`: float32 (H, W, 3) in 0..1.
    """
    height, width = (round(side * _PANE / min(size)) for side in size)
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for _ in range(round(_FERNS * (height + width) / (2 * _PANE))):
        x, y, inwards = _on_the_border(rng.uniform(0, 2 * (height + width)), width, height)
        depth = abs(rng.normal(0, 0.15)) * _PANE
        x, y = x + depth * math.cos(inwards), y + depth * math.sin(inwards)
        _draw_fern(pen, x, y, inwards + rng.normal(0, 0.7), rng.uniform(0.15, 0.55) * _PANE, 2, rng)
    needles, milk = (
        np.asarray(canvas.filter(ImageFilter.GaussianBlur(radius)).resize(size[::-1]), np.float32) / 255
        for radius in (1, 15)
    )
    grain = 0.5 + plasma(size, 1.2, rng)
    ice = 0.55 * needles + 1.1 * milk * grain
    return ice.clip(0, 1)[..., None] * _FROST_TINT


def _draw_fern(
    pen: ImageDraw.ImageDraw,
    x: float,
    y: float,
    angle: float,
    length: float,
    generations: int,
    rng: np.random.Generator,
) -> None:
    """A stem with pairs of branches at 60 degrees, the angle of ice, that grow shorter towards its tip."""
    twigs = max(int(length / 10), 2) if generations else 1
    step, bend = length / twigs, rng.normal(0, 0.4) / twigs
    brightness = int(rng.uniform(100, 255))
    for twig in range(twigs):
        end = x + step * math.cos(angle), y + step * math.sin(angle)
        pen.line((x, y, *end), fill=brightness, width=2)
        x, y = end
        angle += bend
        if generations:
            for side in (-1, 1):
                reach = 0.5 * (length - twig * step) * rng.uniform(0.2, 1)
                _draw_fern(pen, x, y, angle + side * math.pi / 3, reach, generations - 1, rng)


def _on_the_border(along: float, width: int, height: int) -> tuple[float, float, float]:
    """The point so far along the border, and the direction inwards in radians."""
    if along < width:
        return along, 0, math.pi / 2
    if along < width + height:
        return width, along - width, math.pi
    if along < 2 * width + height:
        return along - width - height, height, -math.pi / 2
    return 0, along - 2 * width - height, 0


def _of_sum_one(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)
