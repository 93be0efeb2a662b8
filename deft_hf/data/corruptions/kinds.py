"""The common corruptions of an image, in five severities.

Formulas and constants are those of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019 (https://arxiv.org/abs/1903.12261), as their code settles them
(https://github.com/hendrycks/robustness). What differs:

* Their constants are for images of 224 x 224. Lengths (radii, standard deviations of blurs, blocks, flakes) are scaled
  by the shorter side over 224, so that a corruption hides the same share of a picture of any size; their own constants
  for 64 x 64 go the same way. Noise is by pixel and JPEG by blocks of 8 pixels at any size, as there.
* `frost` is drawn, by a pattern of ours; theirs blends one of five photographs in. The weights of the blend are
  theirs.
* `motion_blur` does not move the image against its labels, see `motion_kernel`.
* Values are rounded to whole levels; theirs are cut.
* Left out: elastic transform and zoom blur, which move things away from their labels; glass blur, which swaps pixels
  one after the other; saturate, whose severities do not grow; spatter.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.corruptions import patterns
from deft_hf.data.corruptions.photons import counted_photons

_SIDE = 224
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def corrupt(image: Image.Image, kind: str, severity: int, rng: np.random.Generator) -> Image.Image:
    """Corrupts an RGB image; its size stays.

    Args:
        image (`Image.Image`):
            RGB.
        kind (`str`):
            One of `CORRUPTIONS`.
        severity (`int`):
            1 to 5.
        rng (`np.random.Generator`):
            Source of every random choice.
    """
    change, constants = KINDS[kind]
    pixels = np.array(image, np.float32)
    pixels /= 255
    return _to_image(change(pixels, constants[severity - 1], rng))


def _gaussian_noise(pixels: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(pixels.shape, np.float32)
    noise *= deviation
    noise += pixels
    return noise


def _shot_noise(pixels: np.ndarray, photons: int, rng: np.random.Generator) -> np.ndarray:
    shades = np.rint(np.arange(photons + 1) / photons * 255) / 255
    return shades.astype(np.float32).take(counted_photons(_levels(pixels), photons, rng))


def _impulse_noise(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.random(pixels.shape, np.float32)
    return np.where(drawn < share, drawn < share / 2, pixels)


def _speckle_noise(pixels: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(pixels.shape, np.float32)
    noise *= pixels * deviation
    noise += pixels
    return noise


def _defocus_blur(pixels: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    return patterns.filtered(pixels, patterns.disk_kernel(radius * _scale(pixels)))


def _motion_blur(pixels: np.ndarray, constants: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    return _streaked(pixels, *constants, rng.uniform(-45, 45))


def _gaussian_blur(pixels: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return patterns.filtered(pixels, patterns.gaussian_kernel(sigma * _scale(pixels)))


def _fog(pixels: np.ndarray, constants: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    amount, decay = constants
    brightest = pixels.max()
    mist = amount * patterns.plasma(pixels.shape[:2], decay, rng)[..., None]
    return (pixels + mist) * brightest / (brightest + amount)


def _snow(pixels: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    mean, deviation, cell, threshold, radius, sigma, share = constants
    layer = patterns.flakes(pixels.shape[:2], mean, deviation, cell * _scale(pixels), threshold, rng)
    layer = _streaked(layer[..., None], radius, sigma, rng.uniform(-135, -45))
    white = np.maximum(pixels, (pixels @ _LUMA)[..., None] * 1.5 + 0.5)
    return share * pixels + (1 - share) * white + layer + np.rot90(layer, 2)


def _frost(pixels: np.ndarray, constants: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    image_share, frost_share = constants
    return image_share * pixels + frost_share * patterns.frost(pixels.shape[:2], rng)


def _brightness(pixels: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:
    # With hue and saturation kept, the channels grow by the factor that HSV's value, their maximum, grows by.
    red, green, blue = np.split(pixels, 3, -1)
    value = np.maximum(np.maximum(red, green), blue)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, pixels * brighter / np.maximum(value, 1 / 255), brighter)


def _contrast(pixels: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    means = pixels.mean((0, 1), dtype=np.float64).astype(np.float32)
    changed = pixels - means
    changed *= factor
    changed += means
    return changed


def _pixelate(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    # What a block is wider than a pixel is the length that scales: below 224, too, blocks are wider than pixels.
    block = 1 + (1 / share - 1) * _scale(pixels)
    height, width = pixels.shape[:2]
    small = _to_image(pixels).resize((max(int(width / block), 1), max(int(height / block), 1)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def _jpeg(pixels: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    _to_image(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), np.float32) / 255


KINDS: dict[str, tuple[Callable[[np.ndarray, Any, np.random.Generator], np.ndarray], tuple]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "snow": (
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}


def _scale(pixels: np.ndarray) -> float:
    return min(pixels.shape[:2]) / _SIDE


def _streaked(pixels: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    scale = _scale(pixels)
    return patterns.filtered(pixels, patterns.motion_kernel(radius * scale, sigma * scale, angle))


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(_levels(pixels))


def _levels(pixels: np.ndarray) -> np.ndarray:
    levels = pixels.clip(0, 1)
    levels *= 255
    return np.rint(levels, out=levels).astype(np.uint8)
