"""Cars, vans, trucks and buses, drawn in perspective."""

from __future__ import annotations

import math

import numpy as np

from .canvas import GLASS, LAMP, PLAIN, UP, WINDOW, Color, Pen, Point, Sprite, shaded

RUBBER: Color = (24, 24, 26)

# kind -> width, height, length in metres; heights of sill and belt; where the cabin starts and ends at the belt and at
# the roof, as shares of the length seen from behind. A belt of None is a box without a cabin.
VEHICLES = {
    "car": (1.75, 1.45, 4.2, 0.25, 0.88, (0.06, 0.72), (0.2, 0.55)),
    "estate": (1.8, 1.55, 4.5, 0.25, 0.92, (0.0, 0.74), (0.05, 0.58)),
    "suv": (1.9, 1.8, 4.6, 0.35, 1.05, (0.0, 0.76), (0.04, 0.62)),
    "van": (2.0, 2.3, 5.2, 0.3, 1.2, (0.0, 0.9), (0.0, 0.76)),
    "truck": (2.4, 3.4, 8.0, 0.5, None, None, None),
    "bus": (2.5, 3.0, 11.0, 0.35, None, None, None),
}


def vehicle(
    kind: str,
    color: Color,
    scale: float,
    camera_x: float,
    eye: float,
    z: float,
    towards: bool,
    rng: np.random.Generator,
) -> Sprite:
    """A vehicle seen along its length, its near end at depth `z`.

    Args:
        kind (`str`):
            One of `VEHICLES`.
        color (`Color`):
            Its paint.
        scale (`float`):
            Pixels a metre at depth `z`.
        camera_x (`float`):
            Where the camera is, in metres to the right of the vehicle's middle; decides which side shows.
        eye (`float`):
            Height of the camera in metres.
        z (`float`):
            Distance of its near end in metres.
        towards (`bool`):
            Whether it comes towards the camera (headlights) instead of driving away (tail lights).
        rng (`np.random.Generator`):
            Draws its details.
    """
    width, height, length, sill, belt, at_belt, at_roof = VEHICLES[kind]
    half = width / 2

    def at(x: float, y: float, depth: float) -> Point:
        shrink = z / (z + depth)
        return camera_x + (x - camera_x) * shrink, eye + (y - eye) * shrink

    corners = [at(x, y, d) for x in (-half, half) for y in (0, height) for d in (0, length)]
    xs, ys = [c[0] for c in corners], [c[1] for c in corners]
    pen = Pen(min(xs) - 0.1, max(xs) + 0.1, min(0, *ys), max(ys) + 0.1, scale)
    side = 0 if abs(camera_x) <= half else math.copysign(half, camera_x)
    side_gain = rng.uniform(0.6, 0.95)

    def flank(low: float, high: float, near: float, far: float, paint: Color, surface: int = PLAIN) -> None:
        pen.polygon(
            [at(side, low, near), at(side, low, far), at(side, high, far), at(side, high, near)], paint, surface
        )

    def face(left: float, low: float, right: float, high: float, paint: Color, surface: int = PLAIN) -> None:
        corners = [at(left, low, 0), at(right, low, 0), at(right, high, 0), at(left, high, 0)]
        pen.polygon(corners, paint, surface)

    body_top = height if belt is None else belt
    pen.polygon([at(-half, 0.05, 0), at(half, 0.05, 0), at(half, sill, length), at(-half, sill, length)], RUBBER)
    for x in (-half + 0.18, half - 0.18):
        face(x - 0.12, 0, x + 0.12, sill + 0.15, RUBBER)
    if body_top < eye:
        lid = [at(-half, body_top, 0), at(half, body_top, 0), at(half, body_top, length), at(-half, body_top, length)]
        pen.polygon(lid, shaded(color, 1.2), UP)
    if side:
        flank(sill, body_top, 0, length, shaded(color, side_gain))
        flank(sill, sill + 0.12, 0, length, shaded(color, 0.4))
        radius = 0.17 * width + 0.03
        for place in (0.17, 0.8):
            turns = np.linspace(0, 2 * math.pi, 13)
            for share, paint in ((1.0, RUBBER), (0.55, (130, 132, 136))):
                rim = [
                    (radius + share * radius * math.sin(t), place * length + share * radius * math.cos(t))
                    for t in turns
                ]
                pen.polygon([at(side, y, d) for y, d in rim], paint)
    face(-half, sill, half, body_top, color)
    face(-half, sill, half, sill + 0.18, shaded(color, 0.55))

    if belt is None or at_belt is None or at_roof is None:
        if kind == "bus":
            face(-half + 0.15, 1.3, half - 0.15, 2.5, GLASS, WINDOW)
            face(-0.7, 2.6, 0.7, 2.85, (20, 20, 20) if towards else shaded(color, 0.8), LAMP)
            if side:
                flank(1.2, 2.4, 0.3, length - 0.3, GLASS, WINDOW)
                for step in np.arange(1.5, length, 1.5):
                    flank(1.2, 2.4, step, step + 0.12, shaded(color, 0.7))
        elif towards:
            face(-half + 0.15, 1.5, half - 0.15, 2.4, GLASS)
        else:
            face(-half + 0.1, 0.9, half - 0.1, height - 0.1, shaded(color, 0.9))
            face(-0.03, 0.9, 0.03, height - 0.1, shaded(color, 0.5))
    else:
        (belt0, belt1), (roof0, roof1) = at_belt, at_roof
        if towards:
            belt0, belt1, roof0, roof1 = 1 - belt1, 1 - belt0, 1 - roof1, 1 - roof0
        wide, narrow = half - 0.06, half * 0.8
        mark = math.copysign(1.0, camera_x)
        if side:
            pen.polygon(
                [
                    at(mark * wide, belt, belt0 * length),
                    at(mark * wide, belt, belt1 * length),
                    at(mark * narrow, height, roof1 * length),
                    at(mark * narrow, height, roof0 * length),
                ],
                shaded(color, side_gain * 0.9),
            )
            for start, end in ((0.08, 0.46), (0.54, 0.92)):
                low = [at(mark * wide, belt + 0.03, (belt0 + s * (belt1 - belt0)) * length) for s in (start, end)]
                high = [at(mark * narrow, height - 0.08, (roof0 + s * (roof1 - roof0)) * length) for s in (end, start)]
                pen.polygon(low + high, GLASS)
        near = [at(-wide, belt, belt0 * length), at(wide, belt, belt0 * length)]
        roof = [at(narrow, height, roof0 * length), at(-narrow, height, roof0 * length)]
        pen.polygon(near + roof, shaded(color, 0.95))
        inset = [(x * 0.88, y - 0.04) for x, y in roof]
        pen.polygon(
            [(near[0][0] * 0.93, near[0][1]), (near[1][0] * 0.93, near[1][1]), *inset],
            shaded(GLASS, rng.uniform(0.7, 1.8)),
        )
        back = [at(-narrow, height, roof1 * length), at(narrow, height, roof1 * length)]
        pen.polygon(roof + back, shaded(color, 1.25), UP)
        pen.line(roof, 0.07, shaded(color, 1.05))

    lamp = (252, 250, 235) if towards else (205, 30, 28)
    level = sill + 0.45 * (min(body_top, 1.2) - sill)
    for x in (-half + 0.2, half - 0.2):
        face(x - 0.14, level, x + 0.14, level + 0.2, lamp, LAMP)
    if towards:
        face(-half * 0.5, sill + 0.15, half * 0.5, level + 0.1, (40, 42, 44))
    face(-0.26, sill + 0.08, 0.26, sill + 0.2, (235, 235, 225) if towards else (228, 205, 60))
    return pen.finish(rng, 0.03)


