"""Light and weather: each look turns a finished [`Canvas`] into the colours of a photograph.

A look changes colours only, never what stands where; it may read depth (fog), labels (sky, road) and surfaces (snow).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from .canvas import LAMP, PAVEMENT, ROAD, SKY, UP, WINDOW, Canvas, Color, cloudy_noise, noise_patch, rgb

Look = Callable[[Canvas, np.random.Generator], np.ndarray]


def _blurred(layer: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of colours (h, w, 3) in [0, 255]."""
    image = Image.fromarray(np.clip(layer, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _gray(color: np.ndarray, share: float) -> np.ndarray:
    """Colours with `share` of their saturation taken away."""
    return color + share * (color @ np.array((0.299, 0.587, 0.114), np.float32)[:, None] - color)


def _sky(
    canvas: Canvas, zenith: Color, horizon: Color, clouds: Color, cover: float, rng: np.random.Generator
) -> np.ndarray:
    """A sky (h, w, 3): a gradient with `cover` (0..1) of clouds, which flatten towards the horizon."""
    height, width = canvas.size
    rows = np.arange(height, dtype=np.float32)
    up = np.clip((canvas.camera.horizon - rows) / canvas.camera.horizon, 0.02, 1)[:, None, None]
    color = rgb(horizon) + (rgb(zenith) - rgb(horizon)) * up**0.7
    noise = cloudy_noise(2 * height, width, rng)
    flattened = np.clip(2 * height - 1 - height / (up[:, 0, 0] + 0.5), 0, None).astype(int)
    amount = np.clip((noise[flattened] + 3 * cover - 1.5) * 0.6, 0, 1)[..., None]
    return color + amount * (rgb(clouds) - color)


def _with_sky(canvas: Canvas, color: np.ndarray, sky: np.ndarray) -> np.ndarray:
    # What covers less than half of a pixel is lost in the sky, in the picture as in the mask.
    return np.where((canvas.label == SKY)[..., None], sky, color)


def _haze(canvas: Canvas, color: np.ndarray, air: Color, sight: float, sky: float = 1.0) -> np.ndarray:
    """Koschmieder's law: exp(-depth / sight) of the light arrives, the rest is air. `sky`: how much sky goes."""
    veil = np.where(canvas.label == SKY, sky, 1 - np.exp(-canvas.depth / sight))[..., None].astype(np.float32)
    return color + veil * (rgb(air) - color)


def _glow(canvas: Canvas, color: np.ndarray, lit: float, radius: float) -> np.ndarray:
    """Adds lamps, windows lit from inside and the halo around both; radius in pixels of an image of 192 rows."""
    lights = np.where((canvas.surface == LAMP)[..., None], canvas.color * 1.25, 0)
    lights = lights + np.where((canvas.surface == WINDOW)[..., None], rgb((236, 190, 112)) * lit, 0)
    scale = canvas.size[0] / 192
    halo = 1.5 * _blurred(lights, radius * scale) + 2.0 * _blurred(lights, 3 * radius * scale)
    return np.maximum(color, lights) + 0.55 * halo


def clear(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Daylight, from sunny to lightly clouded."""
    blue = rng.uniform(0.0, 1.0)
    zenith = tuple(rgb((206, 216, 226)) + blue * (rgb((82, 138, 214)) - rgb((206, 216, 226))))
    sky = _sky(canvas, zenith, (226, 234, 241), (246, 247, 249), rng.uniform(0.0, 0.8), rng)
    warmth = rng.normal(0, 0.03)
    light = rng.uniform(0.8, 1.15) * rgb((1 + warmth, 1, 1 - warmth))
    return _with_sky(canvas, _haze(canvas, canvas.color * light, (205, 214, 224), 900), sky)


def dusk(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Just after sunset: a sky still bright near the horizon, everything else dark and bluish, first lamps."""
    sky = _sky(canvas, (58, 66, 106), (232, 150, 104), (104, 82, 104), rng.uniform(0.2, 0.6), rng)
    color = _gray(canvas.color, 0.35) * rgb((0.42, 0.42, 0.54)) * rng.uniform(0.8, 1.15)
    color = _with_sky(canvas, _haze(canvas, color, (150, 116, 112), 220), sky * rng.uniform(0.75, 1.0))
    return _glow(canvas, color, 0.75, 2)


def night(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Night: lamps, windows, and the beam of the own headlights on what is near."""
    sky = _sky(canvas, (8, 9, 17), (38, 33, 34), (30, 28, 30), rng.uniform(0.3, 0.7), rng)
    height, width = canvas.size
    rows, columns = np.ogrid[:height, :width]
    aside = (columns - canvas.camera.center) / (0.45 * width)
    beam = np.exp(-(aside**2) - ((rows - canvas.camera.horizon - 0.18 * height) / (0.3 * height)) ** 2)
    light = 0.2 + 0.5 * (beam * np.exp(-canvas.depth / 30))[..., None]
    color = _gray(canvas.color, 0.45) * light.astype(np.float32) * rgb((1.08, 1.0, 0.86))
    color = _glow(canvas, _with_sky(canvas, color, sky), 0.85, 3)
    return color + rng.normal(0, 5, color.shape).astype(np.float32)


def fog(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Fog that swallows what is far."""
    air = tuple(rgb((198, 203, 207)) * rng.uniform(0.85, 1.08))
    return _haze(canvas, _gray(canvas.color, 0.25) * 0.85, air, rng.uniform(14, 38))


def rain(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """A wet day: grey light, a road that mirrors what stands on it, streaks of rain."""
    height, width = canvas.size
    sky = _sky(canvas, (128, 134, 142), (176, 180, 184), (104, 110, 118), 0.55, rng)
    color = _gray(canvas.color, 0.4) * rgb((0.64, 0.67, 0.72)) * rng.uniform(0.85, 1.15)
    color = _with_sky(canvas, _haze(canvas, color, (160, 166, 172), 110), sky)
    mirrored = np.clip(2 * round(canvas.camera.horizon) - np.arange(height), 0, height - 1)
    mirror = np.asarray(
        Image.fromarray(np.clip(color[mirrored], 0, 255).astype(np.uint8)).resize((width, height // 8 + 1))
    )
    mirror = np.asarray(Image.fromarray(mirror).resize((width, height)), np.float32)
    puddles = np.clip(0.42 + 0.3 * cloudy_noise(height, width, rng), 0.12, 0.9)
    wet = np.where(canvas.label == ROAD, puddles, np.where(canvas.label == PAVEMENT, 0.6 * puddles, 0))
    wet = wet * ((canvas.surface == UP) & (np.arange(height)[:, None] > canvas.camera.horizon))
    color = color + wet[..., None].astype(np.float32) * (0.95 * np.asarray(mirror, np.float32) - color)
    color = _glow(canvas, color, 0.25, 1.5)
    streaks = np.zeros((height, width), np.float32)
    for x, y in rng.integers(0, (width, height), (height * width // 450, 2)):
        length = int(rng.integers(3, 10) * height / 192) + 1
        streaks[y : y + length, x] = rng.uniform(12, 42)
    return color + streaks[..., None]


def snow(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Snow on the ground, on roofs and on crowns, under a white sky, and flakes in the air."""
    height, width = canvas.size
    sky = _sky(canvas, (196, 201, 208), (222, 225, 229), (210, 213, 218), 0.5, rng)
    white = rgb((228, 232, 240)) * rng.uniform(0.9, 1.04)
    noise = noise_patch(height, width, rng)
    cover = np.where(canvas.surface == UP, np.clip(0.88 + 0.08 * noise, 0, 1), np.clip(0.1 * noise - 0.06, 0, 0.4))
    slush = np.clip(rng.uniform(0.3, 0.75) + 0.3 * cloudy_noise(height, width, rng) + 0.06 * noise, 0, 1)
    cover = np.where((canvas.label == ROAD) & (canvas.surface == UP), slush, cover)[..., None].astype(np.float32)
    bright = (0.6 + 0.4 * canvas.color.mean(2, keepdims=True) / 120).clip(0.72, 1.04)
    color = _gray(canvas.color, 0.2) * 0.85
    color = color + cover * (white * bright - color)
    color = _haze(canvas, _with_sky(canvas, color, sky), (214, 217, 222), 160, sky=0.1)
    flakes = np.zeros((height, width, 3), np.float32)
    places = rng.integers(0, (height, width), (height * width // 160, 2))
    flakes[places[:, 0], places[:, 1]] = 255
    fine, coarse = flakes.copy(), flakes
    coarse[places[: len(places) * 4 // 5, 0], places[: len(places) * 4 // 5, 1]] = 0
    shape = 3.2 * _blurred(fine, 0.5) + 9 * _blurred(coarse, 1.1 * height / 192)
    return color + np.clip(shape / 255, 0, 0.9) * (246 - color)


def low_sun(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The southern town's own daylight: a warm, hard light under a deep, clean sky."""
    sky = _sky(canvas, (64, 118, 190), (236, 222, 192), (250, 240, 224), rng.uniform(0.0, 0.35), rng)
    color = _haze(canvas, canvas.color * rgb((1.1, 1.02, 0.88)) * rng.uniform(0.9, 1.15), (226, 208, 176), 420)
    return _with_sky(canvas, color, sky)


def photograph(color: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What every camera adds: a trace of blur, vignetting and sensor noise; returns uint8 (h, w, 3)."""
    height, width = color.shape[:2]
    soft = _blurred(color, rng.uniform(0.25, 0.6) * height / 192)
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    soft = soft * (1 - rng.uniform(0, 0.12) * (rows**2 + columns**2))[..., None].astype(np.float32)
    grain = rng.normal(0, rng.uniform(1, 4), (height, width, 1)).astype(np.float32)
    return np.clip(soft + grain, 0, 255).astype(np.uint8)
