import colorsys
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from deft_hf.data import recolor
from deft_hf.data.colors import jitter_colors
from deft_hf.data.constants import IMAGENET_MEAN, IMAGENET_STD
from deft_hf.data.recolor import lab_recolor
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.utils.errors import UserError

PLAIN = {"flip": 0.0, "jitter": None, "blur": None, "mean": (0, 0, 0), "std": (1, 1, 1), "max_class_share": 1.0}
COLORS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 220, 40]], np.uint8)


def noise(seed, size=(40, 56)):
    """An image and a mask without any structure, so that a window fits at one place only."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)), rng.integers(0, 200, size, np.uint8)


def fields(seed, size=(96, 128), cell=24):
    """A mask of large fields and the image that shows each class in its colour."""
    coarse = np.random.default_rng(seed).integers(0, 4, (-(-size[0] // cell), -(-size[1] // cell)))
    mask = np.kron(coarse, np.ones((cell, cell), int))[: size[0], : size[1]].astype(np.uint8)
    return Image.fromarray(COLORS[mask]), mask


def to_levels(pixels):
    return (pixels * 255).round().numpy().astype(int).transpose(1, 2, 0)


# --- window


@pytest.mark.parametrize("scale, resize", [(1.0, None), (0.7, None), (1.9, None), (1.3, (50, 44)), (1.0, (24, 33))])
def test_a_crop_is_what_resizing_the_whole_image_first_would_give(scale, resize):
    image, mask = noise(0)
    crop = (17, 23)
    item = TrainTransform(crop, scale=(scale, scale), resize=resize, **PLAIN)(image, mask, np.random.default_rng(1))

    height, width = (round(side * scale) for side in resize or mask.shape)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    rows, columns = (
        ((np.arange(side) + 0.5) * source / side).astype(int)
        for side, source in zip((height, width), mask.shape, strict=True)
    )
    whole_mask = mask[np.ix_(rows, columns)]
    labels = item["labels"].numpy()
    places = [
        (top, left)
        for top in range(height - crop[0] + 1)
        for left in range(width - crop[1] + 1)
        if (whole_mask[top : top + crop[0], left : left + crop[1]] == labels).all()
    ]
    assert len(places) == 1
    top, left = places[0]
    expected = whole[top : top + crop[0], left : left + crop[1]]
    assert np.abs(to_levels(item["pixel_values"]) - expected).max() <= 1


def test_windows_reach_every_place():
    image, mask = noise(0, (6, 6))
    transform = TrainTransform((4, 4), scale=(1, 1), **PLAIN)
    rng = np.random.default_rng(0)
    corners = {int(transform(image, mask, rng)["labels"][0, 0]) for _ in range(200)}
    assert corners == set(mask[:3, :3].ravel().tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": 0.5},
        {"flip": 1.0, "resize": (70, 150)},
        {"blur": (0.15, 1.3)},
        {"vertical_flip": 0.5, "turns": True},
        {"rotation": 60.0, "turns": True, "flip": 0.5, "scale": (0.5, 2.5)},
    ],
)
def test_image_and_mask_stay_aligned(settings):
    transform = TrainTransform((60, 80), **(PLAIN | settings))
    for seed in range(30):
        item = transform(*fields(seed), np.random.default_rng(seed))
        labels = item["labels"].numpy()
        distance = np.linalg.norm(to_levels(item["pixel_values"])[:, :, None] - COLORS.astype(int), axis=-1)
        padded = np.pad(labels, 3, mode="edge")
        shifts = [padded[i : i + 60, j : j + 80] for i in range(7) for j in range(7)]
        inner = (np.ptp(shifts, axis=0) == 0) & (labels != 255)
        assert inner.mean() > 0.05
        assert (distance.argmin(-1) == labels)[inner].all()


def test_edges_lie_at_the_same_place_to_half_a_pixel():
    mask = np.zeros((60, 60), np.uint8)
    mask[:, 30:] = 1
    image = Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        item = TrainTransform((40, 40), scale=(0.8, 2.0), **(PLAIN | {"flip": 0.5}))(image, mask, rng)
        valid = item["labels"] != 255
        # The soft edge of the image holds half of itself on either side of the hard edge of the labels.
        difference = (item["pixel_values"][0] - item["labels"].float())[valid].sum() / valid.any(1).sum()
        assert abs(float(difference)) < 0.55


def test_small_images_are_padded_with_ignored_labels_and_the_mean():
    image, mask = noise(3, (10, 12))
    places = set()
    for seed in range(30):
        item = TrainTransform((16, 20), scale=(1, 1), jitter=None, blur=None)(image, mask, np.random.default_rng(seed))
        valid = (item["labels"] != 255).numpy()
        rows, columns = np.nonzero(valid)
        assert valid.sum() == 120 and np.ptp(rows) == 9 and np.ptp(columns) == 11
        assert (item["pixel_values"][:, ~valid] == 0).all() and (item["pixel_values"][:, valid] != 0).any()
        seen = item["labels"][valid].reshape(10, 12).numpy()
        assert (seen == mask).all() or (seen == mask[:, ::-1]).all()
        places.add((rows.min(), columns.min()))
    assert len(places) > 10


def test_normalisation():
    image, mask = noise(4)
    plain = TrainTransform((20, 20), scale=(1, 1), **PLAIN)(image, mask, np.random.default_rng(0))
    settings = PLAIN | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    normalised = TrainTransform((20, 20), scale=(1, 1), **settings)(image, mask, np.random.default_rng(0))
    for channel in range(3):
        expected = (plain["pixel_values"][channel] - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(normalised["pixel_values"][channel], expected)


# --- choices


def test_without_the_options_an_item_draws_what_it_always_drew():
    image, mask = noise(0)
    digest = hashlib.sha256()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = TrainTransform((24, 24))(image, mask % 5, rng)["labels"]
        digest.update(labels.numpy().astype("<i8").tobytes() + np.float64(rng.random()).tobytes())
    assert digest.hexdigest().startswith("0a8121fc5ed5e897"), "resumed runs and studies depend on it"


def test_an_item_depends_on_the_generator_alone():
    image, mask = fields(0)
    transform = TrainTransform((32, 40), recolor=True)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, other = (transform(image, mask, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.keys() == {"pixel_values", "labels", "recolored_pixel_values"}
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert (np.random.get_state()[1] == states[0]).all() and torch.equal(torch.get_rng_state(), states[1])
    assert first["pixel_values"].dtype == first["recolored_pixel_values"].dtype == torch.float32
    assert first["labels"].dtype == torch.int64
    assert first["pixel_values"].shape == first["recolored_pixel_values"].shape == (3, 32, 40)
    assert first["pixel_values"].is_contiguous() and first["labels"].shape == (32, 40)


def test_windows_that_one_class_fills_are_drawn_again():
    image, mask = fields(0, (64, 64))
    mask[:] = 0
    mask[:, 56:] = 1  # seen by few windows, and by a quarter of its pixels only in fewer still
    mask[:20] = 255  # counts as nothing

    def shares(limit):
        transform = TrainTransform((16, 16), scale=(1, 1), **(PLAIN | {"max_class_share": limit}))
        for seed in range(100):
            labels = transform(image, mask, np.random.default_rng(seed))["labels"]
            valid = labels[labels != 255]
            yield float(torch.bincount(valid).max() / len(valid)) if len(valid) else 1.0

    kept, unlimited = (np.array(list(shares(limit))) for limit in (0.75, 1.0))
    assert (kept <= 0.75).mean() > (unlimited <= 0.75).mean() + 0.3


def test_windows_without_a_label_are_drawn_again():
    image, mask = fields(0, (64, 64))
    mask[:, :48] = 255
    transform = TrainTransform((16, 16), scale=(1, 1), **PLAIN)
    empty = [bool((transform(image, mask, np.random.default_rng(seed))["labels"] == 255).all()) for seed in range(100)]
    assert sum(empty) <= 5, "two in three windows hold no label, but not ten in a row"


def test_a_mask_without_labels_still_gives_an_item():
    image, mask = fields(0)
    item = TrainTransform((16, 16))(image, np.full_like(mask, 255), np.random.default_rng(0))
    assert (item["labels"] == 255).all() and item["pixel_values"].isfinite().all()


def test_flips_are_as_frequent_as_asked():
    image, mask = noise(5, (8, 8))
    transform = TrainTransform((8, 8), scale=(1, 1), **(PLAIN | {"flip": 0.25}))
    flipped = 0
    for seed in range(400):
        labels = transform(image, mask, np.random.default_rng(seed))["labels"].numpy()
        flipped += (labels == mask[:, ::-1]).all()
        assert (labels == mask).all() or (labels == mask[:, ::-1]).all()
    assert 70 < flipped < 130


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": (0, 4)},
        {"crop": (4,)},
        {"resize": (4, 0)},
        {"scale": (2.0, 0.5)},
        {"scale": (0.0, 1.0)},
        {"blur": (-1.0, 1.0)},
        {"flip": 1.5},
        {"vertical_flip": -0.5},
        {"rotation": 181.0},
        {"rotation": -1.0},
        {"jitter": (0.4, 0.4, 0.4)},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"jitter": (-0.1, 0.4, 0.4, 0.1)},
        {"jitter_probability": -0.1},
        {"max_class_share": 75},
    ],
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(UserError, match=f"^{next(iter(settings))}: found"):
        TrainTransform(**({"crop": (4, 4)} | settings))


# --- colours


def factors(apply, strength):
    """Factor that explains each of some results, after checking that one factor explains all of its pixels."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        changed, base = apply(image, rng)
        base, values, changed = (np.asarray(array, float) for array in (base, image, changed))
        free = (changed > 1) & (changed < 254) & (abs(values - base) > 20)
        factor = ((changed - base)[free] / (values - base)[free]).mean()
        # Both the grey and the blend are rounded to whole levels.
        assert np.abs(np.clip(base + factor * (values - base), 0, 255) - changed).max() <= 2.5
        assert max(0, 1 - strength) - 0.03 <= factor <= 1 + strength + 0.03
        yield factor


