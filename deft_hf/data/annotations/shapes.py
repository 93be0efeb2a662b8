"""Shapes as masks: which pixels a shape covers.

A pixel belongs to a shape if its centre lies inside; on an edge it does if the shape lies right of it or below. The
rectangle (10, 10)-(30, 20) is `mask[10:20, 10:30]`. Polygons are filled by the even-odd rule, so that the rings of
holes cut out what they enclose. What tools rasterise themselves may differ along edges; measured on random stars of
10, 40 and 400 pixels across:

* pycocotools works on a grid of fifths of a pixel. 5.5, 1.3 and .1 % of a polygon's pixels differ from those whose
  centre is inside, as many too many as too few (.5, .04 and .002 %). COCO's own masks are made by it and so are CVAT's
  mask exports, so their polygons go through it here too, and are equal to `COCO.annToMask` in every bit.
* Pillow's `ImageDraw.polygon` and OpenCV's `fillPoly` draw the outline as well, half a pixel too wide all around: 41,
  8.4 and .8 % too many pixels. labelme's and Supervisely's exports to masks and Ultralytics' training do so; here
  their polygons are what was drawn, no wider.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.look import MOST_PIXELS, opened
from deft_hf.utils.errors import UnreadableFile, UserError

Area = tuple[int, int, np.ndarray]
"""Top row, left column and bool (H, W) of a part of the image; nothing outside of it is covered."""


def drawn(cell: str, image_size: tuple[int, int] | None) -> tuple[Image.Image, str]:
    """The mask of an image, drawn.

    Args:
        cell (`str`):
            What `Export.cell` gives.
        image_size (`tuple[int, int]` or `None`):
            (width, height) of the image, for exports that do not state it; `None` if it cannot be read.

    Returns:
        `tuple[Image, str]`: The mask, which holds the place of a class in `Export.names`, and what messages call it.

    Raises:
        UserError: A shape holds what cannot be drawn.
    """
    item = json.loads(cell)
    if item["size"] is not None:
        height, width = item["size"]
    elif image_size is not None:
        width, height = image_size
    else:
        raise UnreadableFile(f"{item['source']}: cannot be drawn without its image, whose size it has")
    if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
        raise UserError(f"{item['source']}: says that its image is {width} x {height} (width x height)")
    largest = max((index for index, _, _ in item["shapes"]), default=0)
    ids = np.zeros((height, width), np.uint8 if largest < 256 else np.int32)
    for index, kind, data in item["shapes"]:
        try:
            top, left, area = KINDS[kind](data, height, width)
            ids[top : top + area.shape[0], left : left + area.shape[1]][area] = index
        except UserError:
            raise
        except Exception as error:  # zlib, Pillow and pycocotools raise what damaged data makes them stumble over.
            raise UserError(f"{item['source']}: holds a shape that cannot be drawn ({kind}: {error})") from error
    return Image.fromarray(ids), item["source"]


def rings_of(data: Sequence[Sequence[float]], height: int, width: int) -> Area:
    """Rings `[x, y, x, y, ...]` in pixels, the first around the area, others around its holes."""
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in data]
    left, top, right, bottom = _box(np.concatenate(rings), height, width)
    toggles = np.zeros((bottom - top, right - left + 1), bool)
    for ring in rings:
        x, y = ring.T
        dx, dy = np.roll(x, -1) - x, np.roll(y, -1) - y
        # Rows whose centre line the edge crosses, the lower end not counted: at a corner one of two edges does.
        first, last = (np.ceil(end - 0.5).clip(top, bottom).astype(int) for end in np.sort([y, y + dy], axis=0))
        counts = last - first
        edges = np.repeat(np.arange(len(x)), counts)
        rows = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        crossings = x[edges] + (rows + 0.5 - y[edges]) * dx[edges] / dy[edges]
        columns = np.ceil(crossings - 0.5).clip(left, right).astype(int)
        np.logical_xor.at(toggles, (rows - top, columns - left), True)
    return top, left, np.logical_xor.accumulate(toggles, axis=1)[:, :-1]


def _relative_rings(data: Sequence[Sequence[float]], height: int, width: int) -> Area:
    return rings_of([(np.reshape(ring, (-1, 2)) * (width, height)).ravel().tolist() for ring in data], height, width)


def _coco(segmentation: Any, height: int, width: int) -> Area:
    from pycocotools import mask

    if isinstance(segmentation, list):
        # In a window of whole pixels around the polygons, which changes no bit and saves time on large images.
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
        left, top, right, bottom = _box(points, height, width)
        shifted = [(np.reshape(polygon, (-1, 2)) - (left, top)).ravel().tolist() for polygon in segmentation]
        if left == right or top == bottom:
            return top, left, np.zeros((0, 0), bool)
        runs = mask.merge(mask.frPyObjects(shifted, bottom - top, right - left))
        return top, left, mask.decode(runs).astype(bool)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run lengths for {segmentation['size']} in an image of {[height, width]}")
    if isinstance(segmentation["counts"], list):
        _check_counts(segmentation["counts"], height * width)
        segmentation = mask.frPyObjects(segmentation, height, width)
    return 0, 0, mask.decode(segmentation).astype(bool)


def _ellipse(data: Sequence[float], height: int, width: int) -> Area:
    x, y, radius_x, radius_y, degrees = data
    reach = max(radius_x, radius_y)
    left, top, right, bottom = _box(np.array([[x - reach, y - reach], [x + reach, y + reach]]), height, width)
    dx, dy = np.arange(left, right) + 0.5 - x, (np.arange(top, bottom) + 0.5 - y)[:, None]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = (dx * cosine + dy * sine) / radius_x, (dy * cosine - dx * sine) / radius_y
    return top, left, along**2 + across**2 < 1


def _runs(data: dict[str, Any], height: int, width: int) -> Area:
    """Run lengths row by row in a box, pixels outside of the shape first."""
    counts, box = data["counts"], (data["height"], data["width"])
    _check_counts(counts, box[0] * box[1])
    flags = np.arange(len(counts)) % 2 == 1
    return _placed(np.repeat(flags, counts).reshape(box), data["top"], data["left"], height, width)


def _picture(data: dict[str, Any], height: int, width: int) -> Area:
    """A PNG in base64, compressed again by zlib or not, of which every pixel but 0 (transparent ones) counts."""
    content = base64.b64decode(data["png"])
    if data["zlib"]:
        content = zlib.decompressobj().decompress(content, MOST_PIXELS)
    picture = opened(content)
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    pixels = np.asarray(picture)
    if "A" in picture.getbands():
        pixels = pixels[..., -1]
    area = np.atleast_3d(pixels).any(axis=2)
    return _placed(np.asarray(area), data["top"], data["left"], height, width)


def _brush(data: str, height: int, width: int) -> Area:
    """Label Studio's run lengths of RGBA, in base64: a pixel counts that is covered by half or more.

    The packing is that of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack: 32 bits for the number of
    values, 5 for the bits of a value, 4 times 4 for the bits of a count, all but the first less 1. Then, a run after
    the other: a bit whether one value is repeated, 2 bits for which of the four sizes the count has, the count less 1,
    and the value or values.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data), np.uint8))
    digits = (bits + ord("0")).tobytes()
    place = 0

    def number(size: int) -> int:
        nonlocal place
        place += size
        return int(digits[place - size : place], 2)

    count, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    if count != height * width * 4 or word != 8:
        raise ValueError(f"{count} values of {word} bits, expected {height * width * 4} of 8")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        is_run, size = number(1), sizes[number(2)]
        length = number(size) + 1
        if is_run:
            values[done : done + length] = number(word)
        else:
            packed = np.packbits(bits[place : place + length * word])
            values[done : done + length] = packed
            place += length * word
        done += length
    return 0, 0, values.reshape(height, width, 4)[..., 3] >= 128


def _placed(area: np.ndarray, top: int, left: int, height: int, width: int) -> Area:
    """The part of an area that is inside the image."""
    inside = area[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    return max(top, 0), max(left, 0), inside


def _box(points: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the whole pixels around some points, inside the image."""
    if not np.isfinite(points).all():
        raise ValueError("coordinates that are no numbers")
    low, high = np.floor(points.min(0)), np.ceil(points.max(0)) + 1
    (left, top), (right, bottom) = (edge.clip(0, (width, height)).astype(int).tolist() for edge in (low, high))
    return left, top, right, bottom


def _check_counts(counts: Sequence[int], pixels: int) -> None:
    if min(counts, default=0) < 0 or sum(counts) != pixels:
        raise ValueError(f"run lengths of {sum(counts)} pixels in an area of {pixels}")


KINDS: dict[str, Callable[[Any, int, int], Area]] = {
    "brush": _brush,
    "coco": _coco,
    "ellipse": _ellipse,
    "picture": _picture,
    "relative rings": _relative_rings,
    "rings": rings_of,
    "runs": _runs,
}
"""What a kind of shape is drawn by, from its data, height and width of the image."""
