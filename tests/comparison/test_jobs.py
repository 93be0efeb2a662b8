"""Runs that are no training: what becomes of a process is all that `execute` looks at."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deft_hf.comparison import jobs, worker
from deft_hf.comparison.plan import Plan, Run
from deft_hf.utils.errors import TrainingDiverged, UserError
from deft_hf.utils.files import METRICS
from tests.comparison.test_plan import JOINT, write_recipe

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def runs(tmp_path):
    return [Run(None, seed, tmp_path / f"run-{seed}") for seed in range(4)]


@pytest.fixture
def started(monkeypatch):
    """Lets a function of a folder stand for the training; returns what sets it, and the names of what was started."""
    names, processes = [], []

    def use(train):
        def start(run, slot, count):
            run.folder.mkdir(exist_ok=True)
            process = FORK.Process(target=train, args=(run.folder,))
            process.start()
            names.append(run.folder.name)
            processes.append(process)
            assert sum(process.is_alive() for process in processes) <= count and 0 <= slot < count
            return process

        monkeypatch.setattr(jobs, "_start", start)
        monkeypatch.setattr(jobs, "_PAUSE", 0.01)
        return processes

    return SimpleNamespace(use=use, names=names)


def finish(folder):
    (folder / METRICS).parent.mkdir(exist_ok=True)
    (folder / METRICS).write_text("{}")


def test_what_is_done_is_not_repeated_and_equal_runs_are_run_once(runs, started):
    started.use(finish)
    runs[1].folder.mkdir()
    finish(runs[1].folder)
    again = Run(None, 0, runs[0].folder)
    assert jobs.execute([*runs, again], jobs=2) == {}
    assert sorted(started.names) == ["run-0", "run-2", "run-3"]
    assert all(run.done for run in runs)
    assert jobs.execute(runs, jobs=1) == {} and len(started.names) == 3


def test_as_many_as_jobs_run_at_once(runs, started):
    meeting = FORK.Barrier(2)

    def meet(folder):
        meeting.wait(timeout=60)  # nobody comes through alone
        finish(folder)

    started.use(meet)
    assert jobs.execute(runs, jobs=2) == {}
    assert started.names == [run.folder.name for run in runs]


def test_one_that_is_killed_has_a_second_chance_in_every_call(runs, started):
    def killed(folder):
        if folder.name == "run-1" or (folder.name == "run-2" and not (folder / "seen").exists()):
            (folder / "seen").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        finish(folder)

    started.use(killed)
    assert jobs.execute(runs, jobs=1) == {runs[1].folder: "killed by signal 9 (out of memory?)"}
    assert sorted(started.names) == ["run-0", "run-1", "run-1", "run-2", "run-2", "run-3"]
    assert [run.done for run in runs] == [True, False, True, True]
    assert jobs.execute(runs, jobs=1) == {runs[1].folder: "killed by signal 9 (out of memory?)"}
    assert started.names[6:] == ["run-1", "run-1"]
    started.use(finish)
    assert jobs.execute(runs, jobs=1) == {}


def test_one_that_saved_and_stopped_on_sigterm_has_a_second_chance_too(runs, started):
    def stopped(folder):
        if folder.name == "run-1" or (folder.name == "run-2" and not (folder / "seen").exists()):
            (folder / "seen").touch()
            raise SystemExit(143)
        finish(folder)

    started.use(stopped)
    assert jobs.execute(runs, jobs=1) == {runs[1].folder: "killed by signal 15"}
    assert sorted(started.names) == ["run-0", "run-1", "run-1", "run-2", "run-2", "run-3"]


def test_one_that_is_killed_once_it_has_finished_is_done(runs, started):
    def killed_late(folder):
        finish(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    started.use(killed_late)
    assert jobs.execute(runs[:1], jobs=1) == {} and started.names == ["run-0"]


def test_whoever_interrupts_leaves_no_process_behind(runs, started, monkeypatch):
    processes = started.use(lambda folder: signal.pause())
    monkeypatch.setattr(jobs.time, "sleep", interrupting(2))
    with pytest.raises(KeyboardInterrupt):
        jobs.execute(runs, jobs=2)
    assert len(processes) == 2
    assert [process.exitcode for process in processes] == [-signal.SIGTERM, -signal.SIGTERM]


def interrupting(after):
    waits = iter(range(after))

    def sleep(seconds):
        if next(waits, None) is None:
            raise KeyboardInterrupt

    return sleep


# ---- the worker


@pytest.fixture
def training(tmp_path, started, monkeypatch):
    """Two real runs, with a function of a folder where `work` would train; returns what sets it, and the runs."""
    plan = Plan(write_recipe(tmp_path), (), tmp_path / "runs")
    found = [plan.run(JOINT, seed) for seed in (0, 1)]

    def use(train):
        def start(folder):
            worker.work(folder, {"OMP_NUM_THREADS": "1"})

        for run in found:
            run.prepare()
        monkeypatch.setattr(worker, "_run", lambda recipe, folder: train(folder))
        started.use(start)

    return SimpleNamespace(use=use, runs=found)


def test_one_that_diverged_is_left_alone_and_sinks_no_other(training, started):
    first, second = training.runs

    def diverges(folder):
        if folder == first.folder:
            raise TrainingDiverged("the loss became nan")
        finish(folder)

    training.use(diverges)
    assert jobs.execute(training.runs, jobs=1) == {first.folder: "TrainingDiverged: the loss became nan"}
    assert json.loads((first.folder / "failure.json").read_text()) == {
        "reason": "TrainingDiverged: the loss became nan"
    }
    assert second.done
    training.use(finish)
    assert jobs.execute(training.runs, jobs=1) == {first.folder: "TrainingDiverged: the loss became nan"}
    assert started.names == [first.folder.name, second.folder.name]


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("lora needs peft:\npip install peft"), "pip install peft"),
        (torch.OutOfMemoryError("CUDA out of memory."), "torch.OutOfMemoryError: CUDA out of memory."),
        (KeyError("a defect"), "KeyError: 'a defect'"),
    ],
)
def test_what_may_be_mended_is_reported_and_tried_again_by_the_next_call(training, started, error, line):
    run = training.runs[0]

    def fails(folder):
        raise error

    training.use(fails)
    log = run.folder / "log.txt"
    assert jobs.execute([run], jobs=1) == {run.folder: f"ended with status 1; {log} ends with: {line}"}
    assert len(started.names) == 1 and run.failure is None
    training.use(finish)
    assert jobs.execute([run], jobs=1) == {} and run.done


def test_whoever_waited_for_the_same_run_does_not_repeat_what_came_of_it(training, tmp_path):
    calls = FORK.Value("i", 0)

    def count(folder):
        calls.value += 1
        finish(folder)

    training.use(count)
    for run, outcome in zip(training.runs, (str(METRICS), "failure.json"), strict=True):
        (run.folder / outcome).parent.mkdir(exist_ok=True)
        (run.folder / outcome).write_text('{"reason": "diverged"}')
        process = FORK.Process(target=worker.work, args=(run.folder, {"OMP_NUM_THREADS": "1"}))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert calls.value == 0


def test_checkpoints_go_once_the_run_is_done(training, monkeypatch):
    run = training.runs[0]
    (run.folder / "checkpoint-2").mkdir(parents=True)
    for name in ("load_domains", "make_trainer", "fit"):
        monkeypatch.setattr(worker, name, lambda *args, **options: None)
    monkeypatch.setattr(worker, "finish", lambda *args, compared: finish(run.folder))
    removed = []
    monkeypatch.setattr(worker.shutil, "rmtree", lambda path: removed.append((path.name, run.done)))
    worker._run(run.recipe, run.folder)
    assert removed == [("checkpoint-2", True)]  # killed in between, it would have gone on from half of one


@pytest.fixture
def environments(tmp_path, monkeypatch):
    """A function that starts a run in each of several slots, for a number of GPUs, and returns what each would see."""
    made = []

    def process(target, args):
        made.append((target, args))
        return SimpleNamespace(start=lambda: None)

    context = SimpleNamespace(Process=process, set_forkserver_preload=lambda modules: None)
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 13)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    run = Plan(write_recipe(tmp_path), (), tmp_path / "runs").run(JOINT, 0)

    def start(count, slots):
        monkeypatch.setattr(jobs.torch.cuda, "device_count", lambda: count)
        for slot in range(slots):
            jobs._start(run, slot, jobs=slots)
        assert {target for target, _ in made} == {worker.work}
        assert [args[0] for _, args in made] == [run.folder] * slots
        assert Path(run.folder / "recipe.yaml").is_file()
        return [args[1] for _, args in made]

    return start


@pytest.mark.parametrize("kept, threads", [(None, "4"), ("3", "3")])
def test_runs_share_the_cores(environments, monkeypatch, kept, threads):
    if kept:
        monkeypatch.setenv("OMP_NUM_THREADS", kept)
    assert environments(count=0, slots=3) == [{"OMP_NUM_THREADS": threads}] * 3


@pytest.mark.parametrize(
    "preset, count, devices",
    [
        (None, 2, ["0", "1", "0"]),
        ("", 2, ["0", "1", "0"]),
        ("3,5", 2, ["3", "5", "3"]),
        ("GPU-1f,GPU-2e,GPU-3d,GPU-4c", 4, ["GPU-1f", "GPU-2e", "GPU-3d"]),
        ("5", 1, [None, None, None]),  # which the run inherits
    ],
)
def test_runs_take_turns_on_the_gpus_that_may_be_seen(environments, monkeypatch, preset, count, devices):
    if preset is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", preset)
    assert [found.get("CUDA_VISIBLE_DEVICES") for found in environments(count, slots=3)] == devices
