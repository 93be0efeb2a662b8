"""Runs in separate processes, several at a time: one that diverges or runs out of memory stops no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm.auto import tqdm

from deft_hf.comparison.plan import Run
from deft_hf.comparison.worker import work
from deft_hf.trainer.termination import STATUS

_PAUSE = 0.2  # seconds between two polls of the processes


def execute(runs: Iterable[Run], jobs: int) -> dict[Path, str]:
    """Train the runs that are not finished, and return why runs failed, by folder.

    A run that was killed from outside is restarted once. One that diverged would diverge again and is not repeated;
    all other failed runs are tried again by the next call.

    Args:
        runs (`Iterable[Run]`):
            Runs to make; equal ones are made once.
        jobs (`int`):
            Number of processes at a time. They share the CPU cores and take turns on the GPUs.
    """
    runs = list({run.folder: run for run in runs}.values())
    failures = {run.folder: run.failure for run in runs if run.failure}
    waiting = [run for run in runs if not run.done and run.folder not in failures]
    second_chance = list(waiting)
    active: dict[int, tuple[Run, BaseProcess]] = {}
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="runs", unit="run", smoothing=0)
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                slot = min(set(range(jobs)) - set(active))
                active[slot] = waiting[0], _start(waiting.pop(0), slot, jobs)
            time.sleep(_PAUSE)
            for slot, (run, process) in list(active.items()):
                status = process.exitcode
                if status is None:  # still at work
                    continue
                del active[slot]
                reason = _reason(run, status)
                if reason and _was_killed(status) and run in second_chance:
                    second_chance.remove(run)
                    waiting.append(run)
                    continue
                if reason:
                    failures[run.folder] = reason
                    tqdm.write(f"{run.folder.name}: {reason}", file=sys.stderr)
                bar.update()
    finally:
        for _, process in active.values():
            process.terminate()
            process.join()
        bar.close()
    return failures


def _start(run: Run, slot: int, jobs: int) -> BaseProcess:
    run.prepare()
    settings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))}
    if (count := torch.cuda.device_count()) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        settings["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % count]
    # A server that has imported everything forks the runs: importing takes longer than a short run's evaluation.
    process: BaseProcess
    if "forkserver" in multiprocessing.get_all_start_methods():
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["deft_hf.comparison.worker"])
        process = server.Process(target=work, args=(run.folder, settings))
    else:
        process = multiprocessing.get_context("spawn").Process(target=work, args=(run.folder, settings))
    process.start()
    return process


def _was_killed(status: int) -> bool:
    """Whether a process was killed by a signal, or stopped itself because of one."""
    return status < 0 or status == STATUS


def _reason(run: Run, status: int) -> str | None:
    if run.done:
        return None
    if run.failure:
        return run.failure
    if _was_killed(status):
        number = -status if status < 0 else status - 128
        return f"killed by signal {number}" + (" (out of memory?)" if number == 9 else "")
    log = run.folder / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return f"ended with status {status}" + (f"; {log} ends with: {lines[-1]}" if lines else "")
