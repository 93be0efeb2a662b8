"""People, trees, street furniture and facades."""

from __future__ import annotations

import math

import numpy as np

from .canvas import GLASS, LAMP, PLAIN, UP, WINDOW, Color, Pen, Point, Sprite, shaded
from .vehicles import RUBBER


def person(scale: float, rng: np.random.Generator, riding: bool = False) -> Sprite:
    """A pedestrian in some pose and clothes, or a cyclist on a bicycle."""
    coat: Color = tuple(rng.uniform(15, 215, 3) if rng.random() < 0.45 else np.full(3, rng.uniform(20, 110)))
    legs: Color = tuple(np.array((50, 55, 75)) * rng.uniform(0.4, 1.6))
    skin: Color = tuple(np.array((224, 178, 150)) * rng.uniform(0.45, 1.05))
    hair: Color = tuple(np.array((90, 65, 40)) * rng.uniform(0.2, 1.6))
    tall = rng.uniform(1.45, 1.9)
    pen = Pen(-1.0, 1.0, 0, 2.05, scale)
    turn = float(rng.choice((-1, 1)))
    if riding:
        frontal = rng.random() < 0.6
        frame: Color = tuple(rng.uniform(20, 180, 3))
        hip, lean = (0.0, 1.0), (0.0 if frontal else 0.3 * turn)
        if frontal:
            pen.box(-0.05, 0, 0.05, 0.72, RUBBER)
            pen.line([(-0.3, 1.05), (0.3, 1.05)], 0.06, (60, 60, 60))
        else:
            for x in (-0.52, 0.52):
                pen.ring(x, 0.34, 0.34, 0.06, RUBBER)
            pen.line([(-0.52, 0.34), (-0.15, 0.85), (0.4 * turn, 0.85), (0.52 * turn, 0.34), (0, 0.34)], 0.06, frame)
        for x, foot in ((-0.11, 0.28), (0.11, 0.5)):
            pen.line([(x, 1.0), (x * 1.6, 0.75), (x, foot)], 0.17, legs)
        shoulder = (lean, 1.48)
    else:
        stride = rng.uniform(0.0, 0.32)
        hip = (0.0, tall * 0.5)
        for x in (-stride, stride):
            pen.line([(math.copysign(0.08, x), hip[1]), (x * 0.6, tall * 0.26), (x, 0.05)], 0.17, legs)
            pen.line([(x, 0.05), (x + 0.12 * turn, 0.04)], 0.09, (30, 25, 22))
        lean = 0.03 * turn
        shoulder = (lean, tall * 0.82)
    broad = rng.uniform(0.19, 0.26)
    long_coat = 0.22 if not riding and rng.random() < 0.3 else 0.0
    pen.polygon(
        [
            (hip[0] - broad * 0.85, hip[1] - 0.05 - long_coat),
            (hip[0] + broad * 0.85, hip[1] - 0.05 - long_coat),
            (shoulder[0] + broad, shoulder[1] - 0.05),
            (shoulder[0] + broad * 0.5, shoulder[1] + 0.04),
            (shoulder[0] - broad * 0.5, shoulder[1] + 0.04),
            (shoulder[0] - broad, shoulder[1] - 0.05),
        ],
        coat,
    )
    for x in (-1, 1):
        hand = (lean + 0.3 * turn + 0.1 * x, 1.08) if riding else (x * rng.uniform(0.25, 0.42), hip[1] - 0.05)
        pen.line(
            [(shoulder[0] + x * broad, shoulder[1] - 0.08), (x * 0.36, hip[1] + 0.28), hand], 0.11, shaded(coat, 0.8)
        )
    head = shoulder[1] + 0.2
    pen.line([shoulder, (shoulder[0], head)], 0.1, skin)
    pen.ellipse(shoulder[0], head, 0.11, 0.14, skin)
    pen.ellipse(shoulder[0] - 0.02 * turn, head + 0.06, 0.12, 0.1, hair)
    if not riding and rng.random() < 0.3:
        pen.box(broad * turn, hip[1] - 0.15, broad * turn + 0.22, hip[1] + 0.2, tuple(rng.uniform(30, 160, 3)))
    return pen.finish(rng, 0.06)


