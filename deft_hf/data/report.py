"""What a look at every file of a domain found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import LabelSpace
from deft_hf.data.masks import TRAIN_IDS, Color
from deft_hf.utils.errors import UserError

_NAMED = 5


@dataclass
class Finding:
    """What a look at one pair found; what is not told here is as in `DomainReport`.

    Attributes:
        contents (`tuple[str, str, str]`):
            Its id with the digests of its files.
        size (`tuple[int, int]` or `None`):
            (height, width) of the mask.
        pixels (`np.ndarray` or `None`):
            Pixels of each train id, where the mask could be read.
        palette (`tuple[Mapping[int, Color], str]` or `None`):
            The colours of the indices that a mask uses, which have to be those of the other masks, and its name.
    """

    contents: tuple[str, str, str]
    unreadable: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    dropped_alpha: int = 0
    highest: int = -1
    palette: tuple[Mapping[int, Color], str] | None = None

    @property
    def is_clean(self) -> bool:
        """Whether the pair can be used as it is."""
        return self.pixels is not None and not (self.unreadable or self.unfit or self.unequal or self.outside)

    def to_kept(self) -> list[Any]:
        """What was found in a clean pair as JSON takes it, for `from_kept` at a later start."""
        assert self.pixels is not None
        used = np.flatnonzero(self.pixels)
        palette = None if self.palette is None else [[*self.palette[0].items()], self.palette[1]]
        counts = [used.tolist(), self.pixels[used].tolist()]
        return [self.contents, self.size, counts, self.dropped_alpha, self.highest, palette]

    @classmethod
    def from_kept(cls, kept: Sequence[Any]) -> Finding:
        """The finding that `to_kept` was called on."""
        contents, size, (used, counts), dropped_alpha, highest, palette = kept
        pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
        pixels[used] = counts
        if palette is not None:
            palette = {index: tuple(color) for index, color in palette[0]}, palette[1]
        known = {"dropped_alpha": dropped_alpha, "highest": highest, "palette": palette}
        return cls(tuple(contents), size=None if size is None else tuple(size), pixels=pixels, **known)


@dataclass
class DomainReport:
    """What a domain holds, and what is wrong with it.

    Attributes:
        domain (`str`):
            Name of the domain.
        labels (`LabelSpace`):
            Its label space.
        pairs (`int`):
            Number of pairs.
        images_without_mask (`list[str]`, *optional*, defaults to `[]`):
            Ids of images that were left out since they have no mask.
        masks_without_image (`list[str]`, *optional*, defaults to `[]`):
            Ids of masks that were left out since they have no image.
        checked (`int`, *optional*, defaults to `0`):
            Number of pairs that were decoded; what follows speaks of those.
        left_out (`list[str]`, *optional*, defaults to `[]`):
            A line for each pair that the layout of a data set leaves out.
        unreadable (`list[str]`, *optional*, defaults to `[]`):
            A message for each file that cannot be decoded.
        contents (`list[tuple[str, str, str]]`, *optional*, defaults to `[]`):
            Id of each pair with the digests of its files, see `Domain.contents`.
        unfit (`list[str]`, *optional*, defaults to `[]`):
            A message for each file whose values would not be read as they are.
        dropped_alpha (`int`, *optional*, defaults to `0`):
            Number of images with transparent pixels, whose alpha channel is dropped.
        notes (`list[str]`, *optional*, defaults to `[]`):
            A line for each kind of thing that a reader left out or missed.
        unequal (`list[str]`, *optional*, defaults to `[]`):
            A message for each pair of unequal sizes.
        outside (`list[str]`, *optional*, defaults to `[]`):
            A message for each mask that holds what the label space does not know.
        sizes (`Counter[tuple[int, int]]`, *optional*, defaults to `Counter()`):
            (height, width) of the masks -> how often.
        highest (`int`, *optional*, defaults to `-1`):
            The highest id that masks of 8 bits hold.
        pixels (`np.ndarray`, *optional*, defaults to `np.zeros(256, np.int64)`):
            int64 array (256,): pixels of each train id, the ignored ones at 255.
    """

    domain: str
    labels: LabelSpace
    pairs: int
    images_without_mask: list[str] = field(default_factory=list)
    masks_without_image: list[str] = field(default_factory=list)
    checked: int = 0
    unreadable: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE_INDEX + 1, np.int64))
    left_out: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    contents: list[tuple[str, str, str]] = field(default_factory=list)
    dropped_alpha: int = 0
    notes: list[str] = field(default_factory=list)
    highest: int = -1

    @property
    def shares(self) -> dict[str, float]:
        """Share of all pixels, in 0..1, of each class by name."""
        total = max(int(self.pixels.sum()), 1)
        return {name: int(self.pixels[index]) / total for index, name in enumerate(self.labels.names)}

    @property
    def ignored_share(self) -> float:
        """Share of all pixels, in 0..1, that are ignored."""
        return int(self.pixels[IGNORE_INDEX]) / max(int(self.pixels.sum()), 1)

    def add(self, finding: Finding) -> None:
        """Takes over what a look at one of the pairs found."""
        self.unreadable += finding.unreadable
        self.unfit += finding.unfit
        self.contents.append(finding.contents)
        self.dropped_alpha += finding.dropped_alpha
        self.unequal += finding.unequal
        self.outside += finding.outside
        if finding.size is not None:
            self.sizes[finding.size] += 1
        if finding.pixels is not None:
            self.pixels += finding.pixels
        self.highest = max(self.highest, finding.highest)

    def add_what_all_show(self) -> None:
        """Adds what no file shows alone: masks that are all ignored but for a few, since they hold train ids."""
        if self.labels.stored == "ids" and 0 <= self.highest < TRAIN_IDS and self.ignored_share > 0.5:
            self.outside.append(
                f"{self.domain}: no mask holds an id above {self.highest}, and {self.ignored_share:.0%} of the pixels "
                "are ignored when they are read as ids; these are train ids: say labels: cityscapes_train_ids"
            )

    def raise_if_bad(self, skip_unreadable: bool = False) -> None:
        """Raises one UserError that counts what is wrong and names the first few of each kind; orphans are fine.

        Args:
            skip_unreadable (`bool`, *optional*, defaults to `False`):
                Files that cannot be read are fine too, unless nothing else is left.
        """
        skips = skip_unreadable and len(self.unreadable) < self.pairs
        bad = [(kind, messages) for kind, messages in self._problems() if not (skips and messages is self.unreadable)]
        problems = [line for kind, messages in bad for line in _summary(kind, messages)]
        if problems:
            first = f"{self.domain}: found files that cannot be used among {self.pairs} pairs"
            last = "repair or remove these files, or leave their ids out of the split"
            raise UserError("\n".join([first, *problems, last]))

    def _problems(self) -> Iterator[tuple[str, list[str]]]:
        yield "unreadable files", self.unreadable
        yield "files that cannot be read as they are", self.unfit
        yield "pairs of unequal size", self.unequal
        yield "masks with ids outside the label space", self.outside

    def __str__(self) -> str:
        lines = [f"{self.domain}: {self.pairs} pairs"]
        lines += _summary("images without a mask, left out", self.images_without_mask)
        lines += _summary("masks without an image, left out", self.masks_without_image)
        lines += _summary("pairs of unequal size, left out", self.left_out)
        lines += [f"  {note}" for note in self.notes]
        if not self.checked:
            return "\n".join(lines)
        for kind, messages in self._problems():
            lines += _summary(kind, messages)
        if self.dropped_alpha:
            lines.append(f"  images with transparent pixels, whose alpha channel is dropped: {self.dropped_alpha}")
        sizes = [f"{height} x {width} ({count})" for (height, width), count in self.sizes.most_common(_NAMED)]
        lines.append(f"  sizes (height x width): {', '.join(sizes)}" + _more(len(self.sizes)))
        width = max(map(len, (*self.labels.names, "ignored")))
        for name, share in (*self.shares.items(), ("ignored", self.ignored_share)):
            absent = "" if share or name == "ignored" else "  no pixel"
            lines.append(f"  {name:<{width}}  {share:7.2%}{absent}")
        return "\n".join(lines)


def listed(entries: Sequence[str]) -> str:
    """The first few entries in one line, and how many more there are."""
    return ", ".join(entries[:_NAMED]) + _more(len(entries))


def _summary(kind: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    rest = [f"    {_more(len(entries))}"] if len(entries) > _NAMED else []
    return [f"  {kind}: {len(entries)}", *(f"    {entry}" for entry in entries[:_NAMED]), *rest]


def _more(count: int) -> str:
    return f" and {count - _NAMED} more" if count > _NAMED else ""
