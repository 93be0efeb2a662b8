"""Label spaces, domains, augmentation and batches; usable without the rest of deft_hf.

Names are imported when they are first used: whoever needs `deft_hf.data.labels` alone does not load `datasets`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deft_hf.data.augmentations import AUGMENTATIONS as AUGMENTATIONS
    from deft_hf.data.class_index import ClassIndex as ClassIndex
    from deft_hf.data.collate import collate as collate
    from deft_hf.data.constants import IGNORE_INDEX as IGNORE_INDEX
    from deft_hf.data.corruptions import CORRUPTIONS as CORRUPTIONS
    from deft_hf.data.corruptions import corrupted as corrupted
    from deft_hf.data.corruptions import corruption_suite as corruption_suite
    from deft_hf.data.domains import Domain as Domain
    from deft_hf.data.labels import LabelSpace as LabelSpace
    from deft_hf.data.layouts import LAYOUTS as LAYOUTS
    from deft_hf.data.layouts import load_layout as load_layout
    from deft_hf.data.own_transform import OwnTransform as OwnTransform
    from deft_hf.data.presets import PRESETS as PRESETS
    from deft_hf.data.recolor import lab_recolor as lab_recolor
    from deft_hf.data.report import DomainReport as DomainReport
    from deft_hf.data.sampling import EvaluationSet as EvaluationSet
    from deft_hf.data.sampling import TrainingSet as TrainingSet
    from deft_hf.data.streets import LOOKS as LOOKS
    from deft_hf.data.streets import STREETS as STREETS
    from deft_hf.data.streets import draw_street as draw_street
    from deft_hf.data.transforms import EvalTransform as EvalTransform
    from deft_hf.data.transforms import TrainTransform as TrainTransform

_HOMES = {
    "AUGMENTATIONS": "augmentations",
    "CORRUPTIONS": "corruptions",
    "ClassIndex": "class_index",
    "IGNORE_INDEX": "constants",
    "LAYOUTS": "layouts",
    "LOOKS": "streets",
    "OwnTransform": "own_transform",
    "PRESETS": "presets",
    "STREETS": "streets",
    "Domain": "domains",
    "DomainReport": "report",
    "EvalTransform": "transforms",
    "EvaluationSet": "sampling",
    "LabelSpace": "labels",
    "TrainTransform": "transforms",
    "TrainingSet": "sampling",
    "collate": "collate",
    "corrupted": "corruptions",
    "corruption_suite": "corruptions",
    "draw_street": "streets",
    "lab_recolor": "recolor",
    "load_layout": "layouts",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