def tree(kind: str, tall: float, scale: float, rng: np.random.Generator) -> Sprite:
    """A tree of `tall` metres: "leafy", "bare" or "conifer"."""
    spread = tall * rng.uniform(0.3, 0.5)
    pen = Pen(-spread, spread, 0, tall, scale, smooth=kind == "bare" and tall * scale < 100)
    bark: Color = tuple(np.array((82, 68, 54)) * rng.uniform(0.6, 1.3))
    green: Color = tuple((np.array((78, 104, 46)) * rng.uniform(0.6, 1.35) + rng.normal(0, 9, 3)).tolist())
    trunk = max(0.12, tall * 0.025)
    detailed = tall * scale > 40
    if kind == "conifer":
        pen.box(-trunk, 0, trunk, tall * 0.3, bark)
        levels = np.linspace(0.12, 0.97, 9 if detailed else 5)
        for low, high in zip(levels[:-1], levels[1:], strict=True):
            reach = spread * 0.8 * (1 - low) + 0.1
            droop = rng.uniform(-0.1, 0.1, 2)
            points = [
                (-reach, tall * low - droop[0]),
                (reach, tall * low - droop[1]),
                (0, tall * min(1.0, high + 0.1)),
            ]
            pen.polygon(points, shaded(green, 0.45 + 0.4 * high), UP if rng.random() < 0.6 else PLAIN)
        return pen.finish(rng, 0.2, 0.93)
    tips = _branches(
        pen, tall, spread, trunk, bark, rng, (4 if detailed else 3) if kind == "bare" else (2 if detailed else 1)
    )
    if kind == "bare":
        return pen.finish(rng, 0.1)
    middle, clumps = tall * 0.62, 26 if detailed else 8
    angles, reaches = rng.uniform(0, 2 * math.pi, clumps), np.sqrt(rng.random(clumps))
    inner = zip(0.72 * spread * reaches * np.cos(angles), middle + 0.27 * tall * reaches * np.sin(angles), strict=True)
    places = [*tips, *inner]
    sizes = spread * rng.uniform(0.14, 0.3, len(places)) * (1.0 if detailed else 1.5)
    lights = rng.normal(0.55, 0.1, len(places))
    snowy = rng.random(len(places)) < 0.5
    for i in rng.permutation(len(places)):
        x, y = places[i]
        light = lights[i] + 0.75 * min(max((y - middle) / (0.5 * tall) + 0.45, 0.0), 1.0)
        pen.ellipse(x, y, sizes[i], sizes[i] * 0.8, shaded(green, light), UP if y > middle and snowy[i] else PLAIN)
    return pen.finish(rng, 0.24, 0.9)


def _branches(
    pen: Pen, tall: float, spread: float, trunk: float, bark: Color, rng: np.random.Generator, depth: int
) -> list[Point]:
    """Draws trunk and boughs; returns the ends of the boughs."""
    fork = tall * rng.uniform(0.25, 0.38)
    pen.polygon([(-trunk, 0), (trunk, 0), (trunk * 0.6, fork), (-trunk * 0.6, fork)], bark)
    ends = [(0.0, fork, math.pi / 2, trunk * 1.3, tall * 0.27)]
    for _ in range(depth):
        grown = []
        for x, y, angle, width, length in ends:
            for bend in (-0.5, 0.0, 0.5):
                turned = angle + bend + rng.normal(0, 0.15)
                tip_x = min(max(x + length * math.cos(turned), -spread), spread)
                tip_y = min(y + length * math.sin(turned), tall)
                pen.line([(x, y), (tip_x, tip_y)], width, shaded(bark, rng.uniform(0.8, 1.2)))
                grown.append((tip_x, tip_y, turned, width * 0.55, length * 0.66))
        ends = grown
    return [(x, y) for x, y, *_ in ends]


