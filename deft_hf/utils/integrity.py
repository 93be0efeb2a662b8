"""Folders that are complete or absent: manifests, the last intact checkpoint, and errors of a full disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.files import MANIFEST, STATE

logger = logging.getLogger(__name__)

STATISTICS_DUE = "batchnorm_due"  # of `deft_state.json`: the BatchNorm statistics are not yet those of the weights
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_CHUNK = 1 << 20
_WINDOWS = os.name == "nt"  # which flushes a file through a handle that may write, and no folder


# ---- manifests


def write_manifest(folder: Path) -> None:
    """Write the size and SHA-256 of every file below `folder`, flushed to the disk, into its `manifest.json`."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path, flush=True)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n")
    _sync(manifest)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync(place)


def damage(folder: str | Path) -> str | None:
    """What is wrong with a folder that has a manifest; `None` if every file is as it was written.

    A manifest detects accidents: a file that is truncated, missing, added or changed. It is not a signature.
    """
    folder = Path(folder)
    try:
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        expected = {str(name): (int(facts["size"]), str(facts["sha256"])) for name, facts in listed.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST} cannot be read ({type(error).__name__}: {error})"
    try:
        present = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
        } - {MANIFEST}
        if missing := sorted(expected.keys() - present):
            return f"{missing[0]} is missing"
        # An unknown file could be one that loading looks for first.
        if unknown := sorted(present - expected.keys()):
            return f"{unknown[0]} is not in its {MANIFEST}"
        for name, (size, digest) in expected.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} is not the {size} bytes that were written"
            if _sha256(path) != digest:
                return f"{name} is not what was written (SHA-256)"
    except OSError as error:
        return f"it cannot be read ({error})"
    return None


def refuse_damaged(folder: Path, statistics_anew: bool = False) -> None:
    """Look at a checkpoint's manifest, where the folder is one, and warn of one that was saved in a hurry.

    Args:
        folder (`Path`):
            A folder that may hold a checkpoint.
        statistics_anew (`bool`, *optional*, defaults to `False`):
            Whether the caller takes the BatchNorm statistics anew: there is then nothing to warn of.

    Raises:
        UserError: If it is damaged.
    """
    is_checkpoint = (folder / MANIFEST).exists() or (folder / STATE).exists() or folder.name.startswith("checkpoint-")
    if is_checkpoint and folder.is_dir() and (problem := damage(folder)):
        raise UserError(f"{folder} is damaged: {problem}. Take another checkpoint.")
    if not statistics_anew and _lacks_statistics(folder):
        logger.warning(
            f"{folder} was saved at SIGTERM, with the BatchNorm statistics that training had left by then: resume the "
            "run, or export it with --bn reestimate."
        )


def _lacks_statistics(folder: Path) -> bool:
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and state.get(STATISTICS_DUE) is True


def _sha256(path: Path, flush: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "r+b" if flush and _WINDOWS else "rb") as file:
        if flush:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, where the system can."""
    if path.is_dir() and _WINDOWS:
        return
    handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- folders that appear complete


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old content or the new one, also after a crash."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(text.encode("utf-8"))
    _sync(part)
    os.replace(part, path)


def partial_folder(folder: Path) -> Path:
    """Where `folder` is written before it is renamed, so that a crash leaves no partial checkpoint under its name."""
    return folder.with_name(f".{folder.name}.partial")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def put_in_place(partial: Path, folder: Path) -> None:
    """Write the manifest of a complete folder, flush it, and rename it into place, replacing an old one."""
    write_manifest(partial)
    if folder.exists():
        os.replace(folder, _replaced(folder))  # kept until the new one is in place: see `clear_leftovers`
    os.replace(partial, folder)
    _sync(folder.parent)
    shutil.rmtree(_replaced(folder), ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder so that a crash in between leaves nothing under its name."""
    leaving = partial_folder(folder)
    shutil.rmtree(leaving, ignore_errors=True)
    os.replace(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a run left behind that was killed while saving, and restore what it had moved away."""
    for path in folder.glob(".checkpoint-*.replaced"):
        whole = folder / path.name.removeprefix(".").removesuffix(".replaced")
        if whole.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.replace(path, whole)
    for path in folder.glob(".checkpoint-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


# ---- checkpoints


def checkpoints(folder: str | Path) -> list[Path]:
    """The `checkpoint-N` folders of a run, the latest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: str | Path) -> int:
    """The step N of a `checkpoint-N` folder."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def last_good_checkpoint(folder: str | Path) -> str | None:
    """The latest intact checkpoint of a run; damaged ones are skipped with a warning."""
    present = checkpoints(folder)
    for checkpoint in present:
        problem = damage(checkpoint)
        if problem is None:
            return str(checkpoint)
        logger.warning(f"{checkpoint} is damaged and skipped: {problem}.")
    if present:
        logger.warning(f"None of the {len(present)} checkpoints in {folder} is intact.")
    return None


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until `limit` are left, `newest`, which was just written, included.

    Never the best one, and never `newest`, even if others have higher numbers: those were damaged and skipped.
    """
    if limit is None or limit <= 0:
        return
    present = checkpoints(newest.parent)
    kept = [newest, *(path for path in present if best is not None and path == Path(best) and path != newest)]
    others = [path for path in present if path not in kept]
    others.sort(key=lambda path: (step_of(path) < step_of(newest), step_of(path)), reverse=True)
    for path in others[max(limit - len(kept), 0) :]:
        remove(path)


# ---- results


def whole_number(text: str) -> int:
    """A whole number in a JSON file that a run wrote, for `parse_int=`; none has more than 64 bits."""
    value = int(text)
    if abs(value) >= 2**63:
        raise ValueError(f"found the number {text[:30]}, which no run writes")
    return value


def read_json(path: Path, expected: Callable[[Any], bool], way_out: str) -> Any:
    """What a JSON file of a finished run holds.

    Args:
        path (`Path`):
            The file.
        expected (`Callable`):
            Whether it is what the run wrote, as far as can be told.
        way_out (`str`):
            What the user can do about a damaged one.

    Raises:
        UserError: It is damaged, or of something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"), parse_int=whole_number)
        if expected(found):
            return found
        reason = "it is of something else"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise UserError(f"{path}: cannot be used ({reason}); {way_out}.")


# ---- the disk


def check_writable(folder: str | Path) -> None:
    """Create the folder and a file in it, to fail before training rather than after.

    Raises:
        UserError: If either is impossible.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-") as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}); nothing was trained or written. Make room or get "
            "write permission, or choose another folder."
        ) from error


@contextmanager
def writing(folder: str | Path, kept: Callable[[], str]) -> Iterator[None]:
    """Wrap what writes to `folder`: a full or failing disk becomes one message.

    Args:
        folder (`str` or `Path`):
            Folder that is written to.
        kept (`Callable[[], str]`):
            Returns what the user still has and can do; called only after a failure.

    Raises:
        UserError: In place of the errors of the system, of safetensors and of torch's writer.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save raises a bare RuntimeError; any other is not about the disk.
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|inline_container", str(error)):
            raise
        place = Path(folder)
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 2**20
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        found = f"{reason}; {free:,.0f} MiB are free there"
        raise UserError(f"{folder}: could not be written ({found}). {kept()}") from error
