"""Classes of an image whose logits are too large to be held: those of a window are let go of as the next come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from deft_hf.models.families import SegmentationFamily
from deft_hf.scoring.inference import check_stride, covers_of, evaluating, semantic_logits, usual_stride, window_starts
from deft_hf.scoring.most_likely import most_likely


def sliding_window_classes(
    model: nn.Module,
    family: SegmentationFamily,
    pixels: Callable[[int, int, int, int], Tensor],
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """The classes that [`~deft_hf.scoring.inference.predict`] finds in one image, from its top to its bottom.

    Windows, logits and the order in which logits are added up are those of
    [`~deft_hf.scoring.inference.sliding_window_logits`]. Held are the sums of the rows that a row of windows shares
    with the next one; what no window to come touches turns into classes at once. So memory depends on the width of
    the image and not on its height.

    Args:
        model (`nn.Module`):
            A Hugging Face segmentation model.
        family (`SegmentationFamily`):
            How semantic logits are computed from the model's outputs.
        pixels (`Callable[[int, int, int, int], Tensor]`):
            Gives the pixels of a window, float `(1, 3, bottom - top, right - left)`, by `top, left, bottom, right`;
            no `top` is above that of the call before.
        size (`tuple[int, int]`):
            Height and width of the image.
        window (`tuple[int, int]`):
            Height and width of a window; cut to the image where larger.
        stride (`tuple[int, int]`, *optional*):
            Steps between windows down and across, from 1 to the window's side; two thirds of it by default.

    Yields:
        `Tensor`: the next rows, shape `(rows, width)`, uint8, or int32 of more than 256 classes.

    Raises:
        UserError: If the stride is not positive or would leave gaps between windows.
    """
    stride = stride or usual_stride(window)
    check_stride(stride, window)
    height, width = size
    rows, columns = min(window[0], height), min(window[1], width)
    tops, lefts = window_starts(height, rows, stride[0]), window_starts(width, columns, stride[1])
    down, across = covers_of(tops, rows, height), covers_of(lefts, columns, width)
    # The sums so far: of the rows that the row of windows above shares with this one, and of the columns that the
    # window before shares with this one.
    above = before = torch.empty(0)
    shared = 0
    for top, next_top in pairwise([*tops, height]):
        ready, right = next_top - top, 0
        found = torch.empty(0)
        with evaluating(model):  # not while rows are yielded: whoever takes them may do what else they like
            for left, next_left in pairwise([*lefts, width]):
                logits = semantic_logits(
                    model, family, pixels(top, left, top + rows, left + columns), (rows, columns)
                )[0]
                if not above.numel():
                    most = rows - min((after - start for start, after in pairwise(tops)), default=rows)
                    above = logits.new_empty(len(logits), most, width)
                if not found.numel():
                    found = logits.new_empty(ready, width, dtype=torch.uint8 if len(logits) <= 256 else torch.int32)
                total = torch.zeros_like(logits)
                total[..., : right - left] = before
                total[:, :shared, right - left :] = above[:, :shared, right : left + columns]
                total += logits

                passed = next_left - left
                covers = torch.outer(down[top:next_top], across[left:next_left]).to(total)
                found[:, left:next_left] = most_likely((total[:, :ready, :passed] / covers)[None])[0]
                above[:, : rows - ready, left:next_left] = total[:, ready:, :passed]
                before, right = total[..., passed:].clone(), left + columns
                del logits, total  # before the model needs its memory
        shared = rows - ready
        yield found
