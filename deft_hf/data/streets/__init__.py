"""A small world of drawn streets under several looks: the data that deft_hf carries with it.

A street is laid out in metres from its seed and seen from a car: a curving road with markings, kerbs, pavements and a
side street; houses, trees and gardens along it; vehicles, people, lamps, signs and fences on it. `clear` is made to be
trained on; the other looks show the same streets in another light or weather, and `other_town` is another place.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.labels import LabelSpace
from deft_hf.utils.errors import UserError

from . import looks
from .layout import Street
from .places import HOME, OTHER, Place

STREETS = LabelSpace(
    names=("drivable", "non-drivable", "living things", "vehicles", "roadside objects", "far objects", "sky"),
    palette=(
        (128, 64, 128),
        (244, 35, 232),
        (220, 20, 60),
        (0, 0, 142),
        (190, 153, 153),
        (70, 70, 70),
        (70, 130, 180),
    ),
)

_LOOKS: dict[str, tuple[Place, looks.Look]] = {
    "clear": (HOME, looks.clear),
    "dusk": (HOME, looks.dusk),
    "night": (HOME, looks.night),
    "fog": (HOME, looks.fog),
    "rain": (HOME, looks.rain),
    "snow": (HOME, looks.snow),
    "other_town": (OTHER, looks.low_sun),
}
LOOKS: tuple[str, ...] = tuple(_LOOKS)


def draw_street(look: str, seed: int, size: tuple[int, int] = (192, 256)) -> tuple[np.ndarray, np.ndarray]:
    """Draws one street; the same arguments give the same pixels, whatever the global random state.

    Args:
        look (`str`):
            One of [`LOOKS`]. All looks but `other_town` show the same place, so their masks are equal.
        seed (`int`):
            Which street, at least 0.
        size (`tuple[int, int]`, *optional*, defaults to `(192, 256)`):
            Height and width in pixels.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The picture, uint8 (h, w, 3), and its mask of train ids of [`STREETS`], uint8
        (h, w), none of them ignored.

    Raises:
        UserError: If there is no such look.
    """
    if look not in _LOOKS:
        raise UserError(f"There is no street look {look!r}; the looks are {', '.join(LOOKS)}.")
    place, light = _LOOKS[look]
    canvas = Street(place, np.random.default_rng((seed, 0)), size).draw()
    rng = np.random.default_rng((seed, 1 + LOOKS.index(look)))
    return looks.photograph(light(canvas, rng), rng), canvas.label


def street_rows(look: str, count: int, seed: int, size: tuple[int, int]) -> dict[str, list[Any]]:
    """Columns `id`, `image` and `mask` of some streets, drawn; see `Domain.from_streets`."""
    columns: dict[str, list[Any]] = {"id": [f"{index:06d}" for index in range(count)], "image": [], "mask": []}
    for index in range(count):
        image_seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
        for column, pixels in zip(("image", "mask"), draw_street(look, image_seed, size), strict=True):
            columns[column].append({"path": None, "bytes": _png(pixels)})
    return columns


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
