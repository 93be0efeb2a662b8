"""What streets are drawn on: a pen that draws in metres, a camera, and a picture with depth, labels and surfaces.

What is drawn is in `vehicles` and `scenery`, where it stands in `layout`, and in which light in `looks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

# What a pixel belongs to: the train ids of `STREETS`.
ROAD, PAVEMENT, LIVING, VEHICLE, FURNITURE, FAR, SKY = range(7)

# What it is made of, as far as light and weather care: snow lies on what faces UP, a LAMP glows in its own colour, a
# WINDOW may be lit from inside.
PLAIN, UP, LAMP, WINDOW = range(4)

Color = tuple[float, float, float]
Point = tuple[float, float]

GLASS: Color = (52, 62, 74)


def shaded(color: Color, gain: float) -> Color:
    """The colour under `gain` times the light."""
    return (color[0] * gain, color[1] * gain, color[2] * gain)


def rgb(color: Color) -> np.ndarray:
    """The colour as float32 (3,)."""
    return np.array(color, np.float32)


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """Smooth noise of several octaves, float32 (256, 256), zero mean and unit deviation, the same in every process."""
    rng = np.random.default_rng(0)
    tile = np.zeros((256, 256), np.float32)
    for cells, weight in ((4, 1.0), (16, 0.7), (64, 0.6), (256, 0.6)):
        octave = rng.normal(size=(cells, cells)).astype(np.float32)
        tile += weight * np.asarray(Image.fromarray(octave).resize((256, 256), Image.Resampling.BICUBIC))
    return (tile - tile.mean()) / tile.std()


def noise_patch(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A (height, width) piece of [`noise_tile`], from a random place, repeated where it is too small."""
    top, left = rng.integers(256, size=2)
    repeats = (top + height + 255) // 256, (left + width + 255) // 256
    tile = noise_tile() if repeats == (1, 1) else np.tile(noise_tile(), repeats)
    return tile[top : top + height, left : left + width]


