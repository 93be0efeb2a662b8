"""Where the classes of a domain are: pixels of each class in each image, and the middles of its parts."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from tqdm.auto import tqdm

from deft_hf.data import kept
from deft_hf.data.domains import Domain
from deft_hf.data.opening import open_row
from deft_hf.utils.errors import UnreadableFile

_FORMAT = 1


@dataclass(frozen=True)
class ClassIndex:
    """Where the classes of a domain are.

    Attributes:
        pixels (`np.ndarray`):
            int64 (images, classes), pixels of each class in each image; none for a mask that cannot be read.
        centroids (`np.ndarray`):
            int32 (n, 4): position of an image, class, and row and column of the centroid of the class within a tile of
            the image, in pixels. Empty where no tiles were asked for.
    """

    pixels: np.ndarray
    centroids: np.ndarray

    @classmethod
    def of(
        cls,
        domain: Domain,
        tile: int | None = None,
        workers: int | None = None,
        cache: str | os.PathLike | None = None,
        progress: bool = False,
    ) -> ClassIndex:
        """Decodes every mask of a domain once, in threads, or takes what was kept of an earlier time.

        Args:
            domain (`Domain`):
                The domain.
            tile (`int`, *optional*):
                Side in pixels of the square tiles in which centroids are taken, from the top left corner on. As in
                RobustNet's code (https://github.com/shachoi/RobustNet), what is left of a row or a column of tiles has
                none; an image that is smaller is one tile. None: no centroids.
            workers (`int`, *optional*):
                Threads; by default one a core.
            cache (`str` or `os.PathLike`, *optional*):
                Folder in which indices are kept by the ids and contents of pairs, the label space and the tile; by
                default `deft_hf/class_index` in the assets of the Hub's client (`HF_ASSETS_CACHE`).
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Raises:
            UserError: A mask contradicts the label space.

        Example:

        ```python
        >>> from deft_hf import Domain
        >>> from deft_hf.data import ClassIndex

        >>> town = Domain.from_streets("clear", count=2, size=(48, 64))
        >>> ClassIndex.of(town).pixels.shape
        (2, 7)

        ```
        """
        name = _key(domain, tile)
        path = kept.path_of("class_index", name, "npz") if cache is None else Path(cache, f"{name}.npz")
        if (known := _read(path, len(domain), domain.labels.num_labels)) is not None:
            return known
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            looks = pool.map(lambda index: _look(domain, index, tile), range(len(domain)))
            seen = [*tqdm(looks, desc=f"classes of {domain.name}", total=len(domain), disable=not progress)]
        pixels = np.array([pixels for pixels, _ in seen], np.int64).reshape(-1, domain.labels.num_labels)
        found = cls(pixels, np.concatenate([np.empty((0, 4), np.int32), *(centroids for _, centroids in seen)]))
        _write(path, found)
        return found


def shared_indices(domains: Sequence[Domain], tile: int | None = None) -> list[ClassIndex]:
    """The class index of each domain, which the main process makes for all.

    Args:
        domains (`Sequence[Domain]`):
            The domains.
        tile (`int`, *optional*):
            As for [`ClassIndex.of`].
    """
    found: list[Any] = [None]
    if PartialState().is_main_process:
        found = [[ClassIndex.of(domain, tile, progress=True) for domain in domains]]
    (indices,) = broadcast_object_list(found)
    return indices


def frequencies(indices: Sequence[ClassIndex]) -> np.ndarray:
    """Share of each class in the labelled pixels of some domains, float64 (classes,)."""
    totals = np.sum([index.pixels.sum(0) for index in indices], 0)
    return totals / max(totals.sum(), 1)


def _look(domain: Domain, position: int, tile: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels by class, and the centroids of an image."""
    classes = domain.labels.num_labels
    try:
        mask = _mask(domain, position)
    except UnreadableFile:  # for training to stop at, or to let another image stand in
        return np.zeros(classes, np.int64), np.empty((0, 4), np.int32)
    pixels = np.array(Image.fromarray(mask).histogram()[:classes], np.int64)
    rows = [] if tile is None else [(position, *centroid) for centroid in _centroids(mask, tile, pixels.nonzero()[0])]
    return pixels, np.array(rows, np.int32).reshape(-1, 4)


def _mask(domain: Domain, position: int) -> np.ndarray:
    """The train ids of a pair; its image is decoded only where the mask is drawn for it, or changed with it."""
    if type(domain) is not Domain or "shapes" in domain.dataset.column_names:
        return domain.load(position)[1]
    row = domain.dataset[position]
    return domain.labels.encode(*open_row(row, f"{domain.name}/{row['id']} (mask)", None, domain.mask_reader))


def _centroids(mask: np.ndarray, tile: int, classes: np.ndarray) -> list[tuple[int, int, int]]:
    """Class, row and column of the centroids of classes in the tiles of a mask."""
    found = []
    corners = [range(0, max(side // tile, 1) * tile, tile) for side in mask.shape]
    for top in corners[0]:
        for left in corners[1]:
            part = mask[top : top + tile, left : left + tile]
            # Four times as fast as sums of 64 bits, which a row or a column of a tile does not need.
            counted = np.uint16 if max(part.shape) < 2**16 else np.int64
            for each in classes:
                inside = (part == each).view(np.uint8)
                rows, columns = (np.add.reduce(inside, axis=axis, dtype=counted) for axis in (1, 0))
                if count := int(rows.sum()):
                    row, column = (int(line @ np.arange(len(line))) // count for line in (rows, columns))
                    found.append((int(each), top + row, left + column))
    return found


# ---- the cache


def _key(domain: Domain, tile: int | None) -> str:
    reader = domain.mask_reader and (domain.mask_reader.__module__, domain.mask_reader.__qualname__)
    return hashlib.sha256(repr((_FORMAT, tile, domain.labels, reader, domain.contents)).encode()).hexdigest()


def _read(path: Path, images: int, classes: int) -> ClassIndex | None:
    """What is kept; `None` where there is nothing, or something damaged."""
    try:
        with np.load(path) as arrays:
            index = ClassIndex(arrays["pixels"], arrays["centroids"])
    except Exception:  # NumPy, zipfile and zlib raise whatever a damaged archive makes them stumble over
        return None
    return index if index.pixels.shape == (images, classes) else None


def _write(path: Path, index: ClassIndex) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, pixels=index.pixels, centroids=index.centroids)
    kept.write_bytes(path, stream.getvalue())
