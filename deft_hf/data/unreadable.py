"""Images that become unreadable during a run: stop, or let a neighbour stand in and count."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.utils.errors import UnreadableFile, UserError

POLICIES = ("stop", "skip")
logger = logging.getLogger(__name__)


class Reader:
    """Reads the pairs of some domains and notes what could not be read.

    Args:
        domains (`Sequence[Domain]`):
            Where the pairs are.
        policy (`str`):
            `stop`: what cannot be read is an error. `skip`: the next pair of the domain that can be read stands in,
            the same one in whichever process.

    Attributes:
        missing (`list[Tensor]`):
            By domain, which pairs could not be read: bool (pairs,), in memory that data-loader workers share.
    """

    def __init__(self, domains: Sequence[Domain], policy: str) -> None:
        if policy not in POLICIES:
            raise UserError(f"unreadable: found {policy!r}, expected one of {', '.join(POLICIES)}")
        self.domains = domains
        self.skips = policy == "skip"
        self.missing = [torch.zeros(len(domain), dtype=torch.bool).share_memory_() for domain in domains]

    def load(self, which: int, index: int) -> tuple[Image.Image, np.ndarray, bool]:
        """A pair of the domain number `which`, and whether it is the one asked for.

        Raises:
            UserError: If the pair cannot be read, and nothing may or can stand in; or it contradicts the label space.
        """
        domain = self.domains[which]
        for step in range(len(domain)):
            position = (index + step) % len(domain)
            try:
                return *domain.load(position), step == 0
            except UnreadableFile as error:
                if not self.skips:
                    raise
                if not self.missing[which][position]:
                    self.missing[which][position] = True
                    logger.warning(f"{error}. Another image of {domain.name} stands in.")
        raise UserError(f"{domain.name}: none of its {len(domain)} images can be read any more")

    def found(self) -> dict[str, list[str]]:
        """By domain, the ids of what could not be read."""
        found: dict[str, list[str]] = {}
        for domain, missing in zip(self.domains, self.missing, strict=True):
            ids = [domain.ids[position] for position in missing.nonzero().flatten().tolist()]
            found |= {domain.name: [*found.get(domain.name, []), *ids]} if ids else {}
        return found

    def note(self, found: Mapping[str, Iterable[str]]) -> None:
        """Take over what another process, or the run before it was broken off, could not read."""
        for domain, missing in zip(self.domains, self.missing, strict=True):
            ids = set(found.get(domain.name, ()))
            missing |= torch.tensor([key in ids for key in domain.ids], dtype=torch.bool)
