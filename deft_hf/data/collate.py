"""Items to batches, and the check of what comes out: shapes, types and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.utils.errors import UserError

_EXPECTED = (
    "expected pixel_values, floats of shape (channels, height, width), as an image processor makes them, and labels, "
    f"whole numbers of shape (height, width): the class of each pixel, {IGNORE_INDEX} where it is ignored"
)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes a batch of items of a `TrainingSet`, an `EvaluationSet` or any data set with the same entries.

    Args:
        samples (`Sequence[Mapping[str, Any]]`):
            Each with `pixel_values`: float (3, h, w), `labels`: whole numbers (H, W) and, in all or none,
            `recolored_pixel_values`: float (3, h, w); as tensors, NumPy arrays or nested lists. What else they hold is
            left out.

    Returns:
        `pixel_values`: float32 (N, 3, h, w) and `labels`: int64 (N, H, W). Recoloured copies double the batch: the
        originals come first, the copies after them in the same order, and the labels twice. An entry whose tensors
        differ in size is the list of them instead.

    Raises:
        UserError: An item has other entries, shapes or types.
    """
    items = [item_tensors(sample) for sample in samples]
    pixel_values = [item["pixel_values"] for item in items]
    labels = [item["labels"] for item in items]
    recolored = sum("recolored_pixel_values" in item for item in items)
    if 0 < recolored < len(items):
        raise UserError(
            f"{recolored} of the {len(items)} items of a batch have recolored_pixel_values; give them to all or none"
        )
    if recolored:
        pixel_values += [item["recolored_pixel_values"] for item in items]
        labels = labels * 2
    return {"pixel_values": _stack(pixel_values), "labels": _stack(labels)}


class MaskTargets:
    """Adds the targets of mask classification to what a collator makes.

    Args:
        collator (`Callable[[Any], dict[str, Any]]`, *optional*, defaults to `collate`):
            Makes a batch with `labels`: (N, H, W) int64 or a list of N (H, W), 255 = ignored.
    """

    def __init__(self, collator: Callable[[Any], dict[str, Any]] = collate) -> None:
        self.collator = collator

    def __call__(self, samples: Any) -> dict[str, Any]:
        """The collator's batch and its targets, for N images of which image i shows n_i classes.

        * `class_labels`: list of N int64 (n_i,), the classes in order; n_i is 0 where nothing is labelled;
        * `mask_labels`: list of N bool (n_i, H, W), the pixels of each; none is empty, and 255 is in none.
        """
        batch = self.collator(samples)
        masks, classes = zip(*map(mask_targets, batch["labels"]), strict=True)
        return {**batch, "mask_labels": list(masks), "class_labels": list(classes)}


class CheckedBatches:
    """Checks a collator's batches on the CPU, so that a wrong label is one message and not an index error in a loss.

    Args:
        collator (`Callable`):
            Makes a batch with `pixel_values` and `labels`.
        num_labels (`int`):
            Number of the model's classes.
    """

    def __init__(self, collator: Callable[[Any], Any], num_labels: int) -> None:
        self.collator = collator
        self.num_labels = num_labels

    def __call__(self, samples: Any) -> dict[str, Any]:
        """The collator's batch, its labels as int64."""
        return check_batch(self.collator(samples), self.num_labels)


def check_batch(batch: Any, num_labels: int) -> dict[str, Any]:
    """Checks a batch, and casts its labels to int64.

    Args:
        batch (`Mapping`):
            `pixel_values`: float (N, C, h, w) and `labels`: integer (N, H, W), or lists of N of them.
        num_labels (`int`):
            Number of the model's classes.

    Returns:
        `dict`: The batch; what else it holds is left as it is.

    Raises:
        UserError: An entry is missing or of another type or shape, or a label is neither a class nor 255.
    """
    if not isinstance(batch, Mapping) or not {"pixel_values", "labels"} <= set(batch):
        raise UserError(f"a batch holds {_described(batch)}; {_EXPECTED}. Check the data set or the data_collator.")
    images, labels = batch["pixel_values"], batch["labels"]
    stacked = isinstance(labels, Tensor)
    maps = [labels] if stacked else list(labels)
    pictures = [images] if isinstance(images, Tensor) else list(images)
    fits = all(_is_integer(each) and each.ndim == 2 + stacked for each in maps)
    dimensions = 3 + isinstance(images, Tensor)
    fits &= all(isinstance(each, Tensor) and each.is_floating_point() and each.ndim == dimensions for each in pictures)
    if not fits or len(images) != len(labels) or not len(labels):
        raise UserError(f"a batch holds {_described(batch)}; {_EXPECTED}, stacked. Check the data set.")
    maps = [each.long() for each in maps]
    for each in maps:
        check_values(each, num_labels)
    return {**batch, "labels": maps[0] if stacked else maps}


