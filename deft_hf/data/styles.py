"""Other looks for training crops, their masks left alone: random convolutions, AugMix, Fourier amplitudes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from deft_hf.data.constants import IMAGENET_MEAN, IMAGENET_STD

_MEAN, _STD = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
_SEVERITY = 3  # of AugMix
_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, level: ImageOps.autocontrast(image),
    lambda image, level: ImageOps.equalize(image),
    lambda image, level: ImageOps.posterize(image, 4 - int(level * 4 / 10)),
    lambda image, level: ImageOps.solarize(image, 256 - int(level * 256 / 10)),
)


def random_convolution(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mixes an image with a random convolution of itself, which keeps shapes and changes textures.

    RandConv (Xu et al., ICLR 2021, https://arxiv.org/abs/2007.13003), multi-scale and mixed ("RC_mix, 1-7"): a kernel
    of side k from {1, 3, 5, 7} with weights from N(0, 1 / (3 k²)), over pixels of mean 0 and deviation 1 as ImageNet
    has them; α of the image and 1 - α of the result, α from U(0, 1).

    Args:
        pixels (`torch.Tensor`):
            float32 (3, H, W) in [0, 1].
        rng (`np.random.Generator`):
            Source of every random choice.

    Returns:
        `torch.Tensor`: float32 (3, H, W), beyond [0, 1] too.
    """
    side = 2 * int(rng.integers(4)) + 1
    weights = torch.from_numpy(rng.standard_normal((3, 3, side, side), np.float32)) / (side * 3**0.5)
    share = rng.random()
    normal = (pixels - _MEAN) / _STD
    mixed = share * normal + (1 - share) * F.conv2d(normal[None], weights, padding="same")[0]
    return mixed * _STD + _MEAN


def augmix(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mixes an image with three chains of one to three random operations on its colours.

    AugMix (Hendrycks et al., ICLR 2020, https://arxiv.org/abs/1912.02781) with its severity of 3: the chains are mixed
    by Dirichlet(1), and the result with the image by Beta(1, 1). Of its operations those that move no pixel, since the
    mask stays: autocontrast, equalize, posterize and solarize. Without its consistency loss.

    Args:
        pixels (`torch.Tensor`):
            float32 (3, H, W) in [0, 1].
        rng (`np.random.Generator`):
            Source of every random choice.

    Returns:
        `torch.Tensor`: float32 (3, H, W) in [0, 1].
    """
    image = Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    shares, own = rng.dirichlet(np.ones(3)), rng.beta(1, 1)
    mixed = own * pixels
    for share in shares:
        changed = image
        for _ in range(rng.integers(1, 4)):
            changed = _OPERATIONS[rng.integers(len(_OPERATIONS))](changed, rng.uniform(0.1, _SEVERITY))
        values = torch.from_numpy(np.array(changed)).permute(2, 0, 1).float() / 255
        mixed = mixed + float((1 - own) * share) * values
    return mixed


def fourier_amplitudes(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Perturbs the amplitudes of an image's spectrum, high frequencies more, and keeps the phases.

    PASTA (Chattopadhyay et al., ICCV 2023, https://arxiv.org/abs/2212.00979): each amplitude of each channel times
    ε from N(1, σ²), with σ = (α r / r_max)^k + β for the distance r of its frequency from 0, and its α = 3, k = 2 and
    β = 0.25; the real part of what comes back, cut to [0, 1].

    Args:
        pixels (`torch.Tensor`):
            float32 (3, H, W) in [0, 1].
        rng (`np.random.Generator`):
            Source of every random choice.

    Returns:
        `torch.Tensor`: float32 (3, H, W) in [0, 1].
    """
    rows, columns = (torch.fft.fftfreq(side) * side for side in pixels.shape[-2:])
    distance = (rows[:, None] ** 2 + columns**2).sqrt()
    deviation = (3 * distance / distance.max().clamp_min(1)) ** 2 + 0.25
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))
    return torch.fft.ifft2(torch.fft.fft2(pixels) * (1 + deviation * noise)).real.clamp(0, 1)


STYLES: dict[str, Callable[[torch.Tensor, np.random.Generator], torch.Tensor]] = {
    "randconv": random_convolution,
    "augmix": augmix,
    "fourier": fourier_amplitudes,
}
"""By name, from pixels in [0, 1] and a generator to pixels of another look."""
