"""Folders that commands write to: each is claimed by one process, and nothing that it did not write is replaced."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from deft_hf.utils.errors import UserError
from deft_hf.utils.files import LOCK, MANIFEST, MARKER
from deft_hf.utils.integrity import check_writable, replace_text
from deft_hf.utils.places import below, makeable, name_problem

Found = TypeVar("Found")

_SCRATCH = ".partial-"


class OutputFolder:
    """A folder that a command has claimed, see [`claim_output`]. Every file in it is asked for before it is written.

    Its marker file holds the command and the files that were asked for, a line each.

    Args:
        path (`Path`):
            The folder.
        command (`str`):
            The command.
        before (`set[str]`):
            Files of an earlier output of the command, which go when the first new one is written.
    """

    def __init__(self, path: Path, command: str, before: set[str]) -> None:
        self.path = path
        self.command = command
        self._root = path.resolve()
        self._before = before
        self._written: set[str] = set()

    def file(self, name: str) -> Path:
        """Where to write a file; its folder is made.

        Args:
            name (`str`):
                Its path in the folder, with `/`.

        Raises:
            UserError: The name leads out of the folder, or something is there that this command did not write.
        """
        path = below(self.path, name)
        if not self._written:
            self._clear()
        if os.path.lexists(path):
            whose = (
                "twice" if self._inside(path) in self._written else f"over a file that {self.command} did not write"
            )
            raise UserError(
                f"{path}: would be written {whose}; nothing was replaced. Move it, or choose another folder."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._written.add(self._inside(path))
            with open(self.path / MARKER, "a", encoding="utf-8") as marker:
                marker.write(json.dumps(self._inside(path)) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder.") from error
        return path

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder in this one for files that are not complete yet; it goes in the end."""
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.path) as folder:
            yield Path(folder)

    def _inside(self, path: Path) -> str:
        return path.resolve().relative_to(self._root).as_posix()

    def _clear(self) -> None:
        for name in self._before:
            path = self._root / name
            # Not through a link, which may lead to files of others.
            if path.resolve() == path and path.is_relative_to(self._root) and path.is_file():
                path.unlink()
                for folder in path.parents:
                    if folder == self._root or any(folder.iterdir()):
                        break
                    folder.rmdir()
        self._before = set()
        replace_text(self.path / MARKER, _header(self.command))


@contextmanager
def claim_output(folder: str | os.PathLike, command: str, overwrite: bool = False) -> Iterator[OutputFolder]:
    """Claims a folder that is new or empty for as long as the context lasts; it stays as it was if nothing is written.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        command (`str`):
            Name of the command, such as `predict`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Take the folder of an earlier output of the same command too, and replace the files of that.

    Yields:
        `OutputFolder`: the folder.

    Raises:
        UserError: It holds something else, is in use, or cannot be made or written to. Nothing is touched.
    """
    path = Path(folder)
    with makeable(path):
        path = path.expanduser()
    with claimed(path, command, lambda: _earlier(path, command, overwrite)) as before:
        for place in path.glob(f"{_SCRATCH}*"):  # of a process that was killed
            shutil.rmtree(place, ignore_errors=True)
        yield OutputFolder(path, command, before)


@contextmanager
def claimed(path: Path, command: str, look: Callable[[], Found], argument: str = "out") -> Iterator[Found]:
    """Claims a folder for as long as the context lasts, once `look` finds that it may be claimed.

    If nothing is written there, it stays as it was.

    Args:
        path (`Path`):
            The folder.
        command (`str`):
            Whose it is from now on.
        look (`Callable`):
            Raises `UserError` for a folder that is somebody else's. It is called twice: before anything is touched,
            and when no other process can write there any more.
        argument (`str`, *optional*, defaults to `"out"`):
            What the folder was given as.

    Yields:
        `Any`: What `look` returned.

    Raises:
        UserError: The folder is in use, or cannot be made or written to.
    """
    with makeable(path):
        look()
        known = (path / MARKER).is_file()
        made = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    try:
        with makeable(path):
            check_writable(path)
        with locked(path, argument=argument):
            found = look()
            fresh = _mark(path, command, known)
            try:
                yield found
            finally:
                with suppress(OSError):
                    if fresh and all(is_housekeeping(place) for place in path.iterdir()):
                        (path / MARKER).unlink(missing_ok=True)
                    (path / LOCK).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # the first that is not empty
            for place in made:
                place.rmdir()


