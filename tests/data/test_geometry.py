"""Turns, flips and rotations: image and mask move alike, and nothing is made up."""

import math

import numpy as np
import pytest
from PIL import Image

from deft_hf.data.geometry import Pose, Window
from deft_hf.data.transforms import TrainTransform

PLAIN = {
    "scale": (1, 1), "flip": 0.0, "jitter": None, "blur": None, "mean": (0, 0, 0), "std": (1, 1, 1),
    "max_class_share": 1.0,
}  # fmt: skip


def labelled(size, seed=0):
    """An image whose red is its mask, so that each pixel tells where its label went."""
    mask = np.random.default_rng(seed).integers(1, 200, size, np.uint8)
    return Image.fromarray(np.stack([mask, mask // 2, 255 - mask], -1)), mask


def crop_of(image, mask, seed, crop, **settings):
    item = TrainTransform(crop, **(PLAIN | settings))(image, mask, np.random.default_rng(seed))
    return (item["pixel_values"] * 255).round().numpy().astype(int), item["labels"].numpy()


def dihedral(mask):
    """The eight ways in which a square can lie."""
    turned = [np.rot90(mask, quarter) for quarter in range(4)]
    return [*turned, *(array[:, ::-1] for array in turned)]


def test_turns_and_flips_move_every_pixel_with_its_label():
    image, mask = labelled((12, 12))
    seen = set()
    for seed in range(80):
        pixels, labels = crop_of(image, mask, seed, (12, 12), flip=0.5, vertical_flip=0.5, turns=True)
        np.testing.assert_array_equal(pixels[0], labels)
        np.testing.assert_array_equal(pixels[2], 255 - labels)
        seen.add(next(index for index, lying in enumerate(dihedral(mask)) if (lying == labels).all()))
    assert seen == set(range(8))


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({"vertical_flip": 1.0}, lambda mask: mask[::-1]),
        ({"vertical_flip": 1.0, "flip": 1.0}, lambda mask: mask[::-1, ::-1]),
        ({"vertical_flip": 0.0}, lambda mask: mask),
    ],
)
def test_flips_that_are_certain(settings, kept):
    image, mask = labelled((9, 14))
    pixels, labels = crop_of(image, mask, 0, (9, 14), **settings)
    np.testing.assert_array_equal(labels, kept(mask))
    np.testing.assert_array_equal(pixels[0], labels)


def test_a_turned_crop_keeps_its_shape_and_shows_a_place_of_the_image():
    image, mask = labelled((40, 56))
    shapes = set()
    for seed in range(40):
        pixels, labels = crop_of(image, mask, seed, (10, 30), turns=True)
        assert labels.shape == (10, 30) and labels.max() < 200
        np.testing.assert_array_equal(pixels[0], labels)
        for quarters in range(4):
            upright = np.rot90(labels, -quarters)
            height, width = upright.shape
            views = np.lib.stride_tricks.sliding_window_view(mask, (height, width))
            if (views == upright).all((2, 3)).any():
                shapes.add(quarters)
    assert shapes == set(range(4))


def test_a_turned_small_image_lies_in_the_crop_and_is_ignored_around():
    image, mask = labelled((6, 10))
    for seed in range(20):
        pixels, labels = crop_of(image, mask, seed, (12, 16), turns=True)
        valid = labels != 255
        rows, columns = np.nonzero(valid)
        inside = labels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert any(inside.shape == lying.shape and (inside == lying).all() for lying in dihedral(mask)[:4])
        np.testing.assert_array_equal(pixels[0][valid], labels[valid])
        assert (pixels[:, ~valid] == 0).all()


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("crop", [(9, 9), (8, 14)])
def test_a_rotation_by_a_quarter_is_a_turn(crop, quarters):
    image, mask = labelled((24, 30))
    turned, rotated = Pose(crop, quarters=quarters), Pose(crop, angle=90.0 * quarters)
    height, width = turned.upright
    labels = turned.labels(mask[8 : 8 + height, 7 : 7 + width], None)
    grown = [extent - side for extent, side in zip(rotated.extent, turned.upright, strict=True)]
    top, left = 8 - grown[0] // 2, 7 - grown[1] // 2
    right, bottom = left + rotated.extent[1], top + rotated.extent[0]
    window = Window((left, top, right, bottom), rotated.extent, (0, 0))
    np.testing.assert_array_equal(rotated.labels(window.cut(mask), window), labels)
    pixels = np.asarray(rotated.image(window.cut_image(image), window, (0, 0, 0)))
    np.testing.assert_allclose(pixels[..., 0].astype(int), labels, atol=1)


@pytest.mark.parametrize("angle", [17.0, -70.0, 155.0])
def test_a_rotated_crop_follows_the_formula(angle):
    """Each pixel is what lies at the place that a turn of the crop about its middle brings there."""
    image, mask = labelled((60, 64))
    pose = Pose((14, 22), angle=angle)
    height, width = pose.extent
    window = Window((9, 5, 9 + width, 5 + height), (height, width), (0, 0))
    labels = pose.labels(window.cut(mask), window)
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    rows, columns = np.mgrid[:14, :22] + 0.5
    down, right = rows - 7, columns - 11
    # Counterclockwise, in an image whose rows run down.
    x = 9 + width / 2 + cosine * right - sine * down
    y = 5 + height / 2 + sine * right + cosine * down
    expected = mask[np.floor(y).astype(int), np.floor(x).astype(int)]
    assert (labels == expected).mean() > 0.99, "but for rounding at the edges of pixels"

    smooth = np.stack(np.mgrid[:60, :64] * 3, -1).astype(np.uint8)
    ramp = Image.fromarray(np.concatenate([smooth, smooth[..., :1]], -1))
    pixels = np.asarray(pose.image(window.cut_image(ramp), window, (0, 0, 0))).astype(float)
    assert abs(pixels[..., 0] - 3 * (y - 0.5)).max() <= 1 and abs(pixels[..., 1] - 3 * (x - 0.5)).max() <= 1


def test_corners_beyond_the_image_are_ignored_and_have_the_mean_colour():
    mask = np.full((40, 40), 3, np.uint8)
    image = Image.new("RGB", (40, 40), (250, 250, 250))
    shares = []
    for seed in range(20):
        settings = {"rotation": 45.0, "mean": (0.4, 0.4, 0.4)}
        transform = TrainTransform((40, 40), **(PLAIN | settings))
        item = transform(image, mask, np.random.default_rng(seed))
        ignored = item["labels"].numpy() == 255
        assert set(np.unique(item["labels"])) <= {3, 255}
        assert not ignored[15:25, 15:25].any(), "the middle stays in the picture"
        values = item["pixel_values"][0].numpy()
        padded = np.pad(ignored, 1, mode="edge")
        around = np.stack([padded[i : i + 40, j : j + 40] for i in range(3) for j in range(3)])
        np.testing.assert_allclose(values[around.all(0)], 0, atol=1e-2)  # bilinear along the edge
        np.testing.assert_allclose(values[1:-1, 1:-1][~around.any(0)[1:-1, 1:-1]], 250 / 255 - 0.4, atol=1e-2)
        shares.append(ignored.mean())
    assert max(shares) > 0.15 and min(shares) < 0.05


def test_where_there_is_room_a_rotated_crop_has_no_empty_corner():
    image, mask = labelled((80, 90))
    for seed in range(40):
        pixels, labels = crop_of(image, mask, seed, (30, 40), rotation=180.0)
        assert labels.shape == (30, 40) and labels.max() < 200 and pixels.shape == (3, 30, 40)


def test_angles_reach_as_far_as_asked():
    """A bright line through the middle tells the angle."""
    pixels = np.zeros((61, 61, 3), np.uint8)
    pixels[30] = 255
    image, mask = Image.fromarray(pixels), np.zeros((61, 61), np.uint8)
    angles = []
    for seed in range(60):
        found, _ = crop_of(image, mask, seed, (31, 31), rotation=20.0)
        rows, columns = np.nonzero(found[0] > 100)
        if len(rows) > 10:
            angles.append(math.degrees(math.atan(np.polyfit(columns, rows, 1)[0])))
    assert len(angles) > 20 and -21 < min(angles) < -12 and 12 < max(angles) < 21


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (200, 200)])
@pytest.mark.parametrize("crop", [(40, 4), (16, 16)])
def test_images_of_any_shape_give_an_item(size, crop):
    image, mask = labelled(size)
    for seed in range(25):
        settings = {"rotation": 180.0, "turns": True, "vertical_flip": 0.5, "scale": (0.1, 2.0)}
        _, labels = crop_of(image, mask, seed, crop, **settings)
        assert labels.shape == crop
