"""How a street is laid out, from a place and a random generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from . import scenery
from .canvas import (
    FAR,
    FURNITURE,
    LIVING,
    PAVEMENT,
    ROAD,
    SKY,
    UP,
    VEHICLE,
    Camera,
    Canvas,
    Sprite,
    noise_tile,
    rgb,
    shaded,
)
from .places import Place
from .vehicles import VEHICLES, crossing_car, vehicle

Things = list[tuple[float, Callable[[], None]]]  # depth, and what draws the thing
Length = TypeVar("Length", float, np.ndarray)


class Ground:
    """Where the pixels from row `first` down lie: `x` metres right of the middle of the road, `z` metres ahead."""

    def __init__(self, canvas: Canvas, middle: Callable[[np.ndarray], np.ndarray]):
        camera, (height, width) = canvas.camera, canvas.size
        self.first = int(np.ceil(camera.horizon + 0.5))
        z = camera.focal * camera.eye / (np.arange(self.first, height) + 0.5 - camera.horizon)[:, None]
        x = (np.arange(width) + 0.5 - camera.center) * z / camera.focal - middle(z)
        self.x, self.z = x.astype(np.float32), np.broadcast_to(z, x.shape).astype(np.float32)
        self.pixel = self.z / camera.focal  # how much ground a pixel is wide
        self.near = np.minimum(1, 12 / self.z)

    def stripe(self, distance: np.ndarray, half_width: float) -> np.ndarray:
        """How much of a pixel is within `half_width` metres of a line that is `distance` away."""
        return np.clip((half_width - np.abs(distance)) / self.pixel + 0.5, 0, 1)

    def grain(self, cells: float) -> np.ndarray:
        """Noise that lies on the ground, `cells` to a metre, fading where a pixel holds many of them."""
        return self.near * noise_tile()[(self.z * cells * 0.5).astype(int) % 256, (self.x * cells).astype(int) % 256]


class Street:
    """The plan of one street: everything random about its geometry is drawn from one generator, in one order."""

    def __init__(self, place: Place, rng: np.random.Generator, size: tuple[int, int]):
        height, width = size
        self.place, self.rng = place, rng
        focal = height * 4 / 3 * rng.uniform(0.78, 1.1)
        center, horizon = width * (0.5 + rng.normal(0, 0.07)), height * rng.uniform(0.42, 0.54)
        self.canvas = Canvas(height, width, Camera(focal, center, horizon, rng.uniform(1.25, 1.75)))
        self.half = rng.uniform(*place.road)
        self.pavement = rng.uniform(*place.pavement, 2)  # left and right
        self.lane = place.drives_on * self.half * rng.uniform(0.35, 0.6)  # the camera's own place on the road
        self.bend = rng.normal(0, 0.0012)
        start = rng.uniform(12, 45)
        self.side_street = (start, start + rng.uniform(6, 10)) if rng.random() < 0.6 else (999.0, 999.0)
        self.sun = int(rng.choice((-1, 1)))

    def middle(self, z: Length) -> Length:
        """Where the middle of the road is, in metres to the right of the camera's axis."""
        return self.bend * z**2 - self.lane

    def edge(self, side: int, beyond: float = 0.0) -> float:
        """Distance of the outer edge of a pavement from the middle of the road, plus `beyond`."""
        return self.half + self.pavement[(side + 1) // 2] + beyond

    def draw(self) -> Canvas:
        """The picture of the street in plain light."""
        self._ground()
        self._skyline()
        things = [*self._houses(), *self._traffic(), *self._people(), *self._furniture()]
        for _, thing in sorted(things, key=lambda pair: -pair[0]):  # far ones first: near ones cover them
            thing()
        return self.canvas

    def _ground(self) -> None:
        canvas, rng = self.canvas, self.rng
        canvas.label[:] = SKY
        ground = Ground(canvas, self.middle)
        x, z = ground.x, ground.z
        side = (x > 0).astype(int)
        crossing = (z > self.side_street[0]) & (z < self.side_street[1])
        road = (np.abs(x) < self.half) | crossing
        walk = ~road & (np.abs(x) < self.half + self.pavement[side])

        asphalt = rgb(self.place.asphalt) * rng.uniform(0.75, 1.2)
        drivable = self._road(ground, asphalt, crossing)
        paved = self._paving(ground, asphalt)
        lawn = rng.random(2) < 0.6
        soil = np.where(lawn[side][..., None], rgb((92, 118, 58)), rgb((142, 130, 116)))
        soil = soil * (rng.uniform(0.7, 1.2) + 0.16 * ground.grain(10) + 0.1 * ground.grain(2))[..., None]
        color = np.where(road[..., None], drivable, np.where(walk[..., None], paved, soil))
        # One side lies in the ragged shadow of its houses.
        reach = self.half * rng.uniform(-0.6, 1.0) + ground.grain(1) * 0.2
        reach += np.floor(z / rng.uniform(6, 11)) * 2.4 % 1.7
        shade = np.clip((x * -self.sun - reach) * 2 + 0.5, 0, 1) * (rng.random() < 0.6) * ~crossing

        canvas.color[ground.first :] = color * (1 - 0.42 * shade)[..., None]
        canvas.label[ground.first :] = np.where(road, ROAD, np.where(walk, PAVEMENT, FAR))
        canvas.depth[ground.first :] = z
        canvas.surface[ground.first :] = UP

    def _road(self, ground: Ground, asphalt: np.ndarray, crossing: np.ndarray) -> np.ndarray:
        """Asphalt with wheel tracks and markings, which end at the side street."""
        x, z, rng = ground.x, ground.z, self.rng
        wear = ground.grain(12) * 0.06 + ground.grain(1.5) * 0.07
        tracks = 0.07 * ground.stripe(np.abs(np.abs(x) - self.half / 2) - 0.8, 0.35)
        paint = np.zeros_like(x)
        style = rng.integers(3)
        dashes = (z + rng.uniform(0, 6)) % 6 < rng.uniform(1.5, 4)
        if style < 2:
            paint = np.maximum(paint, ground.stripe(x, 0.08) * (dashes | (style == 1)))
        if rng.random() < 0.6:
            paint = np.maximum(paint, ground.stripe(np.abs(x) - self.half + 0.35, 0.06))
        if rng.random() < 0.3:
            zebra = self.side_street[0] - 5 if self.side_street[0] < 100 else rng.uniform(7, 25)
            paint = np.maximum(paint, (np.abs(z - zebra) < 1.4) * (x % 1.2 < 0.6) * (np.abs(x) < self.half - 0.2))
        paint = (paint * ~crossing * np.clip(0.85 + 0.2 * ground.grain(6), 0, 1))[..., None]
        color = asphalt * (1 + wear - tracks)[..., None]
        return color + paint * (rgb(self.place.marking) - color)

    def _paving(self, ground: Ground, asphalt: np.ndarray) -> np.ndarray:
        """Slabs, or asphalt as on many pavements, behind a kerb."""
        x, z, rng = ground.x, ground.z, self.rng
        joints = np.maximum(ground.stripe((z % 1.0) - 0.5, 0.03), ground.stripe((x % 0.8) - 0.4, 0.03))
        joints = joints * np.minimum(1, 8 / z)
        paving = rgb(self.place.paving) * rng.uniform(0.8, 1.2)
        if rng.random() < 0.3:
            paving = asphalt * rng.uniform(1.05, 1.3)
        kerb = ground.stripe(np.abs(x) - self.half - 0.1, 0.12)
        return paving * (1 + 0.07 * ground.grain(9) - 0.16 * joints + 0.25 * kerb)[..., None]

    def _skyline(self) -> None:
        """Woods and roofs at the end of the street."""
        canvas, rng = self.canvas, self.rng
        canvas.color[canvas.label == SKY] = (214, 222, 230)  # shines through twigs
        z = 140.0
        scale = canvas.camera.focal / z
        for x in np.arange(-160, 160, 13.0):
            if not canvas.sees(x - 8, x + 8, z):
                continue
            wood = rng.random() < 0.5
            sprite = scenery.tree("leafy", rng.uniform(7, 15), scale, rng) if wood else self._facade(14.0, scale)
            canvas.stand(sprite, x + rng.normal(0, 2), z, FAR)

    def _facade(self, width: float, scale: float) -> Sprite:
        place, rng = self.place, self.rng
        wall = shaded(place.walls[rng.integers(len(place.walls))], rng.uniform(0.7, 1.15))
        roof = shaded(place.roofs[rng.integers(len(place.roofs))], rng.uniform(0.8, 1.2))
        storeys = int(rng.integers(place.storeys[0], place.storeys[1] + 1))
        return scenery.facade(
            width, storeys, wall, roof, rng.random() < place.flat_roofs, rng.random() < 0.3, scale, rng
        )

    def _houses(self) -> Things:
        """Rows of houses, with gaps of trees and hedges, down both sides."""
        canvas, place, rng = self.canvas, self.place, self.rng
        focal = canvas.camera.focal
        things: Things = []
        for side in (-1, 1):
            z, setback = rng.uniform(1.4, 5.0), float(rng.choice((0.0, 0.0, 0.5, 2.0, 5.0)))
            built_up = np.clip(place.built_up + rng.normal(0, 0.25), 0.1, 1)
            while z < 80:
                end = z + rng.uniform(*place.fronts) + 0.06 * z
                overlaps = end > self.side_street[0] and z < self.side_street[1]
                if overlaps:
                    z = self.side_street[1]
                    continue
                x0, x1 = (self.middle(d) + side * self.edge(side, setback) for d in (z, end))
                built = rng.random() < built_up
                if built and (canvas.sees(x0, x0, z) or canvas.sees(x1, x1, end)):
                    scale = float(np.clip(1.3 * focal / (0.6 * z + 0.4 * end), 2.5, 14))
                    front = self._facade(end - z, scale)
                    light = 1.0 if side != self.sun else rng.uniform(0.5, 0.85)
                    deep = side * rng.uniform(8, 14)
                    gable = self._facade(abs(deep), scale) if rng.random() < 0.5 else None
                    things.append((end, partial(canvas.wall, front, (x0, z), (x1, end), FAR, light)))
                    if gable is not None:
                        corner = ((x0, z + 0.01), (x0 + deep, z + 0.01))
                        things.append((z + 0.01, partial(canvas.wall, gable, *corner, FAR, 1.5 - light)))
                elif not built:
                    depth = max(z, 6) + rng.uniform(0.5, 2)
                    while depth < end:
                        kind = place.trees[rng.integers(len(place.trees))]
                        x = self.middle(depth) + side * self.edge(side, setback + rng.uniform(0.5, 5))
                        if canvas.sees(x - 5, x + 5, depth):
                            sprite = scenery.tree(kind, rng.uniform(5, 13), focal / depth, rng)
                            things.append((depth, partial(canvas.stand, sprite, x, depth, FAR)))
                        depth += rng.uniform(3.0, 6.0) + 0.08 * depth  # far ones hide each other
                z = end + (rng.uniform(0.0, 4.0) if rng.random() < 0.3 else 0.0)
        return things

    def _traffic(self) -> Things:
        canvas, place, rng = self.canvas, self.place, self.rng
        camera = canvas.camera
        things: Things = []

        def drive(x: float, z: float, towards: bool, kinds: tuple[str, ...]) -> None:
            kind = kinds[rng.integers(len(kinds))]
            paint = shaded(place.paints[rng.integers(len(place.paints))], rng.uniform(0.75, 1.1))
            across = self.middle(z) + x
            sprite = vehicle(kind, paint, camera.focal / z, -across, camera.eye, z, towards, rng)
            things.append((z + 0.6, lambda: canvas.shadow(across, z, 2.2, VEHICLES[kind][2])))
            things.append((z, lambda: canvas.stand(sprite, across, z, VEHICLE)))

        own = place.drives_on * self.half * 0.5
        small = tuple(kind for kind in place.vehicles if kind not in ("truck", "bus"))
        ahead = rng.uniform(7, 30)
        for _ in range(rng.integers(0, 4)):
            drive(own + rng.normal(0, 0.25), ahead, False, place.vehicles)
            ahead += rng.uniform(8, 25)
        ahead = rng.uniform(6, 35)
        for _ in range(rng.integers(0, 4)):
            drive(-own + rng.normal(0, 0.25), ahead, True, place.vehicles)
            ahead += rng.uniform(9, 30)
        for side in (-1, 1):
            if rng.random() < place.parked:
                z = rng.uniform(5, 18)
                for _ in range(rng.integers(1, 7)):
                    z += rng.uniform(5.5, 12)
                    if not self.side_street[0] - 6 < z < self.side_street[1] + 1:
                        facing = (side != place.drives_on) if rng.random() < 0.85 else (side == place.drives_on)
                        drive(side * (self.half - 0.9), z, facing, small)
        if self.side_street[0] < 100 and rng.random() < 0.5:
            z = sum(self.side_street) / 2
            x = self.middle(z) + rng.uniform(-1.2, 1.2) * self.half * 2
            paint = place.paints[rng.integers(len(place.paints))]
            sprite = crossing_car(paint, camera.focal / z, rng)
            things.append((z + 0.5, lambda: canvas.shadow(x, z - 0.8, 4.4, 1.6)))
            things.append((z, lambda: canvas.stand(sprite, x, z, VEHICLE)))
        return things

    def _people(self) -> Things:
        canvas, rng = self.canvas, self.rng
        things: Things = []

        def put(x: float, z: float, riding: bool) -> None:
            sprite = scenery.person(canvas.camera.focal / z, rng, riding)
            across = self.middle(z) + x
            things.append((z + 0.3, lambda: canvas.shadow(across, z, 0.7, 0.5, 0.4)))
            things.append((z, lambda: canvas.stand(sprite, across, z, LIVING)))

        for _ in range(rng.poisson(4.5)):  # groups on the pavements
            side = int(rng.choice((-1, 1)))
            z = 5 + 45 * rng.random() ** 1.5
            for _ in range(rng.choice((1, 1, 2, 3))):
                put(
                    side * (self.half + rng.uniform(0.15, 0.95) * self.pavement[(side + 1) // 2]),
                    z + rng.normal(0, 0.5),
                    False,
                )
        if rng.random() < 0.35:
            put(rng.uniform(-1, 1) * self.half, rng.uniform(9, 35), False)  # crosses the road
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            put(float(rng.choice((-1, 1))) * (self.half - rng.uniform(0.5, 1.2)), rng.uniform(6, 30), True)
        return things

    def _furniture(self) -> Things:
        canvas, rng = self.canvas, self.rng
        focal = canvas.camera.focal
        things: Things = []

        def put(sprite: Sprite, x: float, z: float) -> None:
            across = self.middle(z) + x
            things.append((z, lambda: canvas.stand(sprite, across, z, FURNITURE)))

        tall, spacing = rng.uniform(5, 9), rng.uniform(14, 28)
        for side in (-1, 1):
            if rng.random() < 0.75:
                for z in np.arange(rng.uniform(6, 16), 90, spacing):
                    put(scenery.lamp_post(tall, -side * 1.3, focal / z, rng), side * (self.half + 0.4), z)
            for _ in range(rng.poisson(1.6)):
                z = rng.uniform(6, 38)
                put(scenery.sign(focal / z, rng), side * (self.half + rng.uniform(0.3, 1.2)), z)
            if self.side_street[0] < 100 and rng.random() < 0.6:
                z = self.side_street[0] - 1
                put(scenery.traffic_light(focal / z, rng), side * (self.half + 0.5), z)
            if rng.random() < 0.45:
                z, beyond = rng.uniform(4, 20), float(rng.choice((-0.2, 0.2))) - 0.1
                length = min(rng.uniform(6, 25), self.side_street[0] - z - 1)
                if length > 2:
                    sprite = scenery.fence(length, rng.uniform(0.8, 1.6), float(np.clip(focal / z, 6, 14)), rng)
                    a, b = ((self.middle(d) + side * self.edge(side, beyond), d) for d in (z, z + length))
                    things.append((z + length, partial(canvas.wall, sprite, a, b, FURNITURE)))
        return things
