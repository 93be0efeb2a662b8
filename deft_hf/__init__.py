"""deft_hf: fine-tune Hugging Face segmentation models that generalise to unseen domains.

Public names are imported when they are first used, so that `import deft_hf` is quick, and who uses one module alone
(`deft_hf.scoring.confusion`, say) does not pay for the whole stack.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deft_hf.comparison.experiment import compare as compare
    from deft_hf.data.domains import Domain as Domain
    from deft_hf.data.labels import LabelSpace as LabelSpace
    from deft_hf.methods.core.pathways import DualPathway as DualPathway
    from deft_hf.models.families import resolve_family as resolve_family
    from deft_hf.publish.export import export_generalized as export_generalized
    from deft_hf.publish.export import verify_export as verify_export
    from deft_hf.recipe import Recipe as Recipe
    from deft_hf.runs.evaluate import evaluate as evaluate
    from deft_hf.runs.export import export as export
    from deft_hf.runs.finetune import finetune as finetune
    from deft_hf.runs.init import init as init
    from deft_hf.runs.predict import predict as predict
    from deft_hf.scoring.confusion import ConfusionMatrix as ConfusionMatrix
    from deft_hf.scoring.metric import MeanIoU as MeanIoU
    from deft_hf.trainer.arguments import DeFTTrainingArguments as DeFTTrainingArguments
    from deft_hf.trainer.trainer import DeFTTrainer as DeFTTrainer

__version__ = "0.2.0"

_HOMES = {
    "ConfusionMatrix": "scoring.confusion",
    "DeFTTrainer": "trainer.trainer",
    "DeFTTrainingArguments": "trainer.arguments",
    "Domain": "data.domains",
    "DualPathway": "methods.core.pathways",
    "LabelSpace": "data.labels",
    "MeanIoU": "scoring.metric",
    "Recipe": "recipe",
    "compare": "comparison.experiment",
    "evaluate": "runs.evaluate",
    "export": "runs.export",
    "export_generalized": "publish.export",
    "init": "runs.init",
    "finetune": "runs.finetune",
    "predict": "runs.predict",
    "resolve_family": "models.families",
    "verify_export": "publish.export",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _at_home(name)
    globals()[name] = value
    return value


def _at_home(name: str) -> Any:
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Command(ModuleType):
    """A module of a command, such as `deft_hf.evaluate`, which can be called as the function under it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _at_home(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module of a command puts it in the place of the function of the same name.
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _Command
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if "transformers" in sys.modules:  # its Auto classes then open what only deft_hf has a class for
    import_module(f"{__name__}.models.own")
