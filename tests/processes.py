"""Processes for tests, forked from one that has imported torch, transformers and datasets, which takes seconds.

Arguments, environment, folder, streams, signals and exit status are a process's own, as under `python -m`, and deft_hf
is imported anew. Where the start of Python or the import of another library is the point, tests use `subprocess`.
"""

from __future__ import annotations

import gc
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing import connection, forkserver, get_context
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import drawn

re._MAXCACHE = 1 << 16  # opening a model compiles hundreds of expressions, more than are remembered otherwise
os.fsync = lambda handle: None  # what tests write need not survive the machine

_SERVER = get_context("forkserver")
_PRELOAD = ["deft_hf.comparison.worker", "tests.preloaded"]


class Started:
    """`python -m MODULE ARGUMENTS`, or `python -c CODE ARGUMENTS`, in a process with one thread.

    Args:
        command: the words after `python -m`, or `-c` and those after it.
        cwd: folder to run in; default: this process's.
        env: variables beside those of this process.
        start_new_session: whether it leads a process group of its own.
        shortened: whether `shorten` applies.
    """

    def __init__(self, *command, cwd=None, env=None, start_new_session=False, shortened=False):
        self.command = [str(word) for word in command]
        self.streams = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self.streams.name, name) for name in ("out", "err"))
        for path in (self.out, self.err):
            path.touch()
        started = (self.command, str(cwd or Path.cwd()), {**os.environ, **(env or {})}, self.out, self.err)
        start_server()
        self.process = _SERVER.Process(target=_main, args=(*started, start_new_session, shortened))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """The status and what was printed, once the process has ended."""
        self.process.join(timeout)
        out, err = (path.read_text(errors="replace") for path in (self.out, self.err))
        if self.poll() is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.command, timeout, out, err)
        return subprocess.CompletedProcess(self.command, self.poll(), out, err)


def start_server() -> None:
    """Start the process that all others are forked from, those of `compare` too: there is one a pytest process."""
    _SERVER.set_forkserver_preload(_PRELOAD)
    forkserver.ensure_running()


def run(*command, **options) -> subprocess.CompletedProcess:
    """`Started`, waited for."""
    return Started(*command, **options).wait()


def run_ranks(count: int, *command, timeout: float = 300, **options) -> None:
    """`count` processes with the environment that torchrun gives them, each of which must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    environment = world | {"LOCAL_WORLD_SIZE": str(count)} | options.pop("env", {})
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    started = [Started(*command, env=environment | rank, **options) for rank in ranks]
    try:
        while (living := [each for each in started if each.poll() is None]) and not any(e.poll() for e in started):
            if not connection.wait([each.process.sentinel for each in living], timeout):
                break
    finally:
        started.sort(key=lambda each: not each.poll())  # what failed comes before what is killed for it
        for each in started:
            if each.poll() is None:
                each.kill()
    for each in started:
        done = each.wait()
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-3000:]}"


def run_python(command: list[str], cwd=None, env=None, **_) -> subprocess.CompletedProcess:
    """In place of `subprocess.run([sys.executable, ...])` with its output captured as text."""
    assert command[0] == sys.executable
    return run(*command[1:], cwd=cwd, env=env)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """At the end of a run its export is not loaded again in a fresh process, and its figures are left out or stay
    blank: all of that takes longer than a tiny run."""
    patch.setattr("deft_hf.runs.finish.verify_export", lambda *args, **kwargs: None)
    patch.setattr("deft_hf.runs.card.save_run_figures", lambda *args: {})
    for picture in ("save_domain_bars", "save_panels"):
        patch.setattr(f"deft_hf.runs.report.{picture}", _blank)
    patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: _blank(Path(path)))


def _blank(path: Path, *_, **__) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (1, 1)).save(path)


def _main(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    out: Path,
    err: Path,
    new_session: bool,
    shortened: bool,
) -> None:
    if new_session:
        os.setsid()
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    gc.freeze()
    for name in [name for name in sys.modules if name.partition(".")[0] == "deft_hf"]:
        del sys.modules[name]
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    drawn.remember(pytest.MonkeyPatch())
    if shortened:
        shorten(pytest.MonkeyPatch())
    module, *words = command
    if module == "-c":
        code, *words = words
        sys.argv = ["-c", *words]
        exec(code, {"__name__": "__main__"})
    else:
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
