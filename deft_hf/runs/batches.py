"""Pictures of one size go through a model together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deft_hf.runs.segmenter import Segmenter

Item = TypeVar("Item")

# Of a batch, at the images' own size, where memory holds the logits of all of them: four images of 512 x 1024. A CPU
# is not quicker with more.
MOST_PIXELS = 1 << 21


def segmented(
    segmenter: Segmenter,
    images: Iterable[tuple[Item, Image.Image, Tensor | None]],
    most: int,
    keep_logits: bool = False,
) -> Iterator[tuple[Item, Image.Image, np.ndarray, Tensor | None]]:
    """The classes of images, of which neighbours of one size go through the model together.

    Args:
        segmenter (`Segmenter`):
            The model.
        images (`Iterable[tuple[Item, Image.Image, Tensor | None]]`):
            Whatever an image belongs to, the image in RGB, and what `Segmenter.pixels` made of it, if that is known.
        most (`int`):
            Images in a batch at most; fewer where they have more than 2 megapixels together.
        keep_logits (`bool`, *optional*, defaults to `False`):
            Whether logits are asked for, which a window that slides over a large image does not hold as a whole.

    Yields:
        `tuple[Item, Image.Image, np.ndarray, Tensor | None]`: in the order of the images, what the image belongs to,
        the image, class ids (H, W) as [`Segmenter.classes`] gives them, and logits float32 (classes, H, W).

    Raises:
        UserError: The model takes no images of this size.
    """
    waiting: list[tuple[Item, Image.Image, Tensor]] = []
    for item, image, pixels in images:
        if pixels is None and (keep_logits or not segmenter.slides_over(image)):
            pixels = segmenter.pixels(image)
        if waiting and (pixels is None or _sizes(image, pixels) != _sizes(*waiting[0][1:])):
            yield from _together(segmenter, waiting, keep_logits)
        if pixels is None:
            yield item, image, segmenter.classes(image), None
        else:
            waiting.append((item, image, pixels))
            if len(waiting) >= min(most, MOST_PIXELS // (image.width * image.height)):
                yield from _together(segmenter, waiting, keep_logits)
        del item, image, pixels  # they may be large, and the next ones come first
    yield from _together(segmenter, waiting, keep_logits)


def _sizes(image: Image.Image, pixels: Tensor) -> tuple[object, ...]:
    return image.size, pixels.shape, pixels.dtype


def _together(
    segmenter: Segmenter, waiting: list[tuple[Item, Image.Image, Tensor]], keep_logits: bool
) -> Iterator[tuple[Item, Image.Image, np.ndarray, Tensor | None]]:
    """Empties `waiting`."""
    if not waiting:
        return
    pixels = torch.cat([each for *_, each in waiting]) if len(waiting) > 1 else waiting[0][2]
    images = [(item, image) for item, image, _ in waiting]
    waiting.clear()
    logits = segmenter.logits_of(pixels, (images[0][1].height, images[0][1].width))
    classes = [segmenter.most_likely(each) for each in logits]
    kept = [*logits] if keep_logits else [None] * len(images)
    del pixels, logits
    for (item, image), ids, each in zip(images, classes, kept, strict=True):
        yield item, image, ids, each
