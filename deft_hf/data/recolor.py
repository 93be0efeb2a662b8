"""Copies of images in other colours, by other statistics of their LAB channels."""

from __future__ import annotations

import numpy as np
import torch

_BLOCK = 2**14  # pixels at a time, so that what is worked on stays in the processor's cache

# CIE LAB of sRGB under D65, as kornia and scikit-image have it (https://en.wikipedia.org/wiki/CIELAB_color_space).
_WHITE = torch.tensor([0.95047, 1.0, 1.08883])
_TO_XYZ = (
    torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    / _WHITE[:, None]
)
_FROM_XYZ = _WHITE * torch.tensor(
    [[3.2404813, -1.5371515, -0.4985363], [-0.9692549, 1.8759900, 0.0415559], [0.0556466, -0.2040413, 1.0573111]]
)
# What a step of fy, fx - fy and fy - fz, from which LAB is made, is of L / 100, a / 255 and b / 255.
_STEPS = torch.tensor([[116 / 100], [500 / 255], [200 / 255]])
# L / 100, (a + 128) / 255 and (b + 128) / 255 to fx, fy and fz.
_TO_ROOTS = torch.tensor([[100 / 116, 255 / 500, 0], [100 / 116, 0, 0], [100 / 116, 0, -255 / 200]])
_ROOTS_OF_NONE = torch.tensor([[16 / 116 - 128 / 500], [16 / 116], [16 / 116 + 128 / 200]])


def lab_recolor(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gives images other colours by other statistics of their LAB channels, the copies that DeFT's authors train on.

    RGB to LAB in [0, 1]; each channel of each image is standardised to mean 0 and deviation 1, then given a mean drawn
    from U(0.2, 0.8) and a deviation from U(0.1, 0.4); Gaussian noise of deviation 0.01 is added, the result cut to
    [0, 1] and taken back to RGB. That is what the authors' code does (https://github.com/jhpahk/DeFT; the paper is not
    known to name it), told in words; what the words leave open is settled here:

    * L is brought to [0, 1] as L / 100, a and b as (x + 128) / 255.
    * Mean and deviation are drawn for each image and channel apart, the noise for each value.
    * The deviation is that of the population and counts as 1e-3 at least, which no eye sees; else the rounding errors
      in a and b of a grey image would become its colours.
    * RGB outside [0, 1] is cut.

    Args:
        rgb (`torch.Tensor`):
            float32 (N, 3, H, W) or (3, H, W) in [0, 1], on any device; the work is done on the CPU.
        rng (`np.random.Generator`):
            Source of every random choice.

    Returns:
        `torch.Tensor`: float32, of the same shape and on the same device, in [0, 1].
    """
    images = rgb.cpu().reshape(-1, 3, rgb.shape[-2] * rgb.shape[-1])
    count, _, pixels = images.shape
    means, deviations = (
        torch.from_numpy(rng.uniform(low, high, (count, 3, 1))).float() for low, high in ((0.2, 0.8), (0.1, 0.4))
    )
    noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32))
    recolored = torch.empty_like(images)
    room = torch.empty(2, 3 * min(_BLOCK, pixels))
    parts = [slice(start, min(start + _BLOCK, pixels)) for start in range(0, pixels, _BLOCK)]
    rooms = [room[:, : 3 * (part.stop - part.start)].unflatten(1, (3, -1)) for part in parts]
    for image, mean, deviation, grain, target in zip(images, means, deviations, noise, recolored, strict=True):
        for part, (values, spare) in zip(parts, rooms, strict=True):
            _to_lab(image[:, part], target[:, part], values, spare)
        target -= target.mean(1, keepdim=True)
        spread = target.square().mean(1, keepdim=True).sqrt()  # to more digits than a norm
        scale = deviation / (spread * _STEPS).clamp_min(1e-3) * _STEPS
        for part, (values, spare) in zip(parts, rooms, strict=True):
            lab = torch.mul(target[:, part], scale, out=values).add_(mean).add_(grain[:, part], alpha=0.01)
            _to_rgb(lab.clamp_(0, 1), target[:, part], spare)
    return recolored.reshape(rgb.shape).to(rgb.device)


def _to_lab(rgb: torch.Tensor, lab: torch.Tensor, values: torch.Tensor, spare: torch.Tensor) -> None:
    torch.add(rgb, 0.055, out=values).mul_(1 / 1.055)
    _curve(values, 0.09047393, 2.4, 1.055 / 12.92, spare)
    x, y, z = _curve(torch.mm(_TO_XYZ, values, out=spare), 0.008856, 1 / 3, 7.787, values)
    lab[0] = y
    torch.sub(x, y, out=lab[1])
    torch.sub(y, z, out=lab[2])


def _to_rgb(lab: torch.Tensor, rgb: torch.Tensor, spare: torch.Tensor) -> None:
    roots = torch.addmm(_ROOTS_OF_NONE, _TO_ROOTS, lab, out=spare)
    roots[2].clamp_(min=0)
    linear = torch.mm(_FROM_XYZ, _curve(roots, 0.2068966, 3, 1 / 7.787, lab), out=lab)
    coded = _curve(linear, 0.0031308, 1 / 2.4, 12.92 / 1.055, spare)
    torch.mul(coded, 1.055, out=rgb).sub_(0.055).clamp_(0, 1)


def _curve(values: torch.Tensor, threshold: float, exponent: float, slope: float, spare: torch.Tensor) -> torch.Tensor:
    """Values to a power above a threshold; below it, on the line of that slope that meets it there. In place."""
    line = torch.sub(values, threshold, out=spare).clamp_(max=0)
    values.clamp_(min=threshold)
    if exponent == 3:
        values.pow_(3)
    else:  # in half of the time of `pow`
        values.log2_().mul_(exponent).exp2_()
    return values.add_(line, alpha=slope)
