"""Random numbers that leave those of a run alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """A seeded stretch that leaves the random states of the run, those of its device too, as they were.

    Args:
        seed (`int`):
            Seed of Python's, numpy's and torch's generators inside the block.
        device (`torch.device`):
            Device whose generator is restored too.
    """
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            random.seed(seed)
            np.random.seed(seed)
            if device.type == "cpu":  # `torch.manual_seed` would seed every other device too
                torch.default_generator.manual_seed(seed)
            else:
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
