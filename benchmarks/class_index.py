"""The class index of 2,000 masks of GTA5's size: time with one and two workers and from the cache; and what is drawn.

    python benchmarks/class_index.py FOLDER [--count 2000] [--out benchmarks/results/class_index.json]

The masks are twenty drawn streets, shifted sideways so that each differs, as PNGs of train ids. The images beside them
are of one pixel each: the index decodes none. Reading and hashing all files, which a run has done by then for its data
check, is measured apart.

Workers are threads. What they wait for is told apart: `cores used` is CPU time over time, and two processes, which
share nothing, get what the machine has to give (on a quarter of the masks). `waiting for a lock` is the share of a
worker's time in which it neither ran nor stood in the kernel's queue for a core (`/proc/self/task/*/schedstat` of
Linux); Python's lock is in it. Two threads that hold it all the time, in a loop of plain Python, are measured beside
them. The masks are looked at in parts, each way in turn.

Last, the share of the crops that each sampler aims at each class, over many epochs, is compared with its formula.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import trange

from deft_hf.data import ClassIndex, Domain, class_index, draw_street
from deft_hf.data.class_index import frequencies
from deft_hf.data.samplers import ClassUniform, RareClass
from deft_hf.data.streets import STREETS

SIZE = (1052, 1914)
STREETS_DRAWN = 20
TILE = 1024
EPOCHS = 200
LOOK = class_index._look


def draw(folder: Path, count: int) -> None:
    """Writes the pairs, as far as they are not there."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    masks: list[np.ndarray] = []
    for index in trange(count, desc="drawing"):
        path = folder / "masks" / f"{index:05d}.png"
        if path.exists():
            continue
        if not masks:
            masks = [draw_street("clear", seed, SIZE)[1] for seed in range(STREETS_DRAWN)]
        moved = np.roll(masks[index % STREETS_DRAWN], 17 * (index // STREETS_DRAWN), axis=1)
        Image.new("RGB", (1, 1)).save(folder / "images" / path.name)
        Image.fromarray(moved).save(path)


def used() -> float:
    """CPU seconds of this process and of those that ended."""
    return sum(os.times()[:4])


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that some work takes, and seconds of CPU."""
    start, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - start, used() - before


class Watched:
    """Looks at masks, and adds up what the time of the threads that do so goes into."""

    def __init__(self) -> None:
        self.seconds = np.zeros(3)  # all, running, in the queue for a core

    def __call__(self, *args: Any, work: Callable[..., Any] = LOOK) -> Any:
        before = self.now()
        result = work(*args)
        self.seconds += self.now() - before
        return result

    def now(self) -> np.ndarray:
        ran, queued, _ = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
        return np.array([time.perf_counter(), int(ran) / 1e9, int(queued) / 1e9])

    @property
    def waiting(self) -> float:
        everything, ran, queued = self.seconds
        return round(float(1 - (ran + queued) / everything), 3)


def look_at(part: Domain) -> None:
    for position in range(len(part)):
        LOOK(part, position, TILE)


def in_processes(part: Domain) -> None:
    halves = [part.select(range(first, len(part), 2)) for first in (0, 1)]
    started = [get_context("fork").Process(target=look_at, args=(half,)) for half in halves]
    for process in started:
        process.start()
    for process in started:
        process.join()


def compare(domain: Domain, parts: int = 8) -> dict[str, dict[str, float]]:
    """Time and cores of each way to look at all masks, part by part in turn."""
    found = {name: np.zeros(2) for name in ("1 thread", "2 threads", "2 processes")}
    watched = {name: Watched() for name in ("1 thread", "2 threads")}
    with TemporaryDirectory() as cache:
        for index in trange(parts, desc="looking"):
            part = domain.select(range(index, len(domain), parts))
            part.contents  # noqa: B018 (computed at first use)
            ways = {
                "1 thread": lambda: ClassIndex.of(part, TILE, 1, Path(cache, "1")),  # noqa: B023
                "2 threads": lambda: ClassIndex.of(part, TILE, 2, Path(cache, "2")),  # noqa: B023
                "2 processes": lambda: in_processes(part),  # noqa: B023
            }
            if index % 4:
                del ways["2 processes"]
            for turn in range(len(ways)):
                name = [*ways][(index + turn) % len(ways)]
                class_index._look = watched.get(name, LOOK)
                found[name] += timed(ways[name])
    class_index._look = LOOK
    plain = Watched()
    with ThreadPoolExecutor(2) as pool:
        [*pool.map(lambda _: plain(range(20_000_000), work=sum), range(8))]
    return {
        name: {"seconds": round(wall, 2), "on the CPU": round(cpu, 2), "cores used": round(cpu / wall, 2)}
        | ({"waiting for a lock": watched[name].waiting} if name in watched else {})
        for name, (wall, cpu) in found.items()
    } | {"2 threads of plain Python": {"waiting for a lock": plain.waiting}}


def cached(domain: Domain, folder: Path) -> dict[str, float]:
    """A second start: reading and hashing the files, and the index from the cache."""
    index = ClassIndex.of(domain, TILE, cache=folder / "cache")
    again = Domain.from_folder(folder, STREETS)
    hashed, _ = timed(lambda: again.contents)
    seconds, _ = timed(lambda: ClassIndex.of(again, TILE, cache=folder / "cache"))
    kept = sum(path.stat().st_size for path in (folder / "cache").iterdir())
    return {
        "reading and hashing the files": round(hashed, 2),
        "from the cache": round(seconds, 3),
        "bytes kept": kept,
        "centroids": len(index.centroids),
    }


def sampled(index: ClassIndex) -> dict[str, dict[str, Any]]:
    """Shares of the crops that aim at each class: as the formula has them, and as they were drawn."""
    shares = frequencies([index])
    weights = np.exp((1 - shares - (1 - shares).max()) / 0.01) * (shares > 0)
    present = np.unique(index.centroids[:, 1])
    by_class = np.zeros(len(shares))
    by_class[present] = 0.5 / len(present)
    formulas = {
        "rare_class, T = 0.01": (RareClass(index), weights / weights.sum()),
        "class_uniform, share 0.5": (ClassUniform(index, 0.5), by_class),
    }
    at: dict[tuple[int, ...], list[int]] = {}
    for image, label, *point in index.centroids.tolist():
        at.setdefault((image, *point), []).append(label)
    found = {}
    for name, (sampler, expected) in formulas.items():
        drawn, rng = np.zeros(len(shares)), np.random.default_rng(0)
        for _ in range(EPOCHS):
            for image, aim in zip(*sampler.draw(len(index.pixels), rng), strict=True):
                labels = [] if aim is None else [aim.label] if aim.point is None else at[(int(image), *aim.point)]
                for label in labels:  # a point may be the centroid of two classes
                    drawn[label] += 1 / len(labels)
        drawn /= EPOCHS * len(index.pixels)
        found[name] = {
            "formula": dict(zip(STREETS.names, expected.round(5).tolist(), strict=True)),
            "drawn": dict(zip(STREETS.names, drawn.round(5).tolist(), strict=True)),
            "largest difference": float(np.abs(drawn - expected).max().round(6)),
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.count)
    domain = Domain.from_folder(arguments.folder, STREETS)
    found = {
        "masks": arguments.count,
        "size": SIZE,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "first start": compare(domain),
        "second start": cached(domain, arguments.folder),
        "samplers": sampled(ClassIndex.of(domain, TILE, cache=arguments.folder / "cache")),
    }
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