def cloudy_noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise without fine grain, float32 (height, width), about four blobs high and wide: clouds, puddles, drifts."""
    coarse = Image.fromarray(noise_patch(24, 24, rng)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(coarse) + 0.12 * noise_patch(height, width, rng)


@lru_cache(maxsize=16)
def _noise_level(density: float) -> float:
    return float(np.quantile(noise_tile(), density))


@dataclass(frozen=True)
class Sprite:
    """A drawn object: RGBA uint8 (h, w, 4), surface uint8 (h, w), and its window in metres (y up, 0 is the ground)."""

    rgba: np.ndarray
    surface: np.ndarray
    left: float
    right: float
    bottom: float
    top: float


class Pen:
    """Draws in metres, `scale` pixels a metre; `smooth` draws twice as large and shrinks, for round edges."""

    def __init__(self, left: float, right: float, bottom: float, top: float, scale: float, smooth: bool = True):
        self.window = (left, right, bottom, top)
        self.oversampling = 2 if smooth else 1
        self.scale = scale * self.oversampling
        self.size = (
            max(1, round((right - left) * scale)) * self.oversampling,
            max(1, round((top - bottom) * scale)) * self.oversampling,
        )
        self.image = Image.new("RGBA", self.size)
        self.surface = Image.new("L", self.size)
        self._draws = ImageDraw.Draw(self.image), ImageDraw.Draw(self.surface)

    def _pixel(self, point: Point) -> Point:
        return (point[0] - self.window[0]) * self.scale, (self.window[3] - point[1]) * self.scale

    def polygon(self, points: list[Point], color: Color, surface: int = PLAIN) -> None:
        """Fill a polygon."""
        pixels = [self._pixel(point) for point in points]
        self._draws[0].polygon(pixels, fill=_rgba(color))
        self._draws[1].polygon(pixels, fill=surface)

    def box(self, left: float, bottom: float, right: float, top: float, color: Color, surface: int = PLAIN) -> None:
        """Fill a rectangle."""
        (x0, y0), (x1, y1) = self._pixel((left, top)), self._pixel((right, bottom))
        corners = [x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)]  # PIL's last row and column are inside
        self._draws[0].rectangle(corners, fill=_rgba(color))
        self._draws[1].rectangle(corners, fill=surface)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, surface: int = PLAIN) -> None:
        """Fill an ellipse around (x, y)."""
        corners = [self._pixel((x - rx, y + ry)), self._pixel((x + rx, y - ry))]
        self._draws[0].ellipse(corners, fill=_rgba(color))
        self._draws[1].ellipse(corners, fill=surface)

    def ring(self, x: float, y: float, radius: float, width: float, color: Color) -> None:
        """Draw a circle around (x, y), `width` wide."""
        corners = [self._pixel((x - radius, y + radius)), self._pixel((x + radius, y - radius))]
        self._draws[0].ellipse(corners, outline=_rgba(color), width=max(1, round(width * self.scale)))

    def line(self, points: list[Point], width: float, color: Color) -> None:
        """Draw a line through the points."""
        pixels = [self._pixel(point) for point in points]
        self._draws[0].line(pixels, fill=_rgba(color), width=max(1, round(width * self.scale)), joint="curve")

    def finish(self, rng: np.random.Generator, grain: float = 0.04, density: float = 1.0) -> Sprite:
        """The sprite, with `grain` of surface noise; `density` below 1 leaves holes, as between leaves."""
        rgba = np.array(self.image.reduce(2) if self.oversampling == 2 else self.image)
        height, width = rgba.shape[:2]
        noise = noise_patch(height, width, rng)
        if density < 1:
            rgba[..., 3] = np.where(noise < _noise_level(density), rgba[..., 3], rgba[..., 3] // 8)
        gain = (128 * np.clip(1 + grain * noise, 0, 2)).astype(np.uint16)  # integers are several times as fast here
        rgba[..., :3] = np.minimum((rgba[..., :3] * gain[..., None]) >> 7, 255)
        surface = np.asarray(self.surface)[:: self.oversampling, :: self.oversampling]
        return Sprite(rgba, surface, *self.window)


def _rgba(color: Color) -> tuple[int, int, int, int]:
    red, green, blue = color
    return int(red), int(green), int(blue), 255  # PIL clips them to 0..255


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera `eye` metres above the ground; x to the right, y up, z ahead."""

    focal: float
    center: float
    horizon: float
    eye: float

    def project(self, x: float, y: float, z: float) -> Point:
        """The pixel, as (column, row), in which the point (x, y, z) is seen."""
        return self.center + self.focal * x / z, self.horizon - self.focal * (y - self.eye) / z


