"""Models with adapters of `peft` that the caller put in: their LoRA layers are trained and merged into the export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.utils import logging

from deft_hf.methods import compose
from deft_hf.methods.base import NEEDS_WHOLE, Ingredient, Launcher, Run
from deft_hf.methods.composition import Composition
from deft_hf.methods.lora import LoRA, conflicts, keep_geometry, merged, trains_one_model
from deft_hf.models.families import SegmentationFamily
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.errors import UserError

logger = logging.get_logger(__name__)

ADAPTERS = "adapters"  # of `deft_state.json`


class GivenAdapters(Ingredient):
    """Adapters that were in the model when it came, in place of those of `lora_rank`."""

    name = "peft"
    summary = "the adapters of a PeftModel, merged into the export"
    adapts = True

    def __init__(self, settings: DeFTTrainingArguments) -> None:
        super().__init__(Ingredient.Settings())
        self.warmup_steps = settings.decoder_warmup_steps
        self.warms_up = False
        self.found = ""

    def problems(self, run: Run) -> Iterator[str]:
        self.warms_up = len(run.method.stages) > 1 and self.warmup_steps != 0
        if not trains_one_model(run):
            yield "a model of peft goes with method joint or lp_ft and average: none; for others set lora_rank instead"
        yield from conflicts("a model of peft", run)
        if run.get(LoRA):
            yield "found a model of peft and lora_rank: leave lora_rank out, or pass a model without adapters"

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.shards_parameters:
            yield f"a model of peft {NEEDS_WHOLE}"

    def adapt(self, model: nn.Module, family: SegmentationFamily) -> SegmentationFamily:
        trained = [n for n, p in model.named_parameters() if p.requires_grad and family.is_trained(n)]
        if not trained:
            raise UserError(
                "model: found every parameter of the PeftModel frozen, so that there is nothing to train: load its "
                "adapters with PeftModel.from_pretrained(..., is_trainable=True)."
            )
        if not any(family.part_of(name) == "decoder" for name in trained):
            heads = sorted(
                {n.partition(".")[0] for n, _ in model.named_parameters() if family.part_of(n) == "decoder"}
            )
            advice = (
                "peft freezes the decoder, and nothing of it is trained: to train it fully name it in "
                f"LoraConfig(modules_to_save={heads})"
            )
            if self.warms_up:
                raise UserError(f"model: {advice}. The decoder warm-up has nothing to train without it.")
            logger.warning(f"{advice}. A decoder that is fresh stays random.")
        self.found = _described(model, trained)
        return family

    def of_model(self) -> dict[str, Any]:
        return {ADAPTERS: self.found}

    def plain(self, model: nn.Module, family: SegmentationFamily) -> nn.Module:
        return merged(model)


def compose_for(args: DeFTTrainingArguments, model: nn.Module) -> Composition:
    """What `args` ask for, and the adapters of a model that came with them.

    Args:
        args (`DeFTTrainingArguments`):
            Arguments of the run.
        model (`nn.Module`):
            As returned by [`unwrapped`].

    Raises:
        UserError: The model has adapters, and what is asked for does not go with them.
    """
    if not any(map(_is_of_peft, model.modules())):
        return compose(args)
    composition = compose(args, GivenAdapters(args))
    if problems := composition.problems():
        raise UserError("\n".join(problems))
    return composition


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in a `PeftModel`, with its LoRA layers, and with the trained copies of `modules_to_save` in place.

    Args:
        model (`nn.Module`):
            Any model; it is changed in place. One without adapters is returned itself.

    Raises:
        UserError: It has adapters that cannot be merged.
    """
    if not any(map(_is_of_peft, model.modules())):
        return model
    from peft import PeftModel
    from peft.utils import ModulesToSaveWrapper

    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in list(inner.named_modules()):
        if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            inner.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    layers = _outermost(inner)
    if not layers or not all(map(_can_be_merged, layers)):
        found = ", ".join(sorted({f"{type(each).__module__}.{type(each).__name__}" for each in layers or [model]}))
        raise UserError(
            f"model: found adapters of peft that cannot be trained here and merged ({found}), expected unmerged LoRA "
            "layers (LoraConfig) of linear layers, convolutions or embeddings: undo what was merged "
            "(model.unmerge_adapter()), or merge or remove others (model.merge_and_unload() or model.unload())."
        )
    for layer in layers:
        keep_geometry(layer)
    return inner


def _described(model: nn.Module, trained: list[str]) -> str:
    """The adapters in a few words, which differ where they compute otherwise, and what is trained beside them."""
    layers = Counter(
        f"{name.rpartition('.')[2]} r={layer.r[adapter]} alpha={layer.lora_alpha[adapter]:g}"
        + f" scale={layer.scaling[adapter]:g}"
        for name, layer in _lora_layers(model)
        for adapter in layer.active_adapters
    )
    whole = sorted({name.partition(".")[0] for name in trained if ".lora_" not in name})
    beside = f", and {', '.join(whole)} whole" if whole else ""
    return "; ".join(f"{count} x {words}" for words, count in sorted(layers.items())) + beside


def _lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def _outermost(module: nn.Module) -> list[nn.Module]:
    """Modules of peft, without those inside them."""
    if _is_of_peft(module):
        return [module]
    return [layer for child in module.children() for layer in _outermost(child)]


def _can_be_merged(layer: Any) -> bool:
    from peft.tuners.lora import Conv2d, Embedding, Linear

    return type(layer) in (Linear, Conv2d, Embedding) and not layer.merged
