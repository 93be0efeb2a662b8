"""Corrupted copies of a domain: unseen domains for those who have none.

An image is corrupted when it is loaded; nothing is written or kept. What it becomes depends on the seed, its id, the
kind of corruption and the severity alone: in any order, process or selection it is the same. The random draw is that
of all severities, so that the same fog grows thicker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from deft_hf.data.corruptions.kinds import KINDS, corrupt
from deft_hf.data.domains import Domain
from deft_hf.data.report import DomainReport
from deft_hf.utils.errors import UserError

CORRUPTIONS: tuple[str, ...] = tuple(KINDS)
SEVERITIES = (1, 2, 3, 4, 5)


class CorruptedDomain(Domain):
    """Corrupted copies of the images of a domain, with their masks as they are; made by `corrupted`.

    Its ids are those of the images with the severity behind: `a/b_3`.

    Args:
        name (`str`):
            What the domain is called in tables and metrics.
        clean (`Domain`):
            Where the pairs come from; `.dataset` is its own.
        kind (`str`):
            One of `CORRUPTIONS`.
        seed (`int`):
            Any whole number.
        copies (`Sequence[tuple[int, int]]`):
            The position in `clean` and the severity of each image.
    """

    def __init__(self, name: str, clean: Domain, kind: str, seed: int, copies: Sequence[tuple[int, int]]) -> None:
        orphans = clean.report.images_without_mask, clean.report.masks_without_image
        super().__init__(name, clean.labels, clean.dataset, DomainReport(name, clean.labels, len(copies), *orphans))
        self.report.notes = clean.report.notes
        self.clean = clean
        self.kind = kind
        self.seed = seed
        self.copies = list(copies)

    def __len__(self) -> int:
        return len(self.copies)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the pairs, in order."""
        return [f"{self.clean.ids[position]}_{severity}" for position, severity in self.copies]

    @cached_property
    def contents(self) -> list[tuple[str, str, str]]:
        """Kind and id of each copy with the digests of the clean files; see `Domain.contents`."""
        clean = self.clean.contents
        copies = zip(self.ids, self.copies, strict=True)
        return [(f"{self.kind} {key}", *clean[position][1:]) for key, (position, _) in copies]

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Decodes a pair and corrupts its image; see `Domain.load`."""
        position, severity = self.copies[index]
        image, mask = self.clean.load(position)
        # The id, not the position, so that a selection shows the same pictures; a hash that no process salts.
        words = f"{self.seed}\n{self.kind}\n{self.clean.ids[position]}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(words).digest(), "big"))
        return corrupt(image, self.kind, severity, rng), mask

    def select(self, which: Sequence[str] | Sequence[int]) -> CorruptedDomain:
        """The domain of some of the pairs, in the order given; see `Domain.select`."""
        copies = [self.copies[position] for position in self._positions(which)]
        return CorruptedDomain(self.name, self.clean, self.kind, self.seed, copies)

    def check(self, progress: bool = False, shared: bool = False, cached: bool = False) -> DomainReport:
        """Decodes every clean pair once, whose sizes and labels are those of its copies; see `Domain.check`."""
        clean = self.clean.select(sorted({position for position, _ in self.copies}))
        clean.name, clean.report = self.name, self.report
        report = clean.check(progress, shared, cached)
        report.pairs = len(self)
        return report


def corrupted(
    domain: Domain, kind: str, severity: int | None = None, seed: int = 0, name: str | None = None
) -> CorruptedDomain:
    """A corrupted copy of a domain, to be scored as an unseen one.

    Args:
        domain (`Domain`):
            Where the pairs come from: the validation images, for example. Never the images trained on.
        kind (`str`):
            One of `CORRUPTIONS`.
        severity (`int`, *optional*):
            Severity from 1 to 5. By default all five in one domain, each image five times, severity after severity.
            Its scores are of all pixels of the five together; the mean of five scores, which papers report as
            Cityscapes-C (Kamann & Rother, CVPR 2020, https://arxiv.org/abs/1908.05005), is near, and
            `corruption_suite` has the domains for it.
        seed (`int`, *optional*, defaults to `0`):
            Any whole number.
        name (`str`, *optional*):
            Name of the result; by default the domain's name, the kind and the severity, such as `town_fog_3`, or
            `town_fog` for all five.

    Raises:
        UserError: There is no such kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise UserError(f"corruption: found {kind!r}, expected one of {', '.join(CORRUPTIONS)}")
    if severity is not None and severity not in SEVERITIES:
        raise UserError(f"severity: found {severity!r}, expected one of 1, 2, 3, 4, 5, or None for all five")
    severities = SEVERITIES if severity is None else (severity,)
    copies = [(position, step) for step in severities for position in range(len(domain))]
    return CorruptedDomain(name or corrupted_name(domain.name, kind, severity), domain, kind, seed, copies)


def corruption_suite(
    domain: Domain, kinds: Sequence[str] = CORRUPTIONS, severities: Sequence[int | None] = SEVERITIES, seed: int = 0
) -> list[CorruptedDomain]:
    """`corrupted` copies of every kind and severity, kind by kind; `severities=[None]` for one of each kind.

    Raises:
        UserError: There is no such kind or severity.
    """
    return [corrupted(domain, kind, severity, seed) for kind in kinds for severity in severities]


def corrupted_name(name: str, kind: str, severity: int | None) -> str:
    """What a corrupted copy of a domain is called by default."""
    return f"{name}_{kind}" if severity is None else f"{name}_{kind}_{severity}"
