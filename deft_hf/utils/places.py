"""Paths that are written to: which are possible, which lie below a folder, and which are read as well."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from deft_hf.utils.errors import UserError, first_line

_LONGEST = 255  # bytes of a name, on the file systems in use


@contextmanager
def makeable(folder: Path) -> Iterator[None]:
    """Wrap what looks at a folder or makes it: a path that no folder can have becomes one message.

    Raises:
        UserError: In place of the errors of the system, of a name that is too long or has a null byte.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{str(folder)[:200]!r}: cannot be the folder to write to ({reason}); nothing was touched. Choose another."
        ) from error


def below(folder: Path, name: str) -> Path:
    """The path of a file in a folder.

    Args:
        folder (`Path`):
            The folder.
        name (`str`):
            Path in it, with `/`.

    Raises:
        UserError: It is no plain relative path, or lies elsewhere once links are followed.
    """
    if problem := name_problem(name):
        raise UserError(
            f"{name[:200]!r}: {problem}, so that no file in {folder} can be named after it; nothing was written."
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path}: links lead out of {folder}, to {path.resolve()}; remove them, or choose another folder."
        )
    return path


def new_file(folder: Path, name: str) -> Path:
    """The path of a file in a folder that was not claimed; its own folder is made.

    Args:
        folder (`Path`):
            The folder.
        name (`str`):
            Path in it, with `/`.

    Raises:
        UserError: The name leads out of the folder, or the file exists.
    """
    path = below(folder, name)
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; nothing was replaced. Remove it, or choose another folder.")
    with makeable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def name_problem(name: str) -> str | None:
    """Why a text, such as the id of an image, cannot be the path of a file below a folder; `None` where it can."""
    plain, windows = PurePosixPath(name), PureWindowsPath(name)
    if plain.is_absolute() or (os.name == "nt" and (windows.drive or windows.root)):
        return "is an absolute path"
    if ".." in plain.parts or (os.name == "nt" and ".." in windows.parts):
        return "leads out of the folder"
    if not plain.parts or plain.as_posix() != name or any(ord(letter) < 32 for letter in name):
        return "is no plain relative path"
    if max(len(os.fsencode(part)) for part in plain.parts) > _LONGEST:
        return f"is longer than {_LONGEST} bytes"
    return None


def refuse_overlap(out: str | os.PathLike, inputs: Iterable[Path]) -> None:
    """Refuses to write among files that are read, or over them.

    Raises:
        UserError: The output folder lies in a folder of inputs, or an input in the output folder.
    """
    folder = Path(out)
    with makeable(folder):
        target = folder.expanduser().resolve()
        for place in inputs:
            there = place.resolve()
            if target.is_relative_to(there) and there.is_dir():
                raise UserError(
                    f"out: {folder} lies in {place}, so that results would be taken for pictures; choose another "
                    "folder"
                )
            if there.is_relative_to(target):
                raise UserError(f"out: {folder} holds {place}, which is read; choose another folder")


def link_out(folder: Path) -> Path | None:
    """The first link below a folder that leads out of it."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return path
    return None


def check_temporary() -> None:
    """Check that temporary files can be written, before hours are spent on what needs them.

    Raises:
        UserError: If they cannot.
    """
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise UserError(
            f"temporary folder: cannot be written to ({error.strerror or first_line(error)}); make room there, or set "
            "TMPDIR to another folder."
        ) from error
