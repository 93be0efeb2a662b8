"""Finding and reading the files of a label export."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deft_hf.data.files import IMAGE_SUFFIXES, check_name
from deft_hf.data.report import listed
from deft_hf.utils.errors import UserError

_FARTHEST = 1e9  # pixels from the corner; no image is as large, and NaN is not below it


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); export the labels again") from error


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); export the labels again") from error


def damaged(path: str | os.PathLike, what: str) -> UserError:
    """The error for a file that is not what its format says."""
    return UserError(f"{os.fspath(path)}: {what}; export the labels again")


@contextmanager
def read_as(path: Path, what: str) -> Iterator[None]:
    """Wrap what takes a file apart: a key that is missing, or a value of another type, becomes one message.

    Raises:
        UserError: In place of what Python raises.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"is no {what} ({type(error).__name__}: {error})") from error


def beginning(path: Path, size: int = 2**16) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError:
        return b""


def ring(values: Any) -> list[float] | None:
    """`[x, y, x, y, ...]` of a polygon, given so or as pairs; `None` for fewer than three points or no numbers."""
    try:
        flat = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError):
        return None
    is_one = flat.size >= 6 and flat.size % 2 == 0 and bool((np.abs(flat) < _FARTHEST).all())
    return flat.tolist() if is_one else None


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    """The ring of a rectangle."""
    return [left, top, right, top, right, bottom, left, bottom]


def needs_pycocotools(path: Path) -> None:
    """Refuses to go on without what draws COCO's and CVAT's polygons.

    Raises:
        UserError: It is not installed.
    """
    if find_spec("pycocotools") is None:
        raise UserError(f"{path}: reading it needs pycocotools: pip install 'deft-hf[import]'")


class Images:
    """The image files below a folder.

    Args:
        folder (`Path`):
            The folder of an export.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._named: dict[str, list[Path]] = defaultdict(list)
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders[:] = sorted(
                each for each in folders if not each.startswith(".") and not _loops(Path(parent, each))
            )
            for file in sorted(files):
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                    self._named[unicodedata.normalize("NFC", file)].append(Path(parent, file))

    def find(self, name: str, near: Sequence[Path] = ()) -> Path | None:
        """The file that an export means by a name, a path or a URL; `None` if it is not there.

        Args:
            name (`str`):
                What the export says, with slashes or backslashes, of this machine or another.
            near (`Sequence[Path]`, *optional*, defaults to `()`):
                Folders that it may start at, the likeliest first.

        Raises:
            UserError: Several files could be meant.
        """
        name = unicodedata.normalize("NFC", name.replace("\\", "/"))
        for start in near:
            if (start / name).is_file():
                return Path(os.path.normpath(start / name))
        parts = PurePosixPath(name).parts
        named = self._named.get(parts[-1], []) if parts else []
        best = max((_shared(path, parts) for path in named), default=0)
        candidates = [path for path in named if _shared(path, parts) == best]
        inside = [path for path in candidates if near and path.is_relative_to(near[0])]
        candidates = inside or candidates
        if len(candidates) > 1:
            places = listed([str(path) for path in candidates])
            raise UserError(f"{self.folder}: {name} may be any of {places}; keep the one that the labels are for")
        return candidates[0] if candidates else None

    def inside(self, folder: Path) -> list[Path]:
        """The files in a folder and below it, in order."""
        return sorted(path for paths in self._named.values() for path in paths if path.is_relative_to(folder))

    def others(self, used: Iterable[Path | None]) -> list[Path]:
        """The files that are not among those."""
        known = set(used)
        return sorted(path for paths in self._named.values() for path in paths if path not in known)

    def key(self, path: Path | str) -> str:
        """The id of an image: its path below the folder without type; its name alone where it lies elsewhere."""
        path = Path(path)
        check_name(path)
        place = path.relative_to(self.folder) if path.is_relative_to(self.folder) else Path(path.name)
        return unicodedata.normalize("NFC", place.with_suffix("").as_posix())


def _loops(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _shared(path: Path, parts: tuple[str, ...]) -> int:
    """How many parts two paths have in common, from the file name up."""
    pairs = zip(reversed(path.parts), reversed(parts), strict=False)
    return next((count for count, (one, two) in enumerate(pairs) if one != two), min(len(path.parts), len(parts)))
