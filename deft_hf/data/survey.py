"""What the pairs of a domain hold before anyone has said what their values mean."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.look import Look, opened
from deft_hf.data.masks import Color, used_colors
from deft_hf.data.opening import MaskReader, open_row, unequal
from deft_hf.data.pictures import DEEP
from deft_hf.utils.errors import UnreadableFile, UserError

_PIECES_OF = 24  # masks
_IDS_AT_MOST = 64  # of one of them


@dataclass(frozen=True)
class PairFacts:
    """What a pair holds.

    Attributes:
        id (`str`):
            Its id in its domain.
        size (`tuple[int, int]`):
            (height, width) of the mask.
        by_color (`bool`):
            Whether the mask has colours; ids or indices otherwise.
        values (`Mapping[int, int]`):
            Pixels of each id, or of each colour as `red << 16 | green << 8 | blue`.
        palette (`Mapping[int, Color]` or `None`):
            Of an indexed mask, the colours of the indices in use.
        pieces (`float` or `None`):
            How many connected pieces an id above 0 is made of, on average; `None` where that was not looked at.
        extremes (`tuple[float, float]` or `None`):
            Of an image of more than 8 bits, its lowest and its highest value.
        grey (`bool`):
            Whether the image has one band.
    """

    id: str
    size: tuple[int, int]
    by_color: bool
    values: Mapping[int, int]
    palette: Mapping[int, Color] | None
    pieces: float | None
    extremes: tuple[float, float] | None
    grey: bool


@dataclass
class Survey:
    """What the pairs of some domains hold.

    Attributes:
        pairs (`list[PairFacts]`):
            Every pair that can be used.
        unreadable (`list[str]`):
            A message for each file that cannot be read.
        unfit (`list[str]`):
            A message for each file that is not read as it is, and for each pair of unequal sizes.
    """

    pairs: list[PairFacts] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    @property
    def values(self) -> Counter[int]:
        """Pixels of each id or colour in all masks."""
        total: Counter[int] = Counter()
        for pair in self.pairs:
            total.update(pair.values)
        return total

    @property
    def extremes(self) -> tuple[float, float] | None:
        """Lowest and highest value of the images of more than 8 bits."""
        deep = [pair.extremes for pair in self.pairs if pair.extremes]
        return (min(low for low, _ in deep), max(high for _, high in deep)) if deep else None

    def add(self, other: Survey) -> None:
        """Takes over what was found elsewhere."""
        self.pairs += other.pairs
        self.unreadable += other.unreadable
        self.unfit += other.unfit


def survey(domain: Domain, labels: LabelSpace | None = None, progress: bool = False) -> Survey:
    """Decodes every mask once, in threads, and reads the headers of the images.

    Args:
        domain (`Domain`):
            The pairs; its own label space is not asked.
        labels (`LabelSpace`, *optional*):
            What the masks hold, where that is known: then the values are train ids.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
    """
    found = Survey()
    closely = {index * len(domain) // _PIECES_OF for index in range(_PIECES_OF)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reader = domain.mask_reader
        looks = pool.map(
            lambda index: _look(domain.dataset[index], labels, reader, index in closely), range(len(domain))
        )
        for look in tqdm(looks, desc=f"looking at {domain.name}", total=len(domain), disable=not progress):
            if isinstance(look, PairFacts):
                found.pairs.append(look)
            elif isinstance(look, UnreadableFile):
                found.unreadable.append(str(look))
            else:
                found.unfit.append(str(look))
    return found


def _look(
    row: dict[str, Any], labels: LabelSpace | None, reader: MaskReader | None, closely: bool
) -> PairFacts | UserError:
    try:
        size, extremes, grey, image_name = _image(row)
        mask, name = open_row(row, f"{row['id']} (mask)", size, reader)
        if size != mask.size:
            return UserError(unequal(Image.new("1", size), image_name, mask, name))
        by_color = labels is None and mask.mode in ("RGB", "RGBA")
        raw = _raw(mask, name) if labels is None else labels.encode(mask, name)
        values = _counted(raw)
    except UserError as error:
        return error
    palette = used_colors(mask) if mask.mode == "P" and labels is None else None
    pieces = _pieces(raw, values) if closely and labels is None and not by_color else None
    return PairFacts(row["id"], mask.size[::-1], by_color, values, palette, pieces, extremes, grey)


def _image(row: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[float, float] | None, bool, str]:
    """Width and height as EXIF turns them, extremes of deep images, whether it is grey, and its name."""
    stored = row["image"]
    name = stored["path"] if stored["bytes"] is None else f"{row['id']} (image)"
    try:
        with opened(stored["path"] if stored["bytes"] is None else stored["bytes"]) as picture:
            size = picture.size
            if picture.getexif().get(0x0112) in (5, 6, 7, 8):  # turned by a quarter
                size = size[::-1]
            mode, stretched = picture.mode, Look.at(picture).format == "PPM"
            extremes = None
            if (mode in DEEP or mode.startswith("I;16")) and not stretched:
                values = np.asarray(picture)
                finite = values[np.isfinite(values)]
                extremes = (float(finite.min()), float(finite.max())) if finite.size else None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # whatever Pillow's decoders stumble over
        raise UnreadableFile(f"{name}: cannot be read ({error}); replace the file or leave the pair out") from error
    return size, extremes, mode in ("1", "L", "F", "I", "LA") or mode.startswith("I;16"), name


def _raw(mask: Image.Image, name: str) -> np.ndarray:
    pixels = np.asarray(mask)
    if mask.mode in ("RGB", "RGBA"):
        channels = pixels.astype(np.int64)
        return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    if pixels.ndim != 2 or pixels.dtype.kind not in "bui":
        raise UserError(f"{name}: found a mask of mode {mask.mode}, expected ids, a palette or RGB colours")
    return pixels.astype(np.int64)


def _counted(raw: np.ndarray) -> dict[int, int]:
    if 0 <= raw.min() and raw.max() < 65536:
        counts = np.bincount(raw.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(raw, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _pieces(raw: np.ndarray, values: Mapping[int, int]) -> float | None:
    ids = [value for value in values if 0 < value < 65536][:_IDS_AT_MOST]
    if not ids:
        return None
    boxes: Sequence[Any] = ndimage.find_objects(np.where(raw < 65536, raw, 0).clip(0).astype(np.int32))
    around = np.ones((3, 3))
    return float(np.mean([ndimage.label(raw[boxes[value - 1]] == value, around)[1] for value in ids]))
