"""Kill a run with SIGKILL at random moments until it is done, and compare it with one that was left alone.

    python benchmarks/kill_runs.py [--kills 40] [--processes 1] [--seed 0] [--out FOLDER]

The run is the tiny SegFormer on drawn streets with a checkpoint after every step, so that many kills interrupt the
writing of one. Every start must resume by itself, every checkpoint that was complete when the run was killed must
still be complete when it starts again, and the final model and scores must equal those of the undisturbed run bit for
bit. On a GPU they need not, since some kernels add in no fixed order. The last line is a summary in JSON; the exit
status is 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file
from transformers.utils import logging

from deft_hf.utils.integrity import checkpoints, damage

ROOT = Path(__file__).parents[1]
DONE = Path("results") / "metrics.json"
KEPT = 3


def recipe(folder: Path, processes: int, steps: int) -> Path:
    """The recipe of the run whose output lies in `folder`, beside it."""
    streets = {"streets": "clear", "size": [64, 96]}
    content = {
        "model": {"checkpoint": "embedded"},
        "method": {"name": "deft", "decoder_warmup_steps": steps // 4, "ema_decay_steps": None, "ema_decay": 0.95},
        "data": {
            "labels": "streets",
            "source": [{**streets, "count": 24}],
            "validation": [{**streets, "count": 4, "seed": 1}],
            "unseen": [{"streets": "night", "size": [64, 96], "count": 4}],
            "crop_size": [48, 64],
        },
        "training": {
            "output_dir": str(folder),
            "max_steps": steps - steps // 4,
            "per_device_train_batch_size": 4 // processes,
            "learning_rate": 1e-3,
            "save_steps": 1,
            "save_total_limit": KEPT,
            "logging_steps": 10,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 0,
        },
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def start(path: Path, processes: int, log: Path) -> subprocess.Popen:
    """The command, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "deft_hf.train", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to every process of the run: torchrun's workers have groups of their own."""
    children = descendants(process.pid)
    for pid in (process.pid, *children):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return found


def whole(folder: Path) -> dict[str, str]:
    """The manifest, as text, of each checkpoint that is whole."""
    return {path.name: (path / "manifest.json").read_text() for path in checkpoints(folder) if damage(path) is None}


def wait_for_a_step(process: subprocess.Popen, folder: Path, before: int) -> None:
    """Until the run has saved a step that it had not before, or is done."""
    while process.poll() is None and newest(folder) <= before:
        time.sleep(0.005)


def newest(folder: Path) -> int:
    present = checkpoints(folder)
    return int(present[0].name.rpartition("-")[2]) if present else 0


def broken_off(folder: Path, arguments: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    """Kill the run `arguments.kills` times, then let it end; returns what happened."""
    path, log = recipe(folder, arguments.processes, arguments.steps), folder.with_suffix(".log")
    caught: Counter[str] = Counter()
    steps, problems = [], []
    pause = 0.05
    for number in range(1, arguments.kills + 1):
        before = newest(folder)
        began = time.perf_counter()
        process = start(path, arguments.processes, log)
        if number % 8 == 1:
            time.sleep(rng.uniform(0, 8))  # while it starts, reads its data or loads
        else:
            wait_for_a_step(process, folder, before)
            time.sleep(rng.uniform(0, 3 * pause))
        if process.poll() is not None:
            problems.append(f"start {number} ended by itself with status {process.returncode}")
            break
        kill(process)
        good = whole(folder)
        writing = any(folder.glob(".checkpoint-*.partial"))
        caught["while a checkpoint was written or removed" if writing else "between"] += 1
        steps.append(newest(folder))
        if steps[-1] < before:
            problems.append(f"kill {number}: checkpoint-{before} was there, the newest is {steps[-1]}")
        if damaged := [path.name for path in checkpoints(folder) if path.name not in good]:
            problems.append(f"kill {number}: under the name of a checkpoint, but not whole: {', '.join(damaged)}")
        print(f"kill {number}: at step {steps[-1]}, {time.perf_counter() - began:.1f} s", flush=True)
        if newest(folder) and not good:
            problems.append(f"kill {number}: no checkpoint is whole")
    process = start(path, arguments.processes, log)
    status = process.wait()
    if status or not (folder / DONE).is_file():
        problems.append(f"the last start ended with status {status}; {log} ends with {log.read_text()[-2000:]}")
    return {"kills": len(steps), "steps": steps, "caught": dict(caught), "problems": problems}


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: tensors by name, and scores."""
    found = []
    for file in ("model.safetensors", f"{checkpoints(one)[0].name}/usual.safetensors"):
        expected, there = load_file(one / file), load_file(other / file)
        names = sorted(expected.keys() | there.keys())
        found += [
            f"{file}: {name}"
            for name in names
            if name not in expected or name not in there or expected[name].tobytes() != there[name].tobytes()
        ]
    scores = [json.loads((folder / DONE).read_text())["scores"] for folder in (one, other)]
    return found + (["scores"] if scores[0] != scores[1] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, help="optimizer steps of the run (default: three a kill)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="an empty folder for the runs (default: a temporary one)")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or max(3 * arguments.kills, 12)
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.out or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        alone, killed = place / "alone", place / "killed"
        path = recipe(alone, arguments.processes, arguments.steps)
        if start(path, arguments.processes, alone.with_suffix(".log")).wait():
            sys.exit(f"the run that was left alone failed:\n{alone.with_suffix('.log').read_text()[-2000:]}")
        summary = broken_off(killed, arguments, random.Random(arguments.seed))
        if not summary["problems"]:
            differ = differences(alone, killed)
            summary["problems"] += [f"differs from the run left alone: {name}" for name in differ[:10]]
        summary = {
            "processes": arguments.processes,
            "optimizer_steps": arguments.steps,
            **summary,
            "equal_bit_for_bit": not summary["problems"],
            "seconds": round(time.perf_counter() - began),
        }
    print(json.dumps(summary, indent=2))
    sys.exit(1 if summary["problems"] else 0)


if __name__ == "__main__":
    main()