def check_item(name: str, item: Any, num_labels: int, channels: int | None = None) -> None:
    """Checks an item of a data set before training.

    Args:
        name (`str`):
            Name of the data set, for messages.
        item (`Any`):
            What the data set yields.
        num_labels (`int`):
            Number of the model's classes.
        channels (`int`, *optional*):
            Number of the channels that the model takes, where it says so.

    Raises:
        UserError: The item is no mapping with `pixel_values` and `labels`, one of them has another type or shape, or a
            label is neither a class nor 255.
    """
    try:
        tensors = item_tensors(item)
        if channels is not None and len(tensors["pixel_values"]) != channels:
            raise UserError(f"found {_described(item)}; the model takes {channels} channels, and {_EXPECTED}")
        check_values(tensors["labels"], num_labels)
    except UserError as error:
        raise UserError(f"{name}: its first item: {error}") from None


def check_values(labels: Tensor, num_labels: int) -> None:
    """Refuses labels that are neither a class nor 255.

    Args:
        labels (`Tensor`):
            int64, any shape, on the CPU.
        num_labels (`int`):
            Number of the model's classes.

    Raises:
        UserError: A value is out of range.
    """
    if _known(labels, num_labels):
        return
    wrong = [value for value in labels.unique().tolist() if value != IGNORE_INDEX and not 0 <= value < num_labels]
    way_out = "load the model with `num_labels` of the data's label space"
    if wrong[0] < 0:
        way_out = f"ignored pixels are {IGNORE_INDEX} here: map {wrong[0]} to {IGNORE_INDEX} in the data set"
    raise UserError(
        f"labels hold the value {', '.join(map(str, wrong[:8]))}, but the model has {num_labels} classes, "
        f"0..{num_labels - 1}, and {IGNORE_INDEX} for ignored pixels; {way_out}."
    )


def _known(labels: Tensor, num_labels: int) -> bool:
    """Whether all labels are classes or 255, in as few passes over memory as can be: it is asked of every batch."""
    if labels.numel() == 0:
        return True
    labels = labels.cpu().contiguous()
    highest = int(labels.numpy().view(np.uint64).max())  # as unsigned, negative labels are large ones
    if highest != IGNORE_INDEX:
        return highest < num_labels
    if num_labels > 128:
        return int((labels.to(torch.uint8) + 1).max()) <= num_labels  # bytes wrap around: 255 becomes 0
    low, high = map(int, labels.view(torch.int8).aminmax())  # byte by byte, in which 255 is -1
    return low >= -1 and high < num_labels


def mask_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks, bool (n, H, W), and ids, int64 (n,), of the classes that `labels`, int64 (H, W), shows."""
    classes = labels.unique()
    classes = classes[classes != IGNORE_INDEX]
    return labels == classes[:, None, None], classes


def item_tensors(item: Any) -> dict[str, Tensor]:
    """The entries of a data set's item as tensors.

    Args:
        item (`Any`):
            What a data set yields: a mapping with `pixel_values` and `labels` as tensors, NumPy arrays or nested
            lists.

    Returns:
        `dict[str, Tensor]`: `pixel_values` and, where there is one, `recolored_pixel_values`: float32 (C, h, w);
        `labels`: int64 (H, W).

    Raises:
        UserError: The item has other entries, shapes or types.
    """
    if not isinstance(item, Mapping) or not {"pixel_values", "labels"} <= set(item):
        raise UserError(f"found {_described(item)}; {_EXPECTED}")
    labels = _tensor(item["labels"])
    images = {key: _tensor(item[key]) for key in ("pixel_values", "recolored_pixel_values") if key in item}
    fit = all(image is not None and image.is_floating_point() and image.ndim == 3 for image in images.values())
    if labels is None or not _is_integer(labels) or labels.ndim != 2 or not fit:
        raise UserError(f"found {_described(item)}; {_EXPECTED}")
    return {key: tensor.float() for key, tensor in images.items() if tensor is not None} | {"labels": labels.long()}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            return None
        return value.detach() if value.requires_grad else value
    try:
        array = np.asarray(value)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        # torch takes neither flipped arrays nor those of another byte order.
        return torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError, RuntimeError):
        return None  # ragged lists, texts, pictures of a mode without numbers


def _is_integer(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and not tensor.is_floating_point() and not tensor.is_complex()


def _described(item: Any) -> str:
    """Keys, types, shapes and values of what was found, in one line."""
    if not isinstance(item, Mapping):
        parts = f" of {', '.join(type(part).__name__ for part in item)}" if isinstance(item, tuple | list) else ""
        return f"a {type(item).__name__}{parts[:80]}"
    entries = [f"{key}: {_entry(value)}" for key, value in item.items()]
    return f"the keys {'; '.join(entries)}" if entries else "a mapping without keys"


def _entry(value: Any) -> str:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return f"list of {len(value)}, the first {_entry(value[0])}"
    if not isinstance(value, Tensor | np.ndarray | list | tuple):
        return type(value).__name__
    tensor = _tensor(value)
    if tensor is None or not tensor.numel():
        return f"{type(value).__name__} without numbers"
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex():
        return f"{kind} {tuple(tensor.shape)}"
    low, high = (bound.item() for bound in tensor.double().aminmax())
    return f"{kind} {tuple(tensor.shape)} with values {low:g}..{high:g}"


def _stack(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    # In a worker it stacks into the memory that the training process reads, where `torch.stack` takes one copy more.
    return default_collate(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
