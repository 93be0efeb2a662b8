"""Seconds that a class index of 2,000 masks of GTA5's size takes: with one thread and with two, and from the cache.

    python benchmarks/class_index.py FOLDER [--count 2000] [--out benchmarks/results/class_index.json]

The masks are twenty drawn streets, shifted sideways so that each differs, as PNGs of train ids. The images beside them
are of one pixel each: the index decodes none. Reading and hashing all files, which a run has done by then for its data
check, is measured apart, and so is what is kept of the index. What the machine has to give is measured by a loop of
plain Python: `speedup of two processes` is how much sooner two processes, which share nothing, are done with it than
one; on two idle cores it would be 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import trange

from deft_hf.data import ClassIndex, Domain, draw_street
from deft_hf.data.streets import STREETS

SIZE = (1052, 1914)
STREETS_DRAWN = 20


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


def speedup() -> float:
    """How much sooner two processes are done with a plain loop, twice, than one."""
    seconds = []
    for processes in (1, 2):
        with get_context("fork").Pool(processes) as pool:
            pool.map(sum, [range(10)] * processes)
            start = time.perf_counter()
            pool.map(sum, [range(100_000_000)] * 2, chunksize=1)
            seconds.append(time.perf_counter() - start)
    return round(seconds[0] / seconds[1], 2)


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each step, with the centroids that class-uniform sampling takes."""
    cache, seconds = folder / "cache", {}
    for workers in (1, 2):
        shutil.rmtree(cache, ignore_errors=True)
        for what in (f"{workers} thread{'s' * (workers > 1)}", "from the cache"):
            domain = Domain.from_folder(folder, STREETS)
            start = time.perf_counter()
            domain.contents  # noqa: B018 (computed at first use)
            hashed, used = time.perf_counter(), time.process_time()
            ClassIndex.of(domain, 1024, workers, cache)
            seconds["reading and hashing the files"] = round(hashed - start, 2)
            seconds[what] = round(time.perf_counter() - hashed, 2)
            seconds[f"{what}, on the CPU"] = round(time.process_time() - used, 2)
    seconds["bytes kept"] = sum(path.stat().st_size for path in cache.iterdir())
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.count)
    found = {
        "masks": arguments.count,
        "size": SIZE,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "speedup of two processes": speedup(),
        "seconds": measure(arguments.folder),
    }
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
