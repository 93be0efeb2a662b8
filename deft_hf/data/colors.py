"""What augmentation does to the colours of an image, its mask left alone."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageStat

# How far red, green and blue of a hue in 0..255 lie below the value, as a share of value times saturation in 0..255.
_SEXTANTS = np.arange(256) * 6 / 255
_BELOW = (
    np.stack(
        [
            (2 - abs(_SEXTANTS - 3)).clip(0, 1),
            (abs(_SEXTANTS - 2) - 1).clip(0, 1),
            (abs(_SEXTANTS - 4) - 1).clip(0, 1),
        ]
    )
    / 255
).astype(np.float32)
_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


def jitter_colors(
    image: Image.Image, strengths: tuple[float, float, float, float], rng: np.random.Generator
) -> Image.Image:
    """Changes brightness, contrast, saturation and hue of an RGB image in a random order; see `TrainTransform`."""
    for index in rng.permutation(4):
        strength = strengths[index]
        if strength == 0:
            continue
        if index == 3:
            image = _turn_hue(image, rng.uniform(-strength, strength))
            continue
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        if index == 2:
            image = ImageEnhance.Color(image).enhance(factor)
        else:  # as ImageEnhance has them, by a table
            image = _blended(image, int(ImageStat.Stat(image.convert("L")).mean[0] + 0.5) if index else 0, factor)
    return image


def distort_photometrically(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast, saturation and hue of an RGB image, each with probability 1/2.

    The form of mmsegmentation's PhotoMetricDistortion (from SSD, Liu et al., ECCV 2016), with its figures: adds up to
    32 of 255 either way; times 0.5 to 1.5, around black; saturation times 0.5 to 1.5 and a hue turned by up to 36
    degrees (18 of OpenCV's 180) in HSV; the contrast before or after these two, each as likely.

    Args:
        image (`Image.Image`):
            The image.
        rng (`np.random.Generator`):
            Source of every random choice.
    """
    if rng.random() < 0.5:
        image = _linear(image, 1.0, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    factor = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    if contrast_first:
        image = _linear(image, factor, 0.0)
    if rng.random() < 0.5:
        hue, saturation, value = image.convert("HSV").split()
        image = Image.merge("HSV", (hue, _linear(saturation, rng.uniform(0.5, 1.5), 0.0), value)).convert("RGB")
    if rng.random() < 0.5:
        image = _turn_hue(image, rng.uniform(-0.1, 0.1))
    return image if contrast_first else _linear(image, factor, 0.0)


def _linear(image: Image.Image, factor: float, offset: float) -> Image.Image:
    if factor == 1 and offset == 0:
        return image
    table = np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))


def _blended(image: Image.Image, grey: int, factor: float) -> Image.Image:
    table = Image.blend(Image.new("L", _RAMP.size, grey), _RAMP, factor).tobytes()
    return image.point(list(table) * 3)


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turns the hue in Pillow's HSV; back to RGB in half of Pillow's time, and to the same levels for every colour."""
    hue, saturation, value = (np.array(band) for band in image.convert("HSV").split())
    below = np.roll(_BELOW, -round(turn * 255), 1)
    brightness = torch.from_numpy(value).float()
    chroma = brightness * torch.from_numpy(saturation)
    bands = [torch.addcmul(brightness, chroma, torch.from_numpy(row.take(hue)), value=-1).round_() for row in below]
    return Image.merge("RGB", [Image.fromarray(band.to(torch.uint8).numpy()) for band in bands])
