"""From images to class ids at the label's own size: whole images, sliding windows, the score of a domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.models.families import SegmentationFamily, seen_multiple
from deft_hf.models.objectives import SetLoss
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.most_likely import most_likely
from deft_hf.scoring.tally import Tally
from deft_hf.scoring.test_time import Views
from deft_hf.utils.errors import UserError


def semantic_logits(
    model: nn.Module, family: SegmentationFamily, pixel_values: Tensor, size: tuple[int, int]
) -> Tensor:
    """Class logits of whole images at a given size.

    Where patches that do not overlap would leave out the last rows or columns, images are padded with 0, the mean
    colour, and the logits cut back.

    The model's logits, at whatever resolution it has them, are resized once, straight to `size`: every detour over
    another size (Mask2Former's processor takes one over 384 x 384) erodes thin objects.

    Args:
        model (`nn.Module`):
            A Hugging Face segmentation model.
        family (`SegmentationFamily`):
            How semantic logits are computed from the model's outputs.
        pixel_values (`Tensor`):
            Images, float, shape `(N, 3, h, w)`.
        size (`tuple[int, int]`):
            Height and width of the result, as a rule those of the label.

    Returns:
        `Tensor`: float32, shape `(N, C, *size)`.
    """
    height, width = pixel_values.shape[-2:]
    patch = seen_multiple(model, family.encoder)
    below, right = -height % patch, -width % patch
    if not (below or right):
        return _resize(family.semantic_logits(model, pixel_values).float(), size)
    padded = F.pad(pixel_values, (0, right, 0, below))
    logits = _resize(family.semantic_logits(model, padded).float(), (height + below, width + right))
    return _resize(logits[..., :height, :width], size)


def sliding_window_logits(
    model: nn.Module,
    family: SegmentationFamily,
    pixel_values: Tensor,
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """Class logits averaged over overlapping windows, for images larger than the model was trained on.

    All windows have the same size: the last one of each row and column is shifted to end at the image's border. Where
    windows overlap, their logits (not their classes) are averaged; the average is resized to `size`. A window that
    covers the image gives exactly [`semantic_logits`]. Images smaller than the only size that a model takes are padded
    with 0, the mean colour, as crops are in training. Besides one window's outputs, memory holds one array of logits
    of the image's size.

    Args:
        model (`nn.Module`):
            A Hugging Face segmentation model.
        family (`SegmentationFamily`):
            How semantic logits are computed from the model's outputs.
        pixel_values (`Tensor`):
            Images, float, shape `(N, 3, h, w)`.
        size (`tuple[int, int]`):
            Height and width of the result.
        window (`tuple[int, int]`):
            Height and width of a window, in pixels of `pixel_values`; cut to the image where larger, if the model
            takes images of any size.
        stride (`tuple[int, int]`):
            Steps between windows down and across, in pixels of `pixel_values`, from 1 to the window's side.

    Returns:
        `Tensor`: float32, shape `(N, C, *size)`.

    Raises:
        UserError: If the stride is not positive or would leave gaps between windows.
    """
    check_stride(stride, window)
    height, width = pixel_values.shape[-2:]
    missing = max(0, window[0] - height), max(0, window[1] - width)
    if family.side is not None and any(missing):
        padded = F.pad(pixel_values, (0, missing[1], 0, missing[0]))
        logits = sliding_window_logits(model, family, padded, _height_width(padded), window, stride)
        return _resize(logits[..., :height, :width], size)
    window_height, window_width = min(window[0], height), min(window[1], width)
    if (window_height, window_width) == (height, width):
        return semantic_logits(model, family, pixel_values, size)

    tops = window_starts(height, window_height, stride[0])
    lefts = window_starts(width, window_width, stride[1])
    total: Tensor | None = None
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + window_height), slice(left, left + window_width))
            logits = semantic_logits(model, family, pixel_values[place], (window_height, window_width))
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
    assert total is not None  # there is a window, however small the image
    # The windows form a grid, so how many cover a pixel is a product of how many cover its row and its column.
    covers = torch.outer(covers_of(tops, window_height, height), covers_of(lefts, window_width, width))
    return _resize(total.div_(covers.to(total)), size)


def predict(
    model: nn.Module,
    family: SegmentationFamily,
    pixel_values: Tensor,
    size: tuple[int, int],
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    views: Views = Views(),  # noqa: B008 (frozen)
) -> Tensor:
    """The most likely class of each pixel, with the model in evaluation mode.

    Args:
        model (`nn.Module`):
            As for [`semantic_logits`].
        family (`SegmentationFamily`):
            As for [`semantic_logits`].
        pixel_values (`Tensor`):
            As for [`semantic_logits`].
        size (`tuple[int, int]`):
            As for [`semantic_logits`].
        window (`tuple[int, int]`, *optional*):
            As for [`sliding_window_logits`]; whole images by default.
        stride (`tuple[int, int]`, *optional*):
            As for [`sliding_window_logits`]; two thirds of the window by default.
        views (`Views`, *optional*):
            Test-time augmentation; by default the image is seen once, as it is.

    Returns:
        `Tensor`: int64, shape `(N, *size)`.
    """
    return most_likely(predict_logits(model, family, pixel_values, size, window, stride, views))


def predict_logits(
    model: nn.Module,
    family: SegmentationFamily,
    pixel_values: Tensor,
    size: tuple[int, int],
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    views: Views = Views(),  # noqa: B008 (frozen)
) -> Tensor:
    """The logits that [`predict`] takes the classes from.

    Args:
        model (`nn.Module`):
            As for [`semantic_logits`].
        family (`SegmentationFamily`):
            As for [`semantic_logits`].
        pixel_values (`Tensor`):
            As for [`semantic_logits`].
        size (`tuple[int, int]`):
            As for [`semantic_logits`].
        window (`tuple[int, int]`, *optional*):
            As for [`predict`].
        stride (`tuple[int, int]`, *optional*):
            As for [`predict`].
        views (`Views`, *optional*):
            As for [`predict`].

    Returns:
        `Tensor`: float32, shape `(N, C, *size)`.
    """
    with evaluating(model):
        return _logits(model, family, pixel_values, size, window, stride, views)


def score_batches(
    model: nn.Module,
    family: SegmentationFamily,
    batches: Iterable[Mapping[str, Tensor | list[Tensor]]],
    num_labels: int,
    device: str | torch.device,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    ignore_index: int = IGNORE_INDEX,
    images: list[Tensor] | None = None,
    loss: SetLoss | None = None,
    tally: Tally | None = None,
    views: Views = Views(),  # noqa: B008 (frozen)
) -> ConfusionMatrix:
    """Stream batches through the model into one confusion matrix.

    Each prediction is made at its label's own size, counted and dropped, so memory depends on the largest image and
    not on the number of images. Every pixel of every batch is counted: samples that a distributed sampler repeats to
    fill its last batch must be removed before. The counts are those of this process; see
    [`ConfusionMatrix.all_reduce`].

    Args:
        model (`nn.Module`):
            As for [`semantic_logits`]. It must be on `device`; its mode is restored afterwards.
        family (`SegmentationFamily`):
            As for [`semantic_logits`].
        batches (`Iterable`):
            `{"pixel_values": (N, 3, h, w), "labels": (N, H, W)}`; where sizes differ within a batch, an entry is a
            list of N tensors, and its images go through the model one at a time.
        num_labels (`int`):
            Number of classes.
        device (`str` or `torch.device`):
            Device that batches are moved to and counts are kept on.
        window (`tuple[int, int]`, *optional*):
            As for [`predict`].
        stride (`tuple[int, int]`, *optional*):
            As for [`predict`].
        ignore_index (`int`, *optional*, defaults to `255`):
            Truth id of unlabelled pixels.
        images (`list[Tensor]`, *optional*):
            List that receives the counts of each single image, in order, on the CPU: int64, shape `(num_labels,
            num_labels)`.
        loss (`SetLoss`, *optional*):
            Receives the loss of each batch.
        tally (`Tally`, *optional*):
            Receives the counts of each image that metrics follow from.
        views (`Views`, *optional*):
            As for [`predict`].
    """
    matrix = ConfusionMatrix(num_labels, ignore_index, device)

    def count(pixel_values: Tensor, labels: Tensor) -> None:
        pixel_values = pixel_values.to(device, non_blocking=True)
        seen = watched(family, loss, pixel_values, labels)
        logits = _logits(model, seen, pixel_values, _height_width(labels), window, stride, views)
        if loss is not None:
            loss.add(logits, labels)
        classes = most_likely(logits)
        if images is None and tally is None:
            matrix.update(classes, labels)
            return
        for found, truth, each in zip(classes, labels, logits, strict=True):
            single = ConfusionMatrix(num_labels, ignore_index, device)
            single.update(found, truth)
            matrix.merge(single)
            if images is not None:
                images.append(single.counts.cpu())
            if tally is not None:
                tally.add(single.counts, found, truth, probabilities_of(family, each))

    with evaluating(model):
        for batch in batches:
            for pixel_values, labels in _equal_sizes(batch):
                count(pixel_values, labels)  # whose logits are gone before the next ones come
    return matrix


def probabilities_of(family: SegmentationFamily, logits: Tensor) -> Callable[[], Tensor]:
    """Gives the probabilities (C, H, W) of an image's semantic logits (C, H, W) when it is called."""
    return lambda: family.objective.probabilities(logits[None])[0]


def watched(
    family: SegmentationFamily, loss: SetLoss | None, pixel_values: Tensor, labels: Tensor
) -> SegmentationFamily:
    """The family whose forward pass of a batch `loss` is told of; itself without a loss."""
    return family if loss is None else replace(family, objective=loss.watching(pixel_values, labels))


def _logits(
    model: nn.Module,
    family: SegmentationFamily,
    pixel_values: Tensor,
    size: tuple[int, int],
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    views: Views,
) -> Tensor:
    if window is not None and stride is None:
        stride = usual_stride(window)

    def of(images: Tensor) -> Tensor:
        if window is None or stride is None:
            return semantic_logits(model, family, images, size)
        return sliding_window_logits(model, family, images, size, window, stride)

    return of(pixel_values) if views.are_one else views.logits(pixel_values, family.objective, of)


def _equal_sizes(batch: Mapping[str, Tensor | list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch as it is, or one image at a time where it holds lists."""
    images, labels = batch["pixel_values"], batch["labels"]
    if isinstance(images, Tensor) and isinstance(labels, Tensor):
        yield images, labels
    else:
        for image, label in zip(images, labels, strict=True):
            yield image[None], label[None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards each module is in the mode that it was in."""
    # Module by module: model.train() would also set to train what its owner froze in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: what a model caches in it (position embeddings) cannot enter a later training step.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits  # interpolation would be exact too, but would copy the largest array
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _height_width(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def usual_stride(window: tuple[int, int]) -> tuple[int, int]:
    """Two thirds of a window (height, width)."""
    return max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3)


def check_stride(stride: tuple[int, int], window: tuple[int, int]) -> None:
    """Refuse windows that would leave gaps between them."""
    if not all(1 <= step <= side for step, side in zip(stride, window, strict=True)):
        raise UserError(
            f"stride {stride} does not fit window {window}: each step must be from 1 to the window's side."
        )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along a side begin; the last one ends where the side does."""
    last = length - window
    return [*range(0, last, stride), last]


def covers_of(starts: list[int], window: int, length: int) -> Tensor:
    """How many windows cover each position along a side, float."""
    covers = torch.zeros(length)
    for start in starts:
        covers[start : start + window] += 1
    return covers
