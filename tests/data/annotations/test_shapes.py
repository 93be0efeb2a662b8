"""Which pixels a shape covers, against a test of every pixel's centre by itself."""

import json

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from deft_hf.data.annotations.shapes import KINDS, drawn
from deft_hf.utils.errors import UnreadableFile, UserError

HEIGHT, WIDTH = 40, 50


def area(kind, data, height=HEIGHT, width=WIDTH):
    top, left, part = KINDS[kind](data, height, width)
    mask = np.zeros((height, width), bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def centres_inside(rings):
    """Even-odd over all rings, centre by centre; corners are random, so that no centre lies on an edge."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    points = np.stack([x.ravel(), y.ravel()], 1)
    inside = np.zeros(len(points), bool)
    for ring in rings:
        corners = np.reshape(ring, (-1, 2))
        inside ^= Outline([*corners, corners[0]], closed=True).contains_points(points)
    return inside.reshape(HEIGHT, WIDTH)


def star(rng, corners, reach, centre):
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = reach * rng.uniform(0.3, 1, corners)
    return (np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + centre).ravel().tolist()


@pytest.mark.parametrize("kind", ["rings", "coco"])
def test_a_rectangle_on_whole_pixels_is_a_slice(kind):
    mask = area(kind, [[10, 10, 30, 10, 30, 20, 10, 20]])
    assert mask[10:20, 10:30].all() and mask.sum() == 200
    assert area(kind, [[-5, -5, 60, -5, 60, 60, -5, 60]]).all()  # beyond every edge
    assert not area(kind, [[60, 60, 70, 60, 70, 70]]).any()


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_is_the_pixels_whose_centre_is_inside(seed):
    rng = np.random.default_rng(seed)
    ring = star(rng, rng.integers(3, 30), rng.uniform(2, 35), rng.uniform(0, 45, 2))
    np.testing.assert_array_equal(area("rings", [ring]), centres_inside([ring]))


def test_a_hole_is_cut_out_and_polygons_share_no_pixel():
    rng = np.random.default_rng(1)
    rings = [star(rng, 20, 19, (25, 20)), star(rng, 12, 5, (25, 20))]
    np.testing.assert_array_equal(area("rings", rings), centres_inside(rings))
    left, right = (
        [5, 5, 20.5, 5, 20.5, 30, 5, 30],
        [20.5, 5, 40, 5, 40, 30, 20.5, 30],
    )  # their edge runs through centres
    assert not (area("rings", [left]) & area("rings", [right])).any()
    assert (area("rings", [left]) | area("rings", [right])).sum() == 35 * 25


def test_more_than_256_classes_are_told_apart():
    shapes = [[index, "rings", [[index, 0, index + 1, 0, index + 1, 1, index, 1]]] for index in (3, 255, 300)]
    mask, name = drawn(json.dumps({"source": "x.json", "size": [1, 301], "shapes": shapes}), None)
    assert np.asarray(mask)[0, [3, 255, 300, 4]].tolist() == [3, 255, 300, 0] and name == "x.json"
    with pytest.raises(UnreadableFile, match="x.json: cannot be drawn without its image, whose size it has"):
        drawn(json.dumps({"source": "x.json", "size": None, "shapes": []}), None)


@pytest.mark.parametrize("size", [[0, 5], [-3, 5], [10**6, 10**6], [10**30, 1]])
def test_a_size_that_no_image_has_is_refused(size):
    with pytest.raises(UserError, match="x.json: says that its image is"):
        drawn(json.dumps({"source": "x.json", "size": size, "shapes": []}), (5, 5))


def test_an_ellipse_is_turned():
    mask = area("ellipse", [25, 20, 15, 5, 90])
    assert mask[6:34, 24].all() and not mask[20, 31:].any() and not mask[:5].any()
    np.testing.assert_array_equal(mask, area("ellipse", [25, 20, 5, 15, 0]))
