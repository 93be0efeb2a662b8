"""Items to batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deft_hf.data.constants import IGNORE_INDEX


def collate(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Makes a batch of items of a `TrainingSet` or an `EvaluationSet`.

    Args:
        samples: Each with `pixel_values`: float32 (3, h, w), `labels`: int64 (H, W) and, in all or none,
            `recolored_pixel_values`: float32 (3, h, w).

    Returns:
        `pixel_values`: (N, 3, h, w) and `labels`: (N, H, W). Recoloured copies double the batch: the originals come
        first, the copies after them in the same order, and the labels twice. An entry whose tensors differ in size is
        the list of them instead.
    """
    pixel_values = [sample["pixel_values"] for sample in samples]
    labels = [sample["labels"] for sample in samples]
    if "recolored_pixel_values" in samples[0]:
        pixel_values += [sample["recolored_pixel_values"] for sample in samples]
        labels = labels * 2
    return {"pixel_values": _stack(pixel_values), "labels": _stack(labels)}


class MaskTargets:
    """Adds the targets of mask classification to what a collator makes.

    Args:
        collator: makes a batch with `labels`: (N, H, W) int64 or a list of N (H, W), 255 = ignored.
    """

    def __init__(self, collator: Callable[[Any], dict[str, Any]] = collate) -> None:
        self.collator = collator

    def __call__(self, samples: Any) -> dict[str, Any]:
        """The collator's batch with, for N images of which image i shows n_i classes,

        * `class_labels`: list of N int64 (n_i,), the classes in order; n_i is 0 where nothing is labelled;
        * `mask_labels`: list of N bool (n_i, H, W), the pixels of each; none is empty, and 255 is in none.
        """
        batch = self.collator(samples)
        masks, classes = zip(*map(mask_targets, batch["labels"]), strict=True)
        return {**batch, "mask_labels": list(masks), "class_labels": list(classes)}


def mask_targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks, bool (n, H, W), and ids, int64 (n,), of the classes that `labels`, int64 (H, W), shows."""
    classes = labels.unique()
    classes = classes[classes != IGNORE_INDEX]
    return labels == classes[:, None, None], classes


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
