"""Splits a batch between the two pathways."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

LEAST_OF_A_HALF = 2


def halves(batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Splits a batch: images 0, 2, 4, ... for the encoder pathway, images 1, 3, 5, ... for the decoder pathway.

    Every other image, since augmented copies are appended behind the whole batch: in an even batch an image and its
    copy go the same way. A batch of fewer than four images goes both ways whole: BatchNorm of a single image behind
    global pooling has one value a channel, which has no variance.

    Args:
        batch (`Mapping[str, Any]`):
            `labels` and whatever else the model takes. Tensors (N, ...) and lists of N are split; the rest is shared.

    Returns:
        `tuple[Mapping[str, Any], Mapping[str, Any]]`: the encoder pathway's batch and the decoder pathway's.
    """
    size = len(batch["labels"])
    if size < 2 * LEAST_OF_A_HALF:
        return batch, batch

    def every_other(start: int) -> dict[str, Any]:
        return {name: value[start::2] if _is_by_image(value, size) else value for name, value in batch.items()}

    return every_other(0), every_other(1)


def _is_by_image(value: Any, size: int) -> bool:
    """Whether it has an entry for each image; a tensor without dimensions is sized too, but its `len` raises."""
    return isinstance(value, Sized) and getattr(value, "ndim", 1) > 0 and len(value) == size