def mark(folder: Path, command: str) -> None:
    """Note which command a folder belongs to that keeps its own account of its files."""
    if command_of(folder) != command:
        replace_text(folder / MARKER, _header(command))


def command_of(folder: Path) -> str | None:
    """The command that a folder belongs to; `None` without a marker."""
    found = _read(folder)
    return None if found is None else found[0]


@contextmanager
def locked(folder: Path, patience: float = 0.0, argument: str = "out") -> Iterator[None]:
    """Hold the lock of a folder, alone among all processes.

    Args:
        folder (`Path`):
            The folder; it exists.
        patience (`float`, *optional*, defaults to `0.0`):
            Seconds to wait for another process.
        argument (`str`, *optional*, defaults to `"out"`):
            What the folder was given as.

    Raises:
        UserError: Another process holds it.
    """
    if (folder / LOCK).is_symlink():
        raise UserError(f"{argument}: {folder / LOCK} is a link; nothing was touched. Remove it.")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(
            f"{argument}: {folder} belongs to a run that is still running; nothing was touched. Wait for it, or stop "
            "its process."
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()


def _earlier(path: Path, command: str, overwrite: bool) -> set[str]:
    """The files of an earlier output that may be replaced."""
    inside = next((place for place in path.resolve().parents if (place / MANIFEST).is_file()), None)
    if inside is not None:
        raise UserError(f"out: {path} lies in the checkpoint {inside}, which it would change; choose another folder.")
    if path.is_symlink() and not path.exists():
        raise UserError(f"out: {path} is a link that leads nowhere; nothing was touched. Choose another folder.")
    if not path.exists():
        return set()
    start = f"out: {path} exists already; nothing was touched."
    if not path.is_dir():
        raise UserError(f"{start} It is no folder: choose another.")
    if all(is_housekeeping(place) for place in path.iterdir()):
        return set()
    found = _read(path)
    if found is None or found[0] != command:
        whose = f"was not written by {command}" if found is None else f"belongs to {found[0]}"
        raise UserError(f"{start} It is not empty and {whose}: choose another folder, or remove it.")
    if not overwrite:
        raise UserError(
            f"{start} It holds an earlier output: choose another folder, or ask for it to be replaced (overwrite)."
        )
    return found[1]


def is_housekeeping(path: Path) -> bool:
    """Whether claiming a folder makes this file there."""
    if path.is_symlink():
        return False
    if path.name == LOCK:
        return path.is_file() and path.stat().st_size == 0
    return path.name == MARKER or path.name.startswith(".writable-")


def _header(command: str) -> str:
    return json.dumps({"command": command}) + "\n"


def _mark(path: Path, command: str, known: bool) -> bool:
    """Writes the marker unless it is there; returns whether it did. `known`: it was there before the lock was held."""
    marker = path / MARKER
    if known and command_of(path) == command:
        return False
    if known:  # of a process that was killed before it wrote anything else
        marker.unlink(missing_ok=True)
    try:
        with open(marker, "x", encoding="utf-8") as file:  # where locks do nothing, this is the claim
            file.write(_header(command))
    except FileExistsError:
        raise UserError(f"out: {path} was claimed by another process; nothing was touched.") from None
    except OSError as error:
        raise UserError(f"out: {path} cannot be written to ({error.strerror}); choose another folder.") from error
    return True


def _read(folder: Path) -> tuple[str, set[str]] | None:
    """Command and files that a marker holds; `None` without one that can be read."""
    marker = folder / MARKER
    if marker.is_symlink() or not marker.is_file():
        return None
    try:
        first, *lines = marker.read_text("utf-8").splitlines()
        command = str(json.loads(first)["command"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    names = set()
    for line in lines:
        try:
            name = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn by a kill: the file was not written yet
        if isinstance(name, str) and not name_problem(name):
            names.add(name)
    return command, names