def lamp_post(tall: float, arm: float, scale: float, rng: np.random.Generator) -> Sprite:
    """A street lamp whose arm reaches `arm` metres to the right (left where negative)."""
    pen = Pen(min(arm, 0) - 0.3, max(arm, 0) + 0.3, 0, tall + 0.2, scale)
    color: Color = tuple(np.full(3, rng.uniform(45, 140)) + rng.normal(0, 4, 3))
    pen.box(-0.11, 0, 0.11, 1.2, shaded(color, 0.8))
    pen.line([(0, 0), (0, tall - 0.4), (arm * 0.3, tall), (arm, tall)], 0.14, color)
    pen.box(min(arm, arm * 0.6), tall - 0.1, max(arm, arm * 0.6), tall + 0.06, (236, 226, 196), LAMP)
    return pen.finish(rng)


def sign(scale: float, rng: np.random.Generator) -> Sprite:
    """A traffic sign on its post: a disc, a triangle or a board."""
    pen = Pen(-0.6, 0.6, 0, 3.2, scale)
    post: Color = tuple(np.full(3, rng.uniform(70, 150)))
    pen.box(-0.06, 0, 0.06, 2.6, post)
    paint: Color = [(200, 30, 35), (30, 70, 165), (240, 240, 240), (30, 120, 70)][rng.integers(4)]
    inner: Color = (242, 242, 238) if paint[0] < 230 else (40, 40, 40)
    shape = rng.integers(3)
    if shape == 0:
        pen.ellipse(0, 2.6, 0.42, 0.42, paint)
        pen.ellipse(0, 2.6, 0.28, 0.28, inner)
    elif shape == 1:
        pen.polygon([(-0.5, 2.2), (0.5, 2.2), (0, 3.1)], paint)
        pen.polygon([(-0.3, 2.32), (0.3, 2.32), (0, 2.85)], inner)
    else:
        pen.box(-0.5, 1.9, 0.5, 2.9, paint)
        pen.box(-0.35, 2.3, 0.35, 2.6, inner)
    return pen.finish(rng)


def traffic_light(scale: float, rng: np.random.Generator) -> Sprite:
    """Traffic lights on a post, one of the three lit."""
    pen = Pen(-0.35, 0.35, 0, 3.6, scale)
    pen.box(-0.08, 0, 0.08, 2.6, (70, 72, 74))
    pen.box(-0.28, 2.4, 0.28, 3.5, (24, 25, 26))
    lit = rng.integers(3)
    for place, color in enumerate(((235, 45, 40), (240, 170, 40), (50, 215, 120))):
        on = place == lit
        pen.ellipse(0, 3.28 - 0.34 * place, 0.13, 0.13, color if on else shaded(color, 0.25), LAMP if on else PLAIN)
    return pen.finish(rng)


def fence(length: float, tall: float, scale: float, rng: np.random.Generator) -> Sprite:
    """A railing, a plank fence or a low wall, to be stretched over a line."""
    pen = Pen(0, length, 0, tall, scale, smooth=False)
    kind = rng.integers(3)
    if kind == 0:
        color: Color = tuple(np.full(3, rng.uniform(30, 190)))
        for x in np.arange(0, length, 0.22):
            pen.box(x, 0, x + 0.1, tall, color)
        for y in (0.1, tall - 0.1):
            pen.box(0, y - 0.05, length, y + 0.05, shaded(color, 0.9))
    else:
        color = tuple(np.array(((126, 96, 66), (150, 110, 92))[kind - 1]) * rng.uniform(0.6, 1.2))
        pen.box(0, 0, length, tall, color)
        pen.box(0, tall - 0.08, length, tall, shaded(color, 1.2), UP)
        for x in np.arange(0, length, 0.4):
            pen.box(x, 0, x + 0.04, tall - 0.08, shaded(color, 0.75))
    return pen.finish(rng, 0.08)


