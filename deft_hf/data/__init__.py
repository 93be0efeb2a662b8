"""Label spaces, domains, augmentation and batches; usable without the rest of deft_hf."""

from deft_hf.data.collate import collate
from deft_hf.data.corruptions import CORRUPTIONS, corrupted, corruption_suite
from deft_hf.data.domains import Domain
from deft_hf.data.labels import IGNORE_INDEX, LabelSpace
from deft_hf.data.layouts import LAYOUTS, load_layout
from deft_hf.data.presets import PRESETS
from deft_hf.data.report import DomainReport
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.streets import LOOKS, STREETS, draw_street
from deft_hf.data.transforms import EvalTransform, TrainTransform, lab_recolor

__all__ = [
    "CORRUPTIONS",
    "IGNORE_INDEX",
    "LAYOUTS",
    "LOOKS",
    "PRESETS",
    "STREETS",
    "Domain",
    "DomainReport",
    "EvalTransform",
    "EvaluationSet",
    "LabelSpace",
    "TrainTransform",
    "TrainingSet",
    "collate",
    "corrupted",
    "corruption_suite",
    "draw_street",
    "lab_recolor",
    "load_layout",
]
