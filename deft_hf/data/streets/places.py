"""The two towns that the streets are in."""

from __future__ import annotations

from dataclasses import dataclass

from .canvas import Color


@dataclass(frozen=True)
class Place:
    """How a town is built and what drives there; lengths in metres, pairs are ranges."""

    walls: tuple[Color, ...]
    roofs: tuple[Color, ...]
    flat_roofs: float
    storeys: tuple[int, int]
    fronts: tuple[float, float]
    built_up: float
    trees: tuple[str, ...]
    road: tuple[float, float]
    pavement: tuple[float, float]
    drives_on: int
    asphalt: Color
    paving: Color
    marking: Color
    vehicles: tuple[str, ...]
    paints: tuple[Color, ...]
    parked: float


HOME = Place(
    walls=(
        (150, 98, 74),
        (172, 122, 92),
        (198, 186, 160),
        (214, 208, 196),
        (128, 112, 98),
        (176, 160, 130),
        (112, 78, 64),
    ),
    roofs=((96, 70, 60), (82, 82, 88), (120, 82, 64), (66, 62, 64)),
    flat_roofs=0.25,
    storeys=(2, 5),
    fronts=(5.0, 14.0),
    built_up=0.68,
    trees=("leafy", "leafy", "bare"),
    road=(3.0, 4.8),
    pavement=(1.6, 4.0),
    drives_on=-1,
    asphalt=(104, 104, 108),
    paving=(146, 140, 134),
    marking=(224, 224, 220),
    vehicles=("car", "car", "estate", "estate", "suv", "van", "truck", "bus"),
    paints=(
        (168, 172, 178),
        (40, 42, 48),
        (232, 232, 230),
        (150, 30, 34),
        (34, 58, 122),
        (92, 100, 110),
        (60, 84, 70),
    ),
    parked=0.55,
)
OTHER = Place(
    walls=((226, 172, 120), (236, 212, 160), (214, 120, 92), (240, 232, 220), (150, 186, 190), (206, 196, 214)),
    roofs=((190, 92, 60), (202, 112, 72)),
    flat_roofs=0.8,
    storeys=(3, 9),
    fronts=(9.0, 24.0),
    built_up=0.72,
    trees=("conifer", "conifer", "leafy"),
    road=(5.0, 8.5),
    pavement=(2.0, 6.0),
    drives_on=1,
    asphalt=(126, 122, 118),
    paving=(176, 130, 106),
    marking=(232, 198, 74),
    vehicles=("car", "suv", "suv", "van", "truck", "truck", "bus"),
    paints=((236, 190, 40), (240, 240, 236), (220, 220, 214), (206, 66, 40), (40, 130, 140), (30, 30, 34)),
    parked=0.4,
)
