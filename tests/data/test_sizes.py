"""Sizes of protocols: what images are resized to, and pairs that are made smaller themselves."""

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.sizes import CropOrPad, ResizedDomain, halve, resized
from deft_hf.data.transforms import EvalTransform
from deft_hf.models.families import FAMILIES
from deft_hf.models.processor import segmentation_processor


@pytest.mark.parametrize(
    "own, size, expected",
    [
        ((1052, 1914), None, (1052, 1914)),
        ((1052, 1914), "own", (1052, 1914)),
        ((1052, 1914), (720, 1280), (720, 1280)),
        ((1024, 2048), {"short": 512}, (512, 1024)),
        ((1052, 1914), {"short": 512}, (512, 931)),  # 931.5
        ((1914, 1052), {"short": 512}, (931, 512)),
        ((2448, 3264), {"long": 1024}, (768, 1024)),
        ((3264, 2448), {"long": 1024}, (1024, 768)),
        ((1, 4000), {"long": 10}, (1, 10)),
        ((1024, 2048), {"short": 512, "long": 1024}, (512, 1024)),
        ((1052, 1914), {"short": 512, "long": 1024}, (512, 931)),
        ((2448, 3264), {"short": 1024, "long": 2048}, (1024, 1365)),
        ((800, 2000), {"short": 512, "long": 1024}, (410, 1024)),  # 409.6
        ((2000, 800), {"short": 512, "long": 1024}, (1024, 410)),
    ],
)
def test_resized(own, size, expected):
    assert resized(own, size) == expected


@pytest.mark.parametrize("model_type", sorted({family.processor: name for name, family in FAMILIES.items()}.values()))
@pytest.mark.parametrize(
    "size", [None, "own", (40, 64), {"short": 40}, {"long": 40}, {"short": 40, "long": 50}], ids=str
)
@pytest.mark.parametrize("own", [(50, 77), (77, 50)])
def test_the_processor_does_what_the_transform_does(model_type, size, own):
    pixels = np.random.default_rng(0).integers(0, 256, (*own, 3), np.uint8)
    image, processor = Image.fromarray(pixels), segmentation_processor(None, size, model_type)
    expected = EvalTransform(size)(image, np.zeros(own, np.uint8))["pixel_values"]
    found = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def pair(height, width):
    mask = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    return Image.fromarray(np.full((height, width, 3), 200, np.uint8)), mask


def test_halves():
    image, mask = halve(*pair(7, 9))
    assert image.size == (4, 3) and mask.tolist() == [[1, 3, 5, 7]] * 3


def columns(image, mask):
    return np.asarray(image)[0, :, 0].tolist(), mask[0].tolist()


def test_wide_pairs_lose_their_sides():
    image, mask = CropOrPad(4)(*pair(4, 8))
    assert image.size == (4, 4) and columns(image, mask) == ([200] * 4, [2, 3, 4, 5])


def test_narrow_pairs_are_padded_in_the_middle():
    pixels, labels = columns(*CropOrPad(8)(*pair(8, 4)))
    assert labels == [255, 255, 0, 1, 2, 3, 255, 255] and pixels == [0, 0, *[200] * 4, 0, 0]


def test_padding_of_class_0_is_that_of_robustnet():
    """Its code pads 4 on either side, and cuts at (4 - 8) / 2 of that."""
    pixels, labels = columns(*CropOrPad(8, pad_label=0)(*pair(8, 4)))
    assert labels == [0, 0, 0, 0, 0, 0, 0, 1] and pixels == [0] * 6 + [200] * 2


def test_the_height_decides():
    image, mask = CropOrPad(16)(*pair(8, 10))
    assert image.size == (16, 16) and mask[0].tolist() == np.arange(10).repeat(2)[2:18].tolist()


def test_a_domain_of_halves():
    whole = Domain.from_streets("clear", count=3, size=(48, 64))
    domain = ResizedDomain(whole, halve)
    assert len(domain) == 3 and domain.ids == whole.ids and domain.name == "clear"
    image, mask = domain.load(1)
    assert image.size == (32, 24) and (mask == whole.load(1)[1][1::2, 1::2]).all()
    assert domain.select([1]).load(0)[0] == image and len(domain.select([1])) == 1
    assert domain.check().pairs == 3
    assert not set(domain.contents) & set(whole.contents)


def test_halves_of_corrupted_images():
    clean = Domain.from_streets("clear", count=2, size=(48, 64))
    domain = ResizedDomain(corrupted(clean, "fog"), halve)
    assert len(domain) == 10 and domain.ids[-1] == f"{clean.ids[1]}_5" and domain.load(9)[0].size == (32, 24)
