"""Where a training crop lies on its image, and how both are cut, turned and flipped alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX

_QUARTERS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


@dataclass(frozen=True)
class Aim:
    """What a crop is to show.

    Args:
        point (`tuple[int, int]`, *optional*):
            Row and column in pixels of the image that it has to cover.
        label (`int`, *optional*):
            Train id of a class: the crop is drawn again, up to 10 times in all, until it has enough of it.
        pixels (`int`, *optional*, defaults to `0`):
            Enough are more than so many pixels of the crop.
    """

    point: tuple[int, int] | None = None
    label: int | None = None
    pixels: int = 0


@dataclass(frozen=True)
class Pose:
    """How a crop stands on its image.

    A rotated crop is cut from a larger upright window, so that its corners hold what the image has there. Where the
    image has nothing, the labels are 255 and the pixels one colour, as beside an image that is smaller than the crop:
    what is ignored should not look like content, which mirrored pixels would.

    Args:
        crop (`tuple[int, int]`):
            (height, width) of what comes out, in pixels.
        quarters (`int`, *optional*, defaults to `0`):
            How often it is turned by 90 degrees, counterclockwise, from 0 to 3. This moves pixels and changes none.
        angle (`float`, *optional*, defaults to `0.0`):
            Degrees by which it is rotated before that, counterclockwise; bilinear in the image, nearest in the mask.
    """

    crop: tuple[int, int]
    quarters: int = 0
    angle: float = 0.0

    @property
    def upright(self) -> tuple[int, int]:
        """The (height, width) of the crop before its quarter turns."""
        height, width = self.crop
        return (width, height) if self.quarters % 2 else (height, width)

    @property
    def extent(self) -> tuple[int, int]:
        """The (height, width) of the upright window that holds the crop."""
        if not self.angle:
            return self.upright
        height, width = self.upright
        sine, cosine = map(abs, self._direction())
        return _grown(height, height * cosine + width * sine), _grown(width, height * sine + width * cosine)

    def area(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of the crop that a `window` fills, or that a rotated one is put together for."""
        corner, size = ((0, 0), self.upright) if self.angle else (window.offset, window.size)
        rows, columns = (slice(start, start + length) for start, length in zip(corner, size, strict=True))
        return (columns, rows) if self.quarters % 2 else (rows, columns)

    def labels(self, cut: np.ndarray, window: Window) -> np.ndarray:
        """The crop of a mask whose `window` was cut."""
        if self.angle:
            cut = np.array(self._rotate(Image.fromarray(cut), window, IGNORE_INDEX, Image.Resampling.NEAREST))
        return np.rot90(cut, self.quarters) if self.quarters else cut

    def image(self, cut: Image.Image, window: Window, fill: tuple[int, int, int]) -> Image.Image:
        """The crop of an image whose `window` was cut; `fill` is the colour of where there is nothing."""
        if self.angle:
            cut = self._rotate(cut, window, fill, Image.Resampling.BILINEAR)
        turn = _QUARTERS[self.quarters]
        return cut if turn is None else cut.transpose(turn)

    def _rotate(
        self, cut: Image.Image, window: Window, fill: int | tuple[int, int, int], resampling: Image.Resampling
    ) -> Image.Image:
        canvas = Image.new(cut.mode, self.extent[::-1], fill)
        canvas.paste(cut, window.offset[::-1])
        # Pillow asks where each pixel comes from. The middle of the crop is the middle of the canvas.
        sine, cosine = self._direction()
        (height, width), (below, right) = self.upright, self.extent
        left = right / 2 - cosine * width / 2 + sine * height / 2
        top = below / 2 - sine * width / 2 - cosine * height / 2
        matrix = (cosine, -sine, left, sine, cosine, top)
        return canvas.transform((width, height), Image.Transform.AFFINE, matrix, resampling, fillcolor=fill)

    def _direction(self) -> tuple[float, float]:
        return math.sin(math.radians(self.angle)), math.cos(math.radians(self.angle))


@dataclass(frozen=True)
class Window:
    """A part of a source image and where it lands in a crop; sizes and offsets are (height, width).

    Args:
        box (`tuple[float, float, float, float]`):
            Left, top, right and bottom in pixels of the source.
        size (`tuple[int, int]`):
            What the box is resized to, in pixels.
        offset (`tuple[int, int]`):
            Where it starts in the crop, or in the extent of a rotated one.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    offset: tuple[int, int]

    @classmethod
    def draw(
        cls,
        source: Sequence[int],
        scaled: Sequence[int],
        pose: Pose,
        rng: np.random.Generator,
        point: tuple[int, int] | None = None,
    ) -> Window:
        """The part of an image of size `source`, as if resized to `scaled`, that a crop at a random place shows.

        With a `point`, row and column in `source`, the place is random among those that show it: it is drawn around
        the point and then moved into the image, where it lies beyond an edge.
        """
        starts, ends, sizes, offsets = [], [], [], []
        shown = point or (None, None)
        sides = zip(source, scaled, pose.upright, pose.extent, shown, strict=True)
        for length, resized, target, extent, place in sides:
            # The whole extent lies in the image where there is room for it, else as much of the crop as there is.
            inner = extent if extent <= max(resized, target) else target
            # Where the image is smaller than the crop, its start is not positive and the image floats in the crop.
            low, high = min(0, resized - inner), max(0, resized - inner)
            if place is None or resized <= target:
                inside = int(rng.integers(low, high + 1))
            else:
                at = int((place + 0.5) * resized / length)
                inside = min(max(int(rng.integers(at - target + 1, at + 1)) - (inner - target) // 2, low), high)
            start = inside - (extent - inner) // 2
            first, last = max(start, 0), min(start + extent, resized)
            starts.append(first * length / resized)
            ends.append(last * length / resized)
            sizes.append(last - first)
            offsets.append(first - start)
        box = (starts[1], starts[0], ends[1], ends[0])
        return cls(box, size=(sizes[0], sizes[1]), offset=(offsets[0], offsets[1]))

    def cut(self, mask: np.ndarray) -> np.ndarray:
        """The window of a mask (H, W), resized to the window's size by nearest neighbour."""
        left, top, right, bottom = self.box
        rows = _nearest(top, bottom, self.size[0])
        columns = _nearest(left, right, self.size[1])
        return mask.take(rows, 0).take(columns, 1)  # in a quarter of the time of mask[rows][:, columns]

    def cut_image(self, image: Image.Image) -> Image.Image:
        """The window of an image, resized to the window's size; bilinear, antialiased."""
        return image.resize(self.size[::-1], Image.Resampling.BILINEAR, box=self.box)


def _grown(side: int, needed: float) -> int:
    # By whole pixels on either side, so that the middle stays where it is; one of them is for the bilinear look-up.
    return side + 2 * (math.ceil((needed - side) / 2 - 1e-6) + 1)


def _nearest(start: float, end: float, count: int) -> np.ndarray:
    # The source pixel under the centre of each target pixel, which is where bilinear resizing looks too.
    return np.floor(start + (np.arange(count) + 0.5) * ((end - start) / count)).astype(np.intp)
