"""Items to batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
