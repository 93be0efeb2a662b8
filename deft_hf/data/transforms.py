"""From a decoded pair to tensors: augmentation for training, plain preparation for evaluation.

Every random choice is drawn from the generator that is passed in, so an item depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from deft_hf.data.blur import gaussian_blur, levels
from deft_hf.data.colors import distort_photometrically, jitter_colors
from deft_hf.data.constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from deft_hf.data.geometry import Aim, Pose, Window
from deft_hf.data.recolor import lab_recolor
from deft_hf.data.sizes import EvalSize, resized
from deft_hf.data.styles import STYLES
from deft_hf.utils.errors import UserError

_CROP_TRIES = 10


@dataclass(frozen=True)
class TrainTransform:
    """Random turn, scale, crop, flip, colour jitter and blur of a pair, in this order; then normalisation.

    The crop window is cut out of the source before anything is resized, which gives the crop that resizing the whole
    image first would give, for the cost of the crop alone. Image (bilinear, antialiased) and mask (nearest) are cut by
    exactly the same window, at fractions of a pixel. Where a scaled image is smaller than the crop it is put somewhere
    in it at random; the rest of the labels is 255, and of the pixels 0, which is the mean colour.

    The defaults of `scale`, `jitter` and `blur` are those of the authors' public code, which also recolours.

    Args:
        crop (`tuple[int, int]`):
            (height, width) of what comes out, in pixels.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 2.0)`):
            Range of the random scale, drawn uniformly.
        flip (`float`, *optional*, defaults to `0.5`):
            Probability of a horizontal flip.
        vertical_flip (`float`, *optional*, defaults to `0.0`):
            Probability of a vertical flip.
        turns (`bool`, *optional*, defaults to `False`):
            Whether to turn by 0, 90, 180 or 270 degrees, each as likely as the others.
        rotation (`float`, *optional*, defaults to `0.0`):
            Largest angle of a random rotation either way, in degrees, drawn uniformly. Corners for which the image has
            nothing are ignored, see `deft_hf.data.geometry.Pose`; in the image they get the mean colour.
        jitter (`tuple[float, float, float, float]`, *optional*, defaults to `(0.4, 0.4, 0.4, 0.1)`):
            Strength s of brightness, contrast, saturation and hue; None for none. The first three are changed by a
            factor from [max(0, 1 - s), 1 + s], the hue by up to s (at most 0.5) of a full turn, drawn uniformly and in
            a random order, as torchvision's ColorJitter defines it.
        jitter_probability (`float`, *optional*, defaults to `0.5`):
            Probability that a crop is jittered at all.
        blur (`tuple[float, float]`, *optional*, defaults to `(0.15, 1.3)`):
            Range of the standard deviation, in pixels of the crop, of a Gaussian blur (Pillow's approximation by three
            box blurs) that is always applied; None for none.
        max_class_share (`float`, *optional*, defaults to `0.75`):
            A window is drawn again, up to 10 times in all, while one class fills more than this share of its valid
            pixels, or while it has none. With 1, only the latter.
        recolor (`bool`, *optional*, defaults to `False`):
            Whether to add a copy of the crop recoloured by `lab_recolor`.
        photometric_distortion (`bool`, *optional*, defaults to `False`):
            Whether to change the colours by [`~deft_hf.data.colors.distort_photometrically`], after the jitter if
            there is one.
        style (`str`, *optional*):
            One of [`~deft_hf.data.styles.STYLES`], for the look of the crop: the last change to its pixels. A
            recoloured copy is made before it.
        style_probability (`float`, *optional*, defaults to `0.5`):
            Probability of the style.
        mean (`Sequence[float]`, *optional*, defaults to `IMAGENET_MEAN`):
            Mean per channel, of pixels in 0..1; the image processor's.
        std (`Sequence[float]`, *optional*, defaults to `IMAGENET_STD`):
            Standard deviation per channel, of pixels in 0..1; the image processor's.
        resize (`tuple[int, int]`, *optional*):
            (height, width) that an image counts as being resized to before it is scaled, such as (720, 1280) for GTA5;
            None: its own size.
        own (`Callable[[Image.Image, np.ndarray, np.random.Generator], tuple[Image.Image, np.ndarray]]`, *optional*):
            Called with (image, mask, rng) after everything that changes the pixels, such as an `OwnTransform`.

    Raises:
        UserError: A value out of its range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    vertical_flip: float = 0.0
    turns: bool = False
    rotation: float = 0.0
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.5
    blur: tuple[float, float] | None = (0.15, 1.3)
    max_class_share: float = 0.75
    recolor: bool = False
    photometric_distortion: bool = False
    style: str | None = None
    style_probability: float = 0.5
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    resize: tuple[int, int] | None = None
    own: Callable[[Image.Image, np.ndarray, np.random.Generator], tuple[Image.Image, np.ndarray]] | None = None

    def __post_init__(self) -> None:
        for key, size in (("crop", self.crop), ("resize", self.resize)):
            if size is not None and not (len(size) == 2 and min(size) >= 1):
                raise UserError(f"{key}: found {size}, expected a height and a width in pixels")
        for key, bounds, least in (("scale", self.scale, 1e-3), ("blur", self.blur, 0)):
            if bounds is not None and not (len(bounds) == 2 and least <= bounds[0] <= bounds[1]):
                raise UserError(f"{key}: found {bounds}, expected [low, high] with {least} <= low <= high")
        if self.jitter is not None and not (len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5):
            raise UserError(
                f"jitter: found {self.jitter}, expected strengths of brightness, contrast, saturation and hue, none "
                "of them negative and the hue's at most 0.5"
            )
        for key, share in (
            ("flip", self.flip),
            ("vertical_flip", self.vertical_flip),
            ("jitter_probability", self.jitter_probability),
            ("max_class_share", self.max_class_share),
            ("style_probability", self.style_probability),
        ):
            if not 0 <= share <= 1:
                raise UserError(f"{key}: found {share}, expected a share in 0..1")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"rotation: found {self.rotation}, expected an angle in degrees, from 0 to 180")
        if self.style is not None and self.style not in STYLES:
            raise UserError(f"style: found {self.style!r}, expected one of {', '.join(STYLES)}")

    def __call__(
        self, image: Image.Image, mask: np.ndarray, rng: np.random.Generator, aim: Aim | None = None
    ) -> dict[str, torch.Tensor]:
        """Augments a pair.

        Args:
            image (`Image.Image`):
                RGB, of the mask's size.
            mask (`np.ndarray`):
                uint8 (H, W) train ids, 255 where ignored.
            rng (`np.random.Generator`):
                Source of every random choice.
            aim (`Aim`, *optional*):
                What the crop is to show.

        Returns:
            `pixel_values`: float32 (3, h, w), normalised; `labels`: int64 (h, w); with `recolor` also
            `recolored_pixel_values`: float32 (3, h, w), normalised.
        """
        pose = self._draw_pose(rng)
        window, labels = self._draw_window(mask, pose, rng, aim or Aim())
        image = pose.image(window.cut_image(image), window, fill=self._mean_color())
        if rng.random() < self.flip:
            image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
        if self.vertical_flip and rng.random() < self.vertical_flip:
            image, labels = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), labels[::-1]
        if self.jitter is not None and rng.random() < self.jitter_probability:
            image = jitter_colors(image, self.jitter, rng)
        if self.photometric_distortion:
            image = distort_photometrically(image, rng)
        pixels = levels(image) if self.blur is None else gaussian_blur(image, rng.uniform(*self.blur))
        if self.own is not None:
            image = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())
            image, labels = self.own(image, labels, rng)
            pixels = levels(image)
        pixels /= 255
        views = {"pixel_values": pixels}
        if self.recolor:
            views["recolored_pixel_values"] = lab_recolor(pixels, rng)
        if self.style is not None and rng.random() < self.style_probability:
            views["pixel_values"] = STYLES[self.style](pixels, rng)

        area = (..., *pose.area(window))
        item = {"labels": _placed(torch.from_numpy(labels.copy()).long(), area, self.crop, IGNORE_INDEX)}
        for key, view in views.items():
            item[key] = _placed(_normalize(view, self.mean, self.std), area, (3, *self.crop), 0.0)
        return item

    def _draw_pose(self, rng: np.random.Generator) -> Pose:
        quarters = int(rng.integers(4)) if self.turns else 0
        angle = rng.uniform(-self.rotation, self.rotation) if self.rotation else 0.0
        return Pose(self.crop, quarters, angle)

    def _draw_window(
        self, mask: np.ndarray, pose: Pose, rng: np.random.Generator, aim: Aim
    ) -> tuple[Window, np.ndarray]:
        for _ in range(_CROP_TRIES):
            window, labels = self._draw_scaled(mask, pose, rng, aim.point)
            if aim.label is None or np.count_nonzero(labels == aim.label) > aim.pixels:
                break
        return window, labels

    def _draw_scaled(
        self, mask: np.ndarray, pose: Pose, rng: np.random.Generator, point: tuple[int, int] | None
    ) -> tuple[Window, np.ndarray]:
        base = self.resize or mask.shape
        scale = rng.uniform(*self.scale)
        scaled = [max(round(side * scale), 1) for side in base]
        for _ in range(_CROP_TRIES):
            window = Window.draw(mask.shape, scaled, pose, rng, point)
            labels = pose.labels(window.cut(mask), window)
            counts = np.array(Image.fromarray(labels).histogram()[:IGNORE_INDEX])  # in a third of bincount's time
            if 0 < counts.max() <= self.max_class_share * counts.sum():
                break
        return window, labels

    def _mean_color(self) -> tuple[int, int, int]:
        red, green, blue = (round(255 * mean) for mean in self.mean)
        return red, green, blue


@dataclass(frozen=True)
class EvalTransform:
    """Resizes and normalises an image; leaves its labels at their own size.

    Args:
        size (`EvalSize`):
            (height, width) that images are resized to (bilinear, antialiased), `{"short": n}`, `{"long": n}` or both,
            which keep the aspect ratio; `"own"` or None: their own.
        mean (`Sequence[float]`, *optional*, defaults to `IMAGENET_MEAN`):
            Mean per channel, of pixels in 0..1; the image processor's.
        std (`Sequence[float]`, *optional*, defaults to `IMAGENET_STD`):
            Standard deviation per channel, of pixels in 0..1; the image processor's.
    """

    size: EvalSize
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __call__(self, image: Image.Image, mask: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns `pixel_values`: float32 (3, h, w), normalised, and `labels`: int64 (H, W)."""
        height, width = resized((image.height, image.width), self.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return {
            "pixel_values": _normalize(levels(image).div_(255), self.mean, self.std),
            "labels": torch.from_numpy(mask).long(),
        }


def _placed(values: torch.Tensor, area: tuple, shape: tuple[int, ...], fill: float) -> torch.Tensor:
    """The values where they lie in a crop, which they mostly fill."""
    if values.shape == shape:
        return values
    crop = torch.full(shape, fill, dtype=values.dtype)
    crop[area] = values
    return crop


def _normalize(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels in 0..1, float32 (3, H, W), normalised in place."""
    for channel, center, deviation in zip(pixels, mean, std, strict=True):
        channel.sub_(center).div_(deviation)
    return pixels
