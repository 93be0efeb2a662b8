"""What a seeded run sees, bit for bit: `TrainTransform` against the plain Pillow and NumPy that it stands for."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from deft_hf.data import colors
from deft_hf.data.geometry import Aim
from deft_hf.data.transforms import EvalTransform, TrainTransform

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def turned(image, turn):
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + round(turn * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def jittered(image, strengths, rng):
    for index in rng.permutation(4):
        strength = strengths[index]
        if index == 3 and strength:
            image = turned(image, rng.uniform(-strength, strength))
        elif strength:
            image = ENHANCERS[index](image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def normalised(image, transform):
    pixels = torch.from_numpy((np.asarray(image, np.float32) / 255).transpose(2, 0, 1).copy())
    return (pixels - torch.tensor(transform.mean)[:, None, None]) / torch.tensor(transform.std)[:, None, None]


def plain_item(transform, image, mask, rng):
    pose = transform._draw_pose(rng)
    window, labels = transform._draw_window(mask, pose, rng, Aim())
    size = window.size[::-1]
    image = pose.image(image.resize(size, Image.Resampling.BILINEAR, box=window.box), window, transform._mean_color())
    if rng.random() < transform.flip:
        image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
    if transform.vertical_flip and rng.random() < transform.vertical_flip:
        image, labels = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), labels[::-1]
    if transform.jitter is not None and rng.random() < transform.jitter_probability:
        image = jittered(image, transform.jitter, rng)
    if transform.blur is not None:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*transform.blur)))
    area = pose.area(window)
    item = {"pixel_values": torch.zeros(3, *transform.crop), "labels": torch.full(transform.crop, 255)}
    item["pixel_values"][(..., *area)] = normalised(image, transform)
    item["labels"][area] = torch.from_numpy(labels.copy()).long()
    return item


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"jitter": None, "blur": None},
        {"jitter_probability": 1.0},
        {"jitter": (1.5, 1.5, 1.5, 0.5), "jitter_probability": 1.0, "blur": None},
        {"jitter": (0.0, 0.3, 0.0, 0.0), "jitter_probability": 1.0, "blur": (0.0, 2.0)},
        {
            "turns": True,
            "rotation": 45.0,
            "vertical_flip": 0.5,
            "blur": (0.0, 1.5),
            "mean": (0, 0.3, 1),
            "std": (1, 2, 3),
        },
    ],
    ids=["defaults", "no colours", "jitter", "strong jitter", "contrast", "microscopy"],
)
def test_items_are_those_of_pillow_and_numpy(settings):
    transform = TrainTransform((37, 52), **settings)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        levels = rng.choice([np.arange(256), np.array([0, 1, 128, 254, 255]), np.full(1, 77)][seed % 3], (60, 71, 3))
        image = Image.fromarray(levels.astype(np.uint8))
        mask = rng.choice([0, 1, 2, 255], (60, 71)).astype(np.uint8)
        item = transform(image, mask, np.random.default_rng(seed))
        plain = plain_item(transform, image, mask, np.random.default_rng(seed))
        assert item.keys() == plain.keys()
        for key, values in plain.items():
            assert item[key].dtype == values.dtype and item[key].is_contiguous() and torch.equal(item[key], values), (
                key
            )


def test_evaluation_too():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8))
    transform = EvalTransform((19, 50))
    item = transform(image, np.zeros((30, 41), np.uint8))
    assert torch.equal(item["pixel_values"], normalised(image.resize((50, 19), Image.Resampling.BILINEAR), transform))


def test_hues_turn_as_pillows_whatever_the_colour():
    steps = np.array([0, 1, 2, 3, *range(4, 252, 9), 252, 253, 254, 255])
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3).astype(np.uint8)
    for turn in (-0.5, -0.0793, 0.0, 0.004, 0.0371, 0.1, 0.31, 0.5):
        image = Image.fromarray(colours)
        assert colors._turn_hue(image, turn).tobytes() == turned(image, turn).tobytes(), turn