def facade(
    width: float,
    storeys: int,
    wall: Color,
    roof: Color,
    flat: bool,
    shop: bool,
    scale: float,
    rng: np.random.Generator,
) -> Sprite:
    """The front of a house: windows on every storey, perhaps a shop below, a sloping or a flat roof."""
    storey = rng.uniform(2.7, 3.4)
    eaves = storeys * storey + 0.4
    top = eaves + (0.5 if flat else rng.uniform(1.6, 3.2))
    pen = Pen(0, width, 0, top + 1.0, scale, smooth=False)
    pen.box(0, 0, width, eaves, wall)
    for y in np.arange(0.0, eaves, 0.6 if rng.random() < 0.5 else eaves):
        pen.box(0, y, width, y + 0.07, shaded(wall, 0.88))
    if flat:
        pen.box(0, eaves, width, top, shaded(wall, rng.uniform(0.7, 1.2)))
        pen.box(0, top - 0.15, width, top, shaded(wall, 0.6), UP)
    else:
        slope = rng.uniform(0, 0.6)
        pen.polygon([(0, eaves), (width, eaves), (width - slope, top), (slope, top)], roof, UP)
        for x in rng.uniform(0.6, max(0.7, width - 0.6), rng.integers(0, 3)):
            pen.box(x - 0.4, top - 0.6, x + 0.4, top + 0.9, shaded(wall, 0.7))
        pen.box(0, eaves - 0.1, width, eaves + 0.1, shaded(wall, 0.55))
    frame = shaded(wall, 1.3) if rng.random() < 0.5 else (225.0, 225.0, 218.0)
    spacing, share, rise = rng.uniform(1.7, 3.4), rng.uniform(0.4, 0.72), rng.uniform(1.2, 1.9)
    panes = max(1, round(width / spacing))
    step = width / panes
    glass = rng.uniform(0.5, 1.9, (storeys, panes))
    lit = rng.random((storeys, panes)) < 0.4
    for floor in range(1 if shop else 0, storeys):
        low = floor * storey + 0.9
        if scale < 3:  # too far away to tell windows apart
            pen.box(0.5, low, width - 0.5, low + rise, shaded(wall, 0.6), WINDOW if lit[floor, 0] else PLAIN)
            continue
        for pane in range(panes):
            x0, x1 = step * (pane + 0.5 - share / 2), step * (pane + 0.5 + share / 2)
            if scale > 5:
                pen.box(x0 - 0.1, low - 0.12, x1 + 0.1, low + rise + 0.1, frame)
            surface = WINDOW if lit[floor, pane] else PLAIN
            pen.box(x0, low, x1, low + rise, shaded(GLASS, glass[floor, pane]), surface)
            if scale > 5:
                pen.box((x0 + x1) / 2 - 0.04, low, (x0 + x1) / 2 + 0.04, low + rise, frame)
    if shop:
        paint: Color = tuple(rng.uniform(20, 225, 3))
        pen.box(0, 0, width, storey, shaded(paint, 0.8))
        for pane in range(max(1, round(width / 3))):
            x0 = 3 * pane + 0.25
            pen.box(x0, 0.4, min(x0 + 2.5, width - 0.2), storey - 0.8, shaded(GLASS, rng.uniform(0.6, 1.6)), WINDOW)
        pen.box(0, storey - 0.7, width, storey - 0.05, paint)
        pen.box(width * 0.2, storey - 0.5, width * 0.8, storey - 0.25, shaded(paint, 0.3 if sum(paint) > 380 else 2.5))
    else:
        door = rng.uniform(0.5, max(0.6, width - 1.5))
        pen.box(door, 0, door + 1.0, 2.2, tuple(rng.uniform(20, 160, 3)))
    return pen.finish(rng, 0.07)
