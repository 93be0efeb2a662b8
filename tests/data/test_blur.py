"""The fast Gaussian blur against Pillow's, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from deft_hf.data import blur

SIGMAS = (0.0, 0.15, 0.4, 0.71, 0.93, 1.1, 1.3, 1.4, 1.45, 2.0)


def pillows(image, sigma):
    bands = [np.asarray(band.filter(ImageFilter.GaussianBlur(sigma)), np.float32) for band in image.split()]
    return torch.from_numpy(np.stack(bands))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (20, 30), (77, 40)])
@pytest.mark.parametrize("rows", [1, 16, 128])
def test_the_pixels_are_pillows(monkeypatch, size, rows):
    monkeypatch.setattr(blur, "_ROWS", rows)
    rng = np.random.default_rng(size)
    for values in (np.arange(256), [0, 255], [0, 1, 127, 128, 254, 255]):
        image = Image.fromarray(rng.choice(values, (*size, 3)).astype(np.uint8))
        for sigma in (*SIGMAS, *rng.uniform(0.15, 1.4, 5).tolist()):
            assert torch.equal(blur.gaussian_blur(image, sigma), pillows(image, sigma)), sigma


def test_nearly_all_of_the_default_range_is_blurred_here():
    shares = [blur._share(sigma) for sigma in np.random.default_rng(0).uniform(0.15, 1.3, 400)]
    assert sum(share is None for share in shares) < 40


def test_wide_blurs_and_those_close_to_a_tie_are_left_to_pillow():
    assert blur._share(1.5) is None and blur._share(0.0) == 0
    assert blur._share(0.9) is None and blur._share(0.91) is not None