class Canvas:
    """A picture: color float32 (h, w, 3) in 0..255; label uint8, depth in metres float32, surface uint8: (h, w)."""

    def __init__(self, height: int, width: int, camera: Camera):
        self.camera = camera
        self.color = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), 1e4, np.float32)
        self.surface = np.zeros((height, width), np.uint8)

    def sees(self, left: float, right: float, z: float) -> bool:
        """Whether something between `left` and `right` metres at depth `z` is in the picture."""
        return self.camera.project(right, 0, z)[0] > 0 and self.camera.project(left, 0, z)[0] < self.size[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.label.shape
        return height, width

    def _blend(
        self, rgba: np.ndarray, surface: np.ndarray, left: int, top: int, label: int, depth: np.ndarray
    ) -> None:
        height, width = self.size
        y0, y1 = max(0, top), min(height, top + rgba.shape[0])
        x0, x1 = max(0, left), min(width, left + rgba.shape[1])
        if y0 >= y1 or x0 >= x1:
            return
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        window = np.s_[y0:y1, x0:x1]
        rgba, surface, depth = rgba[inside], surface[inside], depth[x0 - left : x1 - left]
        # A long wall is near and far at once, so the order of drawing alone cannot tell what hides it. The slack lets
        # things stand on ground that is a rounded pixel nearer than they are.
        alpha = np.where(depth < 1.05 * self.depth[window] + 0.1, rgba[..., 3], 0)
        self.color[window] += (alpha[..., None] / np.float32(255)) * (rgba[..., :3] - self.color[window])
        solid = alpha > 127
        self.label[window][solid] = label
        self.surface[window][solid] = surface[solid]
        np.copyto(self.depth[window], depth, where=solid)

    def stand(self, sprite: Sprite, x: float, z: float, label: int) -> None:
        """Stands a sprite on the ground at (x, z), facing the camera."""
        left, top = self.camera.project(x + sprite.left, sprite.top, z)
        depth = np.full(sprite.rgba.shape[1], z, np.float32)
        self._blend(sprite.rgba, sprite.surface, round(left), round(top), label, depth)

    def wall(self, sprite: Sprite, start: Point, end: Point, label: int, light: float = 1.0) -> None:
        """Stretches a sprite over the upright wall above the ground line from `start` to `end`, both (x, z)."""
        height, width = self.size
        corners = [self.camera.project(x, y, z) for x, z in (start, end) for y in (sprite.top, sprite.bottom)]
        left, top = (int(np.floor(min(c[i] for c in corners))) for i in (0, 1))
        right, bottom = (int(np.ceil(max(c[i] for c in corners))) for i in (0, 1))
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if right - left < 1 or bottom - top < 1:
            return
        rows, columns = sprite.rgba.shape[:2]
        texels = [(0, 0), (0, rows), (columns, 0), (columns, rows)]
        coefficients = _perspective([(u - left, v - top) for u, v in corners], texels)
        if coefficients is None:
            return
        size = (right - left, bottom - top)
        warp = Image.Transform.PERSPECTIVE
        rgba = np.array(Image.fromarray(sprite.rgba).transform(size, warp, coefficients, Image.Resampling.BILINEAR))
        surface = np.asarray(
            Image.fromarray(sprite.surface).transform(size, warp, coefficients, Image.Resampling.NEAREST)
        )
        rgba[..., :3] = np.minimum(rgba[..., :3] * np.float32(light), 255)
        # Along a straight wall 1/z is linear in the column.
        edge = [corners[0][0], corners[2][0]]
        along = (np.arange(left, right) + 0.5 - edge[0]) / (edge[1] - edge[0])
        inverse = 1 / start[1] + np.clip(along, 0, 1) * (1 / end[1] - 1 / start[1])
        self._blend(rgba, surface, left, top, label, (1 / inverse).astype(np.float32))

    def shadow(self, x: float, z: float, width: float, length: float, strength: float = 0.55) -> None:
        """Darkens the ground under a thing that stands at (x, z)."""
        height, columns = self.size
        u, v = self.camera.project(x, 0, z + length / 2)
        ru = self.camera.focal * width / 2 / z
        rv = max(1.0, (self.camera.project(x, 0, z)[1] - self.camera.project(x, 0, z + length)[1]) * 0.6)
        y0, y1 = max(0, int(v - 2 * rv)), min(height, int(v + 2 * rv) + 1)
        x0, x1 = max(0, int(u - 2 * ru)), min(columns, int(u + 2 * ru) + 1)
        if y0 >= y1 or x0 >= x1:
            return
        rows, cols = np.ogrid[y0:y1, x0:x1]
        distance = ((rows - v) / rv) ** 2 + ((cols - u) / ru) ** 2
        self.color[y0:y1, x0:x1] *= (1 - strength * np.exp(-(distance**2)))[..., None].astype(np.float32)


def _perspective(source: list[Point], target: list[Point]) -> tuple[float, ...] | None:
    """PIL's coefficients from picture pixels `source` to texture pixels `target`; None for a wall seen edge-on."""
    rows, values = [], []
    for (u, v), (s, t) in zip(source, target, strict=True):
        rows += [(u, v, 1, 0, 0, 0, -s * u, -s * v), (0, 0, 0, u, v, 1, -t * u, -t * v)]
        values += [s, t]
    try:
        return tuple(np.linalg.solve(np.array(rows, float), np.array(values, float)))
    except np.linalg.LinAlgError:
        return None
