"""Sizes, model, length and rates for the data that was found and the machine at hand, each with its reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers.utils import logging

from deft_hf.data.pictures import USUAL_ENDS
from deft_hf.data.survey import Survey
from deft_hf.models.embedded import EMBEDDED, resolved
from deft_hf.models.families import FAMILIES
from deft_hf.models.opening import UNREADABLE, read_config
from deft_hf.utils.errors import UserError, first_line

Size = tuple[int, int]

# A hierarchical encoder halves the image five times.
_STRIDE = 32
_FILLED = 2**15


@dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        device (`str`):
            `cuda`, `mps` or `cpu`.
        memory (`float`):
            GB of the device's memory.
        cores (`int`):
            CPU cores.
        bf16 (`bool`):
            Whether the device computes in bfloat16.
    """

    device: str
    memory: float
    cores: int
    bf16: bool

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
            return cls("cuda", memory, cores, torch.cuda.is_bf16_supported())
        return cls("mps" if torch.backends.mps.is_available() else "cpu", 0.0, cores, False)

    def __str__(self) -> str:
        return f"a GPU with {self.memory:.0f} GB" if self.device == "cuda" else f"{self.cores} CPU cores"


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
    roomy = machine.device == "cuda" and machine.memory > 15
    name = "nvidia/mit-b2" if roomy and images >= 500 else "nvidia/mit-b0"
    size = "larger" if name.endswith("b2") else "smallest"
    why = f"the {size} SegFormer encoder, for {images} images on {machine}"
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
    longest, largest = (1024, 512) if machine.device == "cuda" else (512, 256)
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
        found = f"height, width; {found}; resized to what {machine} can train in time, {how}"
        height, width = image_size
    elif several:
        height, width = min(tall for tall, _ in counts), min(wide for _, wide in counts)
    crop = min(largest, _multiple(height, model.patch)), min(largest, _multiple(width, model.patch))
    crop = _multiple(crop[0], model.patch), _multiple(crop[1], model.patch)
    why = f"multiples of {model.patch}, which the model divides images by; " + (
        "from the resized images" if image_size else f"images keep their own size ({found})"
    )
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
