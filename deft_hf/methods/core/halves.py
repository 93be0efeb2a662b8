"""Which images of a batch go through which pathway, where each gets a half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_OF_A_HALF = 2


def halves(batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The images of the encoder pathway and those of the decoder pathway: every other one, from the first and second.

    Copies that follow the whole batch so stay with their originals where it is even. A batch of fewer than four images
    is both halves: BatchNorm over one image, after a pooling to one pixel, has nothing to normalise by.
    """
    size = len(batch["labels"])
    if size < 2 * LEAST_OF_A_HALF:
        return batch, batch

    def every_other(start: int) -> dict[str, Any]:
        return {
            name: value[start::2] if hasattr(value, "__len__") and len(value) == size else value
            for name, value in batch.items()
        }

    return every_other(0), every_other(1)