def crossing_car(color: Color, scale: float, rng: np.random.Generator) -> Sprite:
    """A car seen from its side."""
    pen = Pen(-2.2, 2.2, 0, 1.5, scale)
    turn = float(rng.choice((-1, 1)))

    def shape(points: list[Point], paint: Color, surface: int = PLAIN) -> None:
        pen.polygon([(turn * x, y) for x, y in points], paint, surface)

    shape([(-2.1, 0.25), (2.1, 0.25), (2.1, 0.7), (1.95, 0.82), (1.0, 0.92), (-2.0, 0.95), (-2.1, 0.8)], color)
    shape([(-1.9, 0.9), (1.05, 0.9), (0.35, 1.42), (-1.4, 1.45)], shaded(color, 0.95), UP)
    shape([(-1.6, 0.93), (-0.45, 0.93), (-0.45, 1.34), (-1.25, 1.36)], GLASS)
    shape([(-0.35, 0.93), (0.82, 0.93), (0.28, 1.33), (-0.35, 1.34)], GLASS)
    shape([(-2.1, 0.25), (2.1, 0.25), (2.1, 0.38), (-2.1, 0.38)], shaded(color, 0.5))
    shape([(1.95, 0.6), (2.1, 0.6), (2.1, 0.75), (1.95, 0.75)], (252, 250, 235), LAMP)
    shape([(-2.1, 0.65), (-1.98, 0.65), (-1.98, 0.85), (-2.1, 0.85)], (205, 30, 28), LAMP)
    for x in (-1.3, 1.3):
        pen.ellipse(x, 0.33, 0.33, 0.33, RUBBER)
        pen.ellipse(x, 0.33, 0.18, 0.18, (135, 137, 140))
    return pen.finish(rng, 0.03)
