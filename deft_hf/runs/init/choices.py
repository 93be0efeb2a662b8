"""Sizes, model, length and rates for the data that was found and the machine at hand, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from transformers.utils import logging

from deft_hf.data.pictures import USUAL_ENDS
from deft_hf.data.survey import Survey
from deft_hf.models.embedded import EMBEDDED, resolved
from deft_hf.models.families import FAMILIES
from deft_hf.models.opening import UNREADABLE, read_config
from deft_hf.trainer.defaults import crop_size
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.machine import Machine

Size = tuple[int, int]

# A hierarchical encoder halves the image five times.
_STRIDE = 32
_FILLED = 2**15
_ROOMY = 15 << 30  # bytes


@dataclass(frozen=True)
class Model:
    """What is fine-tuned.

    Attributes:
        section (`dict[str, Any]`):
            The recipe's `model`.
        why (`str`):
            Why this one.
        patch (`int`):
            What sides of crops must be multiples of.
        convolutional (`bool`):
            Whether its encoder is made of convolutions alone.
    """

    section: dict[str, Any]
    why: str
    patch: int
    convolutional: bool


def _in_words(machine: Machine) -> str:
    if machine.device == "cuda":
        return f"a GPU with {machine.memory / 2**30:.0f} GB"
    return f"{machine.cores} CPU cores"


def choose_model(given: str | None, images: int, machine: Machine) -> Model:
    """The checkpoint to start from.

    Args:
        given (`str` or `None`):
            What the user named: a Hub name, a folder or `embedded`.
        images (`int`):
            Number of images to train on.
        machine (`Machine`):
            What trains.

    Raises:
        UserError: What the user named cannot be read.
    """
    if given is not None:
        return _described(given, "as you asked")
    roomy = machine.device == "cuda" and machine.memory > _ROOMY
    name = "nvidia/mit-b2" if roomy and images >= 500 else "nvidia/mit-b0"
    size = "larger" if name.endswith("b2") else "smallest"
    why = f"the {size} SegFormer encoder, for {images} images on {_in_words(machine)}"
    if isinstance(try_to_load_from_cache(name, "config.json"), str) or not constants.is_offline_mode():
        return Model({"checkpoint": name}, why, _STRIDE, convolutional=False)
    why = "the tiny SegFormer of this package, since the Hub is off (HF_HUB_OFFLINE); name a better one with --model"
    return Model({"checkpoint": EMBEDDED}, why, _STRIDE, convolutional=False)


def _described(name: str, why: str) -> Model:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        config = read_config(resolved(name))
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"model: {name} cannot be read ({first_line(error)}); expected a Hub name or a folder with a config.json"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    convolutional = not hasattr(config, "num_attention_heads")
    patch = getattr(config, "patch_size", 1)
    patch = patch if isinstance(patch, int) and patch > 4 else _STRIDE
    if config.model_type in FAMILIES:
        return Model({"checkpoint": name}, f"{why}: a {config.model_type}", patch, convolutional)
    plain = isinstance(getattr(config, "num_hidden_layers", None), int) and patch != _STRIDE
    head = "dpt" if plain or patch == 16 else "upernet"
    why = f"{why}: a backbone ({config.model_type}), which gets a new head"
    return Model({"backbone": name, "head": head}, why, patch, convolutional)


@dataclass(frozen=True)
class Sizes:
    """What images are cut to.

    Attributes:
        image_size (`tuple[int, int]` or `None`):
            What they are resized to.
        crop_size (`tuple[int, int]`):
            What is cut out of them in training.
        why_image (`str`):
            Why they are resized.
        why_crop (`str`):
            Why the crop has this size.
    """

    image_size: Size | None
    crop_size: Size
    why_image: str
    why_crop: str


def choose_sizes(sizes: Sequence[Size], model: Model, machine: Machine) -> Sizes:
    """Image and crop size for images of these sizes (height, width)."""
    longest = 1024 if machine.device == "cuda" else 512
    counts = Counter(sizes)
    height, width = (round(median(size[axis] for size in sizes)) for axis in (0, 1))
    several = len(counts) > 1
    found = f"{len(counts)} sizes, {height} x {width} in the middle" if several else f"all are {height} x {width}"
    ratios = sorted(tall / wide for tall, wide in counts)
    image_size = None
    if max(max(size) for size in counts) > longest:
        shrink = longest / max(height, width)
        if ratios[-1] > 1.25 * ratios[0]:  # upright and lying photos: neither shape fits the other
            side = _multiple(0.75 * longest, model.patch)
            image_size, how = (side, side), "a square, as some are upright and some lie"
        else:
            image_size = _multiple(height * shrink, model.patch), _multiple(width * shrink, model.patch)
            how = "as their shape is"
        found = f"height, width; {found}; resized to what {_in_words(machine)} can train in time, {how}"
        height, width = image_size
    elif several:
        height, width = min(tall for tall, _ in counts), min(wide for _, wide in counts)
    crop = crop_size((height, width), machine.device, model.patch)
    whence = "the resized images" if image_size else f"images that are not resized ({found})"
    why = f"cut from {whence}, as much as {machine.device} trains in time, in multiples of {model.patch} for the model"
    return Sizes(image_size, crop, found, why)


def _multiple(side: float, step: int) -> int:
    return max(step, int(side) // step * step)


def choose_value_range(found: Survey) -> tuple[tuple[float, float], str] | None:
    """What is black and what is white in images of more than 8 bits, and why; `None` where it need not be said."""
    if found.extremes is None:
        return None
    deep = [pair.extremes for pair in found.pairs if pair.extremes]
    low, high = found.extremes
    if min(top for _, top in deep) >= _FILLED and high <= USUAL_ENDS[-1] and low >= 0:
        return None
    end = next((end for end in USUAL_ENDS if high <= end), high)
    bits = f", as {int(end).bit_length()}-bit sensors count" if end in (1023, 4095, 16383) else ""
    return (min(0, low), end), f"black and white of the images, which hold {low:g} to {high:g}{bits}"
