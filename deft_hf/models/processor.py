"""The image processor of a segmentation model: the one that a folder has, and the one that an export gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor

from deft_hf.data.constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from deft_hf.models.families import FAMILIES, SegmentationFamily
from deft_hf.utils.errors import UserError, first_line

if TYPE_CHECKING:
    from deft_hf.data.sizes import EvalSize


def open_processor(name: str, revision: str | None = None, trust_remote_code: bool = False) -> BaseImageProcessor:
    """The image processor of a model.

    Args:
        name (`str`):
            A Hub name or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code of the repository; without it, none is ever run.

    Raises:
        UserError: If there is none that can be loaded.
    """
    try:
        return AutoImageProcessor.from_pretrained(
            str(Path(name).expanduser()), revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError, AttributeError, LookupError, TypeError) as error:
        raise UserError(
            f"{name} has no image processor that opens here ({first_line(error)}): put its preprocessor_config.json "
            "there."
        ) from error


def normalization(processor: BaseImageProcessor) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, per channel, to normalize pixels in 0..1 with; 0 and 1 without normalization.

    Raises:
        UserError: If the processor does not say.
    """
    given: Any = processor  # the base class does not declare what every image processor has
    if hasattr(given, "data_config"):  # timm's
        return given.data_config["mean"], given.data_config["std"]
    if not hasattr(given, "do_normalize"):
        raise UserError(
            f"a {type(processor).__name__} does not say how it normalizes (do_normalize, image_mean, image_std): put "
            "a preprocessor_config.json of another kind beside the model."
        )
    return (given.image_mean, given.image_std) if given.do_normalize else ((0.0,) * 3, (1.0,) * 3)


def segmentation_processor(
    base: BaseImageProcessor | None, size: EvalSize, model_type: str | None = None
) -> BaseImageProcessor:
    """The image processor that does to an image what `EvalTransform(size, mean, std)` does, for every architecture.

    Labels are never touched (`do_reduce_labels` is off): `LabelSpace` maps them once, when a mask is decoded.

    Args:
        base (`BaseImageProcessor`, *optional*):
            The checkpoint's processor, for its mean and standard deviation; 0 and 1 if it does not normalize,
            ImageNet's if there is none.
        size (`EvalSize`):
            Height and width that images are resized to, bilinear and antialiased, `{"short": n}`, `{"long": n}` or
            both; `"own"` or `None` keeps their size.
        model_type (`str`, *optional*):
            `config.model_type` of the model, whose family has a class of image processors; SegFormer's by default.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if base is None else normalization(base)
    family = FAMILIES.get(model_type or "", SegmentationFamily(encoder=""))
    # Pillow resizes here as in `EvalTransform`, with or without torchvision; saved, its name is that of both.
    cls: Any = getattr(transformers, family.processor)
    if isinstance(size, Mapping) and "keep_aspect_ratio" in cls.valid_kwargs.__annotations__:
        cls = getattr(transformers, SegmentationFamily(encoder="").processor)  # DPT's takes height and width alone
    settings = {
        "do_convert_rgb": True,
        "do_resize": size not in (None, "own"),
        "resample": Image.Resampling.BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_reduce_labels": False,
        # What some classes do beyond that, or would.
        "do_center_crop": False,
        "ensure_multiple_of": 1,
        "ignore_index": IGNORE_INDEX,
        "keep_aspect_ratio": False,
        "size_divisor": 0,
    }
    if isinstance(size, Mapping):
        short, long = size.get("short"), size.get("long")
        # Mask2Former's wants a bound on the longer side in any case: one that no image reaches.
        sides = {"shortest_edge": short, "longest_edge": long or 10**6}
        settings["size"] = sides if short else {"max_height": long, "max_width": long}
    elif settings["do_resize"] and size is not None:
        settings["size"] = {"height": size[0], "width": size[1]}
    return cls(**{key: value for key, value in settings.items() if key in cls.valid_kwargs.__annotations__})
