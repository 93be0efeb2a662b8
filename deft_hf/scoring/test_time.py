"""Test-time augmentation: the mean of what a model says of several views of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from deft_hf.models.objectives import Objective
from deft_hf.utils.errors import UserError

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Views:
    """The views of an image whose predictions are averaged; by default the image alone.

    Args:
        scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`):
            By which the prepared image is resized, bilinear; antialiased where it shrinks.
        flip (`bool`, *optional*, defaults to `False`):
            Whether each scale is seen mirrored too.

    Example:

    ```python
    >>> from deft_hf.scoring.test_time import Views

    >>> len(Views(scales=(0.75, 1.0, 1.25), flip=True))
    6

    ```
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __len__(self) -> int:
        return len(self.scales) * (1 + self.flip)

    @property
    def are_one(self) -> bool:
        """Whether the image is seen once, as it is."""
        return tuple(self.scales) == (1.0,) and not self.flip

    def check(self, one_size: bool = False) -> None:
        """Refuse scales that no image can be seen at.

        Args:
            one_size (`bool`, *optional*, defaults to `False`):
                Whether the model takes images of one size alone, and sees them whole.

        Raises:
            UserError: There is no scale, one is not above 0, or the model takes none but 1.
        """
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise UserError(f"test_scales: found {[*self.scales]}, expected a list of scales above 0")
        if one_size and {*self.scales} != {1}:
            raise UserError(
                f"test_scales: found {[*self.scales]}, but the model takes images of one size alone; give a "
                "window, or leave the scales out"
            )

    def logits(self, pixel_values: Tensor, objective: Objective, of: Logits) -> Tensor:
        """Logits that stand for the mean of the probabilities of all views.

        Args:
            pixel_values (`Tensor`):
                Images, float (N, 3, h, w).
            objective (`Objective`):
                Of the model.
            of (`Callable`):
                From images of any size to logits (N, C, H, W) of the size of the result.
        """
        total: Tensor | None = None
        for scale in self.scales:
            seen = _resized(pixel_values, scale)
            for mirrored in (False, True)[: 1 + self.flip]:
                logits = of(seen.flip(-1)).flip(-1) if mirrored else of(seen)
                found = objective.probabilities(logits)
                total = found if total is None else total.add_(found)
        assert total is not None  # there is a scale
        return objective.of_probabilities(total.div_(len(self)))


def _resized(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
