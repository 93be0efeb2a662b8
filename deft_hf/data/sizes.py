"""Sizes as evaluation protocols state them: what images are resized to, and pairs that are made smaller themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.domains import Domain
from deft_hf.data.report import DomainReport

EvalSize = tuple[int, int] | Mapping[str, int] | Literal["own"] | None
"""(height, width); `{"short": n}`, `{"long": n}` or both; or an image's own size (`"own"`, or `None`)."""

Change = Callable[[Image.Image, np.ndarray], tuple[Image.Image, np.ndarray]]


def resized(own: tuple[int, int], size: EvalSize) -> tuple[int, int]:
    """What an image is resized to.

    With `short` or `long` the aspect ratio is kept, and the other side rounded down, as the image processors of
    transformers do for `shortest_edge`, and for `max_height` and `max_width`. With both, the shorter side becomes
    `short`, or less where the longer one would exceed `long`: mmsegmentation's `Resize` with `keep_ratio`.

    Args:
        own (`tuple[int, int]`):
            (height, width) of the image.
        size (`EvalSize`):
            What the shorter or the longer side becomes, or both.

    Returns:
        `tuple[int, int]`: (height, width) in pixels.
    """
    if size is None or size == "own":
        return own
    if not isinstance(size, Mapping):
        return size[0], size[1]
    height, width = own
    if "short" not in size:
        scale = min(size["long"] / height, size["long"] / width)
        return max(int(height * scale), 1), max(int(width * scale), 1)
    exact: float = size["short"]
    if (long := size.get("long")) is not None and max(own) / min(own) * exact > long:
        exact = long * min(own) / max(own)
    sides = max(round(exact), 1), max(int(exact * max(own) / min(own)), 1)
    return sides if height <= width else sides[::-1]


def halve(image: Image.Image, mask: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Half of each side, rounded down: the image bicubic, the mask nearest, as Rein halves Mapillary Vistas.

    Rein (Wei et al., CVPR 2024, https://arxiv.org/abs/2312.04265) stores its halves as JPEG files in between; here
    nothing is compressed again.
    """
    width, height = max(image.width // 2, 1), max(image.height // 2, 1)
    return image.resize((width, height), Image.Resampling.BICUBIC), _nearest(mask, (width, height))


@dataclass(frozen=True)
class CropOrPad:
    """A square: its height that of the resized pair (image bicubic, mask nearest), its width cropped or padded.

    RobustNet (Choi et al., CVPR 2021, https://arxiv.org/abs/2103.15597) scores Mapillary Vistas on such squares of
    1536. What is padded is black.

    Args:
        side (`int`):
            Height and width in pixels.
        pad_label (`int`, *optional*, defaults to `255`):
            What padding counts as: 255, which is ignored, of a pair in the middle; or 0, the first class, which
            RobustNet's public code makes of it. That code then puts a narrow pair beside the middle, by the width of
            all padding to the right, and cuts off what sticks out; with 0 it stands there too.
    """

    side: int
    pad_label: int = IGNORE_INDEX

    def __call__(self, image: Image.Image, mask: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        width = max(int(image.width / image.height * self.side), 1)
        left = round((width - self.side) / 2)
        if width < self.side and self.pad_label != IGNORE_INDEX:
            left -= self.side - width
        box = (left, 0, left + self.side, self.side)
        square = Image.new("L", (self.side, self.side), self.pad_label)
        square.paste(Image.fromarray(_nearest(mask, (width, self.side))), (-left, 0))
        return image.resize((width, self.side), Image.Resampling.BICUBIC).crop(box), np.array(square)


class ResizedDomain(Domain):
    """A domain whose pairs are changed when they are loaded, and scored as they are then.

    Args:
        whole (`Domain`):
            Where the pairs come from; `.dataset` is its own.
        change (`Change`):
            Called with an image and its mask: [`halve`], or a [`CropOrPad`].
    """

    def __init__(self, whole: Domain, change: Change) -> None:
        report = DomainReport(whole.name, whole.labels, len(whole), *_orphans(whole))
        super().__init__(whole.name, whole.labels, whole.dataset, report)
        self.report.left_out, self.report.notes = whole.report.left_out, whole.report.notes
        self.whole = whole
        self.change = change

    def __len__(self) -> int:
        return len(self.whole)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the pairs, in order."""
        return self.whole.ids

    @cached_property
    def contents(self) -> list[tuple[str, str, str]]:
        """The change and the id of each pair with the digests of its files; see `Domain.contents`."""
        change = getattr(self.change, "__name__", repr(self.change))
        return [(f"{change} {key}", image, mask) for key, image, mask in self.whole.contents]

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Decodes a pair and changes it; see `Domain.load`."""
        return self.change(*self.whole.load(index))

    def select(self, which: Sequence[str] | Sequence[int]) -> ResizedDomain:
        """The domain of some of the pairs, in the order given; see `Domain.select`."""
        return ResizedDomain(self.whole.select(which), self.change)

    def check(self, progress: bool = False, shared: bool = False, cached: bool = False) -> DomainReport:
        """Decodes every pair once, as it is before the change; see `Domain.check`."""
        return self.whole.check(progress, shared, cached)


def _orphans(domain: Domain) -> tuple[list[str], list[str]]:
    return domain.report.images_without_mask, domain.report.masks_without_image


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