def grey(image):
    return np.round(image @ [0.299, 0.587, 0.114])


@pytest.mark.parametrize("index", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_jitter_blends_with_black_mean_grey_or_grey(index, strength):
    bases = (
        lambda image: np.zeros_like(image),
        lambda image: np.full_like(image, grey(image).mean().round()),
        lambda image: grey(image)[..., None].repeat(3, -1),
    )
    strengths = [0.0] * 4
    strengths[index] = strength

    def apply(image, rng):
        return np.asarray(jitter_colors(Image.fromarray(image), strengths, rng)), bases[index](image)

    found = list(factors(apply, strength))
    assert min(found) < 1 < max(found) and len(set(np.round(found, 3))) > 15


def test_jitter_turns_every_hue_by_the_same_angle():
    vivid = np.array([[colorsys.hsv_to_rgb(hue, 0.9, 0.9) for hue in np.linspace(0, 1, 20)]])
    image = Image.fromarray((vivid * 255).round().astype(np.uint8))
    turns = []
    for seed in range(20):
        changed = np.asarray(jitter_colors(image, (0, 0, 0, 0.1), np.random.default_rng(seed))) / 255
        before, after = (np.array([colorsys.rgb_to_hsv(*color) for color in colors[0]]) for colors in (vivid, changed))
        np.testing.assert_allclose(after[:, 1:], before[:, 1:], atol=0.02)
        turn = (after[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
        assert np.ptp(turn) < 0.02 and abs(turn).max() < 0.115
        turns.append(turn.mean())
    assert min(turns) < -0.03 and max(turns) > 0.03


def test_jitter_without_strength_changes_nothing():
    image, _ = noise(6)
    assert jitter_colors(image, (0, 0, 0, 0), np.random.default_rng(0)).tobytes() == image.tobytes()


def test_crops_are_jittered_as_often_as_asked():
    image, mask = noise(7, (8, 8))
    plain = TrainTransform((8, 8), scale=(1, 1), **PLAIN)(image, mask, np.random.default_rng(0))["pixel_values"]
    settings = PLAIN | {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.25}
    transform = TrainTransform((8, 8), scale=(1, 1), **settings)
    changed = [
        not torch.equal(transform(image, mask, np.random.default_rng(seed))["pixel_values"], plain)
        for seed in range(400)
    ]
    assert 70 < sum(changed) < 130


@pytest.mark.parametrize("sigma", [0.15, 0.7, 1.3])
def test_blur_has_the_deviation_asked_for(sigma):
    mask = np.zeros((20, 40), np.uint8)
    image = Image.fromarray(np.repeat((np.arange(40) >= 20)[None, :, None] * np.uint8(255), 20, 0).repeat(3, 2))
    transform = TrainTransform(mask.shape, scale=(1, 1), **(PLAIN | {"blur": (sigma, sigma)}))
    edge = to_levels(transform(image, mask, np.random.default_rng(0))["pixel_values"])[10, :, 0]
    spread = np.diff(edge) / 255
    assert spread.sum() == pytest.approx(1)
    assert np.sqrt((spread * (np.arange(39) - 19) ** 2).sum()) == pytest.approx(sigma, rel=0.1)


# --- LAB copies

WHITE = np.array([0.95047, 1.0, 1.08883])
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])


def to_lab(rgb):
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ TO_XYZ.T / WHITE
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def to_rgb(lab):
    y = (lab[..., 0] + 16) / 116
    root = np.stack([y + lab[..., 1] / 500, y, np.maximum(y - lab[..., 2] / 200, 0)], -1)
    xyz = np.where(root > 0.2068966, root**3, (root - 4 / 29) / 7.787) * WHITE
    linear = xyz @ np.linalg.inv(TO_XYZ).T
    coded = np.where(linear > 0.0031308, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return coded.clip(0, 1)


@pytest.mark.parametrize("block", [1, 7, 99, 2**14])
def test_recoloured_copies_follow_the_formula(block, monkeypatch):
    monkeypatch.setattr(recolor, "_BLOCK", block)
    rgb = np.random.default_rng(0).random((2, 9, 11, 3)).astype(np.float32)
    rgb[:, :3] *= 0.05  # where the power gives way to a line
    recolored = lab_recolor(torch.from_numpy(rgb).permute(0, 3, 1, 2), np.random.default_rng(1))

    rng = np.random.default_rng(1)
    mean, std = rng.uniform(0.2, 0.8, (2, 3, 1, 1)), rng.uniform(0.1, 0.4, (2, 3, 1, 1))
    added = 0.01 * rng.standard_normal((2, 3, 9, 11), np.float32)
    low, extent = np.array([0, -128, -128]), np.array([100, 255, 255])
    scaled = (to_lab(rgb) - low) / extent
    for index in range(2):
        for channel in range(3):
            values = scaled[index, :, :, channel]
            values = (values - values.mean()) / values.std() * std[index, channel] + mean[index, channel]
            scaled[index, :, :, channel] = (values + added[index, channel]).clip(0, 1)
    np.testing.assert_allclose(recolored.permute(0, 2, 3, 1), to_rgb(scaled * extent + low), atol=3e-5)


def test_recoloured_copies_keep_shape_and_range():
    rng = np.random.default_rng(2)
    for shape in ((3, 8, 10), (4, 3, 8, 10)):
        rgb = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        recolored = lab_recolor(rgb, rng)
        assert recolored.shape == shape and recolored.dtype == torch.float32
        assert recolored.min() >= 0 and recolored.max() <= 1 and (recolored - rgb).abs().mean() > 0.05


def test_a_flat_image_stays_flat_but_for_the_noise():
    recolored = lab_recolor(torch.full((3, 16, 16), 0.5), np.random.default_rng(3))
    assert recolored.isfinite().all() and recolored.std((1, 2)).max() < 0.15


def test_a_grey_image_is_not_coloured_by_rounding():
    ramp = torch.linspace(0, 1, 32 * 32).view(1, 32, 32).repeat(3, 1, 1)
    nearly = (ramp + 2e-6 * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    first, second = (lab_recolor(rgb, np.random.default_rng(5)) for rgb in (ramp, nearly))
    assert (first - second).abs().max() < 0.02


def test_the_copy_is_made_of_the_augmented_crop_without_its_padding():
    image, mask = fields(0, (20, 24))
    settings = PLAIN | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "recolor": True}
    item = TrainTransform((32, 32), scale=(1, 1), **settings)(image, mask, np.random.default_rng(4))
    outside = item["labels"] == 255
    assert outside.any() and (item["recolored_pixel_values"][:, outside] == 0).all()
    inside = item["recolored_pixel_values"][:, ~outside]
    assert not torch.equal(inside, item["pixel_values"][:, ~outside])
    unit = inside * torch.tensor(IMAGENET_STD)[:, None] + torch.tensor(IMAGENET_MEAN)[:, None]
    assert unit.min() >= -1e-5 and unit.max() <= 1 + 1e-5


# --- evaluation


def test_evaluation_resizes_the_image_alone():
    image, mask = noise(9)
    mask[0, 0] = 255
    item = EvalTransform((30, 20), (0, 0, 0), (1, 1, 1))(image, mask)
    assert item.keys() == {"pixel_values", "labels"}
    np.testing.assert_array_equal(to_levels(item["pixel_values"]), image.resize((20, 30), Image.Resampling.BILINEAR))
    assert item["labels"].dtype == torch.int64
    np.testing.assert_array_equal(item["labels"], mask)


def test_evaluation_at_the_images_own_size():
    image, mask = noise(9)
    item = EvalTransform(None, IMAGENET_MEAN, IMAGENET_STD)(image, mask)
    expected = (np.asarray(image) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(item["pixel_values"].permute(1, 2, 0), expected, atol=1e-5)


def test_a_crop_of_one_pixel_may_be_flipped():
    """NumPy calls a flipped side of one pixel contiguous, with a stride that torch refuses."""
    transform = TrainTransform(crop=(1, 1), flip=1.0, scale=(1.0, 1.0), jitter=None, blur=None, max_class_share=1.0)
    item = transform(Image.new("RGB", (1, 1)), np.zeros((1, 1), np.uint8), np.random.default_rng(0))
    assert item["labels"].shape == (1, 1) and item["pixel_values"].shape == (3, 1, 1)


def test_blur_by_bands_is_that_of_the_picture():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    transform = TrainTransform((40, 50), scale=(1.0, 1.0), flip=0.0, jitter=None, blur=(0.9, 0.9), max_class_share=1.0)
    pixels = transform(noise, np.zeros((40, 50), np.uint8), np.random.default_rng(0))["pixel_values"]
    blurred = np.asarray(noise.filter(ImageFilter.GaussianBlur(0.9)), np.float32) / 255
    expected = (
        torch.from_numpy(blurred).permute(2, 0, 1) - torch.tensor(IMAGENET_MEAN)[:, None, None]
    ) / torch.tensor(IMAGENET_STD)[:, None, None]
    assert torch.equal(pixels, expected)
