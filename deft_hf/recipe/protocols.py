"""Sizes and augmentation of published protocols, by name: `data.protocol`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """A row of [`PROTOCOLS`].

    Args:
        source (`str`):
            Where it was published.
        data (`Mapping[str, Any]`):
            Keys of the `data` section.
        image_size (`tuple[int, int]`, *optional*):
            (height, width) of the training images, which the protocol has for GTA5 alone.
        scored (`Mapping[str, Mapping[str, Any]]`, *optional*, defaults to `{}`):
            By layout, keys of the entries that are scored.
    """

    source: str
    data: Mapping[str, Any]
    image_size: tuple[int, int] | None = None
    scored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# Within 1024 x 512, with the aspect ratio kept (`keep_ratio` of mmsegmentation), and so on.
_512 = {"short": 512, "long": 1024}
_720 = {"short": 720, "long": 1280}
_1024 = {"short": 1024, "long": 2048}
_DISTORTED = {"photometric_distortion": True, "blur": None, "flip": 0.5, "max_class_share": 0.75}
_RARE = {**_DISTORTED, "scale": (1.0, 1.0), "sampling": "rare_class", "rare_class_temperature": 0.01}
# Short sides of 256 to 1024: those of 512, times 0.5 to 2.
_SHORT = {**_DISTORTED, "crop_size": (512, 512), "scale": (0.5, 2.0), "eval_size": "own"}
_SLID = {**_SHORT, "window": (512, 512), "stride": (341, 341)}
_OWN_TESTS = {"gtav": {"eval_size": _720}, "bdd100k": {"eval_size": _720}}
_HALVES = {"labels": "mapillary_rein", "halve": True}

PROTOCOLS: dict[str, Protocol] = {
    "robustnet": Protocol(
        "RobustNet: Choi et al., CVPR 2021, https://arxiv.org/abs/2103.15597",
        {
            "crop_size": (768, 768),
            "scale": (0.5, 2.0),
            "flip": 0.5,
            "color_jitter": (0.4, 0.4, 0.4, 0.1),
            "color_jitter_probability": 0.5,
            "blur": (0.15, 1.3),
            "max_class_share": 1.0,
            "sampling": "class_uniform",
            "class_uniform_share": 0.5,
            "class_uniform_tile": 1024,
            "eval_size": "own",
        },
        scored={"mapillary": {"crop_or_pad": 1536, "pad_label": 0}},
    ),
    "daformer": Protocol(
        "DAFormer, generalizing: Hoyer et al., TPAMI 2023, https://arxiv.org/abs/2304.13615",
        {**_RARE, "crop_size": (512, 512), "eval_size": _512},
        image_size=(720, 1280),
    ),
    "hrda": Protocol(
        "HRDA, generalizing: Hoyer et al., TPAMI 2023, https://arxiv.org/abs/2304.13615",
        {
            **_RARE,
            "crop_size": (1024, 1024),
            "eval_size": _1024,
            "window": (1024, 1024),
            "stride": (512, 512),
        },
        image_size=(1440, 2560),
    ),
    "rein": Protocol(
        "Rein: Wei et al., CVPR 2024, https://arxiv.org/abs/2312.04265",
        _SLID,
        image_size=(512, 931),
        scored={**_OWN_TESTS, "cityscapes": {"eval_size": _512}, "mapillary": {**_HALVES, "eval_size": _512}},
    ),
    "soma": Protocol(
        "SoMA: Yun et al., CVPR 2025, https://arxiv.org/abs/2412.04077",
        _SLID,
        image_size=(512, 931),
        scored={**_OWN_TESTS, "cityscapes": {"eval_size": _1024}, "mapillary": {**_HALVES, "eval_size": _1024}},
    ),
}


def fill_in(data: Any) -> None:
    """Sets what the protocol of a section says, where the section itself does not."""
    if data.protocol is None:
        return
    said, protocol = set(data.model_fields_set), PROTOCOLS[data.protocol]
    # A distortion and a jitter stand in for each other, and a stride is one of its window.
    if "color_jitter" in said and data.color_jitter is not None:
        said.add("photometric_distortion")
    elif "photometric_distortion" in said and data.photometric_distortion:
        said.add("color_jitter")
    if "window" in said:
        said.add("stride")
    _set(data, protocol.data, said)
    if "image_size" not in said and _from_gtav(data):
        data.image_size = protocol.image_size
    for entry in (*data.validation, *data.unseen):
        if not entry.labelled:
            continue
        said = set(entry.model_fields_set)
        if not isinstance(data.labels, str):  # a table of one's own is of what the masks hold
            said.add("labels")
        if entry.halve or ("crop_or_pad" in said and entry.crop_or_pad is None):
            said |= {"crop_or_pad", "pad_label"}
        elif entry.crop_or_pad is not None:
            said.add("halve")
        _set(entry, protocol.scored.get(getattr(entry, "layout", None) or "", {}), said)


def _set(section: Any, values: Mapping[str, Any], said: set[str]) -> None:
    for key, value in values.items():
        if key not in said:
            setattr(section, key, value)


def problem(data: Any) -> str | None:
    """What the protocol of a section does not say of its source."""
    if data.protocol is None or PROTOCOLS[data.protocol].image_size is None or data.image_size is not None:
        return None
    return (
        f"data.image_size: missing, as data.protocol: {data.protocol} has a size for sources of layout gtav alone; "
        "state that of the training images"
    )


def _from_gtav(data: Any) -> bool:
    return all(getattr(entry, "layout", None) == "gtav" for entry in data.source)


def described(data: Any) -> str:
    """The protocol of a section as it will be run, in the words of a paper, as comments of YAML; else nothing."""
    if data.protocol is None:
        return ""
    protocol = PROTOCOLS[data.protocol]
    of_sampling = {
        "uniform": "every image once an epoch",
        "class_uniform": f"class-uniform sampling (share {data.class_uniform_share}, tiles of "
        f"{data.class_uniform_tile})",
        "rare_class": f"rare-class sampling (T = {data.rare_class_temperature})",
    }
    colors = [
        f"ColorJitter({', '.join(map(str, data.color_jitter))}) with probability {data.color_jitter_probability}"
        if data.color_jitter
        else "",
        "PhotoMetricDistortion" if data.photometric_distortion else "",
        f"Gaussian blur of {data.blur[0]} to {data.blur[1]}" if data.blur else "",
    ]
    training = [
        f"images at {_words(data.image_size)}",
        f"scaled by {data.scale[0]} to {data.scale[1]}",
        f"crops of {_words(data.crop_size)}",
        f"no class above {data.max_class_share:.0%} of a crop" if data.max_class_share < 1 else "",
        f"flipped with probability {data.flip}",
        *filter(None, colors),
        f"the style {data.style} with probability {data.style_probability}" if data.style else "",
        "a LAB-recolored copy of each crop" if data.recolor else "",
        of_sampling[data.sampling],
    ]
    shown = data.shown_sizes()
    tests = []
    for entry in (*data.validation, *data.unseen):
        if not entry.labelled:
            continue
        changes = [
            "images and labels halved" if entry.halve else "",
            f"images and labels cropped or padded to {entry.crop_or_pad}, padding is {entry.pad_label}"
            if entry.crop_or_pad
            else "",
            f"labels {entry.labels}" if entry.labels else "",
        ]
        more = ", ".join(filter(None, changes))
        tests.append(f"{entry.name} at {_words(shown[entry.name])}" + (f" ({more})" if more else ""))
    slides = "whole images"
    if data.window is not None:
        stride = "two thirds of it" if data.stride is None else _words(data.stride)
        slides = f"sliding windows of {_words(data.window)}, stride {stride}"
    if data.test_flip or [*data.test_scales] != [1.0]:
        scales = ", ".join(map(str, data.test_scales))
        slides += f"; mean over the scales {scales}" + (", each mirrored too" if data.test_flip else "")
    values = {**protocol.data, **({"image_size": protocol.image_size} if protocol.image_size else {})}
    other = [f"data.{key}" for key, value in values.items() if getattr(data, key) != value]
    lines = [
        f"protocol {data.protocol} ({protocol.source})",
        f"  training on {', '.join(entry.name for entry in data.source)}: {'; '.join(filter(None, training))}",
        f"  test: {'; '.join(tests)}",
        f"  inference: {slides}; scores at the size of the labels",
        *([f"  other than the protocol, as the recipe states: {', '.join(other)}"] if other else []),
    ]
    return "\n".join(f"# {line}" for line in lines)


def _words(size: Any) -> str:
    if isinstance(size, Mapping):
        short, long = size.get("short"), size.get("long")
        bound = f", long at most {long}" if long else ""
        return f"long side {long}" if short is None else f"short side {short}{bound}"
    return "their own size" if size in (None, "own") else f"{size[0]} x {size[1]}"
