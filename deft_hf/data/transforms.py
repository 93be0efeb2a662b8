"""From a decoded pair to tensors: augmentation for training, plain preparation for evaluation.

Every random choice is drawn from the generator that is passed in, so an item depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from PIL import Image, ImageEnhance, ImageFilter

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.utils.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CROP_TRIES = 10


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop, flip, colour jitter and blur of a pair, in this order; then normalisation.

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
        mean (`Sequence[float]`, *optional*, defaults to `IMAGENET_MEAN`):
            Mean per channel, of pixels in 0..1; the image processor's.
        std (`Sequence[float]`, *optional*, defaults to `IMAGENET_STD`):
            Standard deviation per channel, of pixels in 0..1; the image processor's.
        resize (`tuple[int, int]`, *optional*):
            (height, width) that an image counts as being resized to before it is scaled, such as (720, 1280) for GTA5;
            None: its own size.

    Raises:
        UserError: A value out of its range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.5
    blur: tuple[float, float] | None = (0.15, 1.3)
    max_class_share: float = 0.75
    recolor: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    resize: tuple[int, int] | None = None

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
            ("jitter_probability", self.jitter_probability),
            ("max_class_share", self.max_class_share),
        ):
            if not 0 <= share <= 1:
                raise UserError(f"{key}: found {share}, expected a share in 0..1")

    def __call__(self, image: Image.Image, mask: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Augments a pair.

        Args:
            image (`Image.Image`):
                RGB, of the mask's size.
            mask (`np.ndarray`):
                uint8 (H, W) train ids, 255 where ignored.
            rng (`np.random.Generator`):
                Source of every random choice.

        Returns:
            `pixel_values`: float32 (3, h, w), normalised; `labels`: int64 (h, w); with `recolor` also
            `recolored_pixel_values`: float32 (3, h, w), normalised.
        """
        window, labels = self._draw_window(mask, rng)
        image = image.resize(window.size[::-1], Image.Resampling.BILINEAR, box=window.box)
        if rng.random() < self.flip:
            image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1].copy()
        if self.jitter is not None and rng.random() < self.jitter_probability:
            image = jitter_colors(image, self.jitter, rng)
        if self.blur is not None:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur)))
        pixels = _to_unit_range(image)
        views = {"pixel_values": pixels}
        if self.recolor:
            views["recolored_pixel_values"] = lab_recolor(pixels, rng)

        (top, left), (height, width) = window.offset, window.size
        area = (..., slice(top, top + height), slice(left, left + width))
        item = {"labels": torch.full(self.crop, IGNORE_INDEX)}
        item["labels"][area] = torch.from_numpy(labels).long()
        for key, view in views.items():
            item[key] = torch.zeros(3, *self.crop)
            item[key][area] = _normalize(view, self.mean, self.std)
        return item

    def _draw_window(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[_Window, np.ndarray]:
        base = self.resize or mask.shape
        scale = rng.uniform(*self.scale)
        scaled = [max(round(side * scale), 1) for side in base]
        for _ in range(_CROP_TRIES):
            window = _Window.draw(mask.shape, scaled, self.crop, rng)
            labels = window.cut(mask)
            counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
            if 0 < counts.max() <= self.max_class_share * counts.sum():
                break
        return window, labels


@dataclass(frozen=True)
class EvalTransform:
    """Resizes and normalises an image; leaves its labels at their own size.

    Args:
        size (`tuple[int, int]` or `None`):
            (height, width) that images are resized to (bilinear, antialiased); None: their own.
        mean (`Sequence[float]`, *optional*, defaults to `IMAGENET_MEAN`):
            Mean per channel, of pixels in 0..1; the image processor's.
        std (`Sequence[float]`, *optional*, defaults to `IMAGENET_STD`):
            Standard deviation per channel, of pixels in 0..1; the image processor's.
    """

    size: tuple[int, int] | None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __call__(self, image: Image.Image, mask: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns `pixel_values`: float32 (3, h, w), normalised, and `labels`: int64 (H, W)."""
        if self.size is not None:
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return {
            "pixel_values": _normalize(_to_unit_range(image), self.mean, self.std),
            "labels": torch.from_numpy(mask).long(),
        }


def jitter_colors(
    image: Image.Image, strengths: tuple[float, float, float, float], rng: np.random.Generator
) -> Image.Image:
    """Changes brightness, contrast, saturation and hue of an RGB image in a random order; see `TrainTransform`."""
    for index in rng.permutation(4):
        strength = strengths[index]
        if strength == 0:
            continue
        if index == 3:
            image = _turn_hue(image, rng.uniform(-strength, strength))
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[index]
            image = enhance(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def lab_recolor(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gives images other colours by other statistics of their LAB channels, the copies that DeFT's authors train on.

    RGB to LAB in [0, 1]; each channel of each image is standardised to mean 0 and deviation 1, then given a mean drawn
    from U(0.2, 0.8) and a deviation from U(0.1, 0.4); Gaussian noise of deviation 0.01 is added, the result cut to
    [0, 1] and taken back to RGB. That is what the authors' code does (https://github.com/jhpahk/DeFT; the paper is not
    known to name it), told in words; what the words leave open is settled here:

    * L is brought to [0, 1] as L / 100, a and b as (x + 128) / 255.
    * Mean and deviation are drawn for each image and channel apart, the noise for each value.
    * The deviation is that of the population and counts as 1e-3 at least, which no eye sees; else the rounding errors
      in a and b of a grey image would become its colours.
    * RGB outside [0, 1] is cut.

    Args:
        rgb (`torch.Tensor`):
            float32 (N, 3, H, W) or (3, H, W) in [0, 1].
        rng (`np.random.Generator`):
            Source of every random choice.

    Returns:
        `torch.Tensor`: float32, of the same shape, in [0, 1].
    """
    offset, extent = torch.tensor([[0.0, 128.0, 128.0], [100.0, 255.0, 255.0]], device=rgb.device)[..., None, None]
    lab = (rgb_to_lab(rgb) + offset) / extent
    std, mean = torch.std_mean(lab, dim=(-2, -1), correction=0, keepdim=True)

    def draw(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(rgb.device, torch.float32)

    new_mean = draw(rng.uniform(0.2, 0.8, mean.shape))
    new_std = draw(rng.uniform(0.1, 0.4, std.shape))
    noise = draw(rng.standard_normal(lab.shape, np.float32)) * 0.01
    lab = (lab - mean) / std.clamp_min(1e-3) * new_std + new_mean + noise
    return lab_to_rgb(lab.clamp(0, 1) * extent - offset)


@dataclass(frozen=True)
class _Window:
    """A part of a source image and where it lands in a crop; sizes and offsets are (height, width)."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the source
    size: tuple[int, int]
    offset: tuple[int, int]

    @classmethod
    def draw(
        cls, source: Sequence[int], scaled: Sequence[int], crop: Sequence[int], rng: np.random.Generator
    ) -> _Window:
        """The part of an image of size `source`, as if resized to `scaled`, that a crop at a random place shows."""
        starts, ends, sizes, offsets = [], [], [], []
        for length, resized, target in zip(source, scaled, crop, strict=True):
            # Where the image is smaller than the crop, its start is not positive and the image floats in the crop.
            start = int(rng.integers(min(0, resized - target), max(0, resized - target) + 1))
            first, last = max(start, 0), min(start + target, resized)
            starts.append(first * length / resized)
            ends.append(last * length / resized)
            sizes.append(last - first)
            offsets.append(first - start)
        box = (starts[1], starts[0], ends[1], ends[0])
        return cls(box, size=(sizes[0], sizes[1]), offset=(offsets[0], offsets[1]))

    def cut(self, mask: np.ndarray) -> np.ndarray:
        """The window of a mask (H, W), resized to the window's size by nearest neighbour."""
        left, top, right, bottom = self.box
        rows = _nearest(top, bottom, self.size[0])
        columns = _nearest(left, right, self.size[1])
        return mask[rows][:, columns]


def _nearest(start: float, end: float, count: int) -> np.ndarray:
    # The source pixel under the centre of each target pixel, which is where bilinear resizing looks too.
    return np.floor(start + (np.arange(count) + 0.5) * ((end - start) / count)).astype(np.intp)


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turn * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _to_unit_range(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _normalize(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
