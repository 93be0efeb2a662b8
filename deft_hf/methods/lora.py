"""Low-rank adapters (LoRA) on the encoder: a rival that fine-tunes few parameters, put in and merged by `peft`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deft_hf.methods.base import NEEDS_WHOLE, NOT_NEGATIVE, POSITIVE, Ingredient, Launcher, Run, setting
from deft_hf.methods.digrap import DiGraP
from deft_hf.methods.l2_sp import L2SP
from deft_hf.methods.mixout import Mixout
from deft_hf.methods.spd import SPD
from deft_hf.methods.variant import Variant, values
from deft_hf.methods.wise_ft import WiSEFT
from deft_hf.utils.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from deft_hf.models.families import SegmentationFamily

NAME = "default"  # what peft's own functions look for
MARKS = (f".lora_A.{NAME}.", f".lora_B.{NAME}.")
# What peft's wrapper of a convolution lacks and other modules read: MobileNetV2's padding needs the stride.
GEOMETRY = ("stride", "kernel_size", "padding", "dilation", "padding_mode", "groups")

INITS = ("zero", "smallest")

# What peft, and transformers' own way to it, leave on a model; with the second an export would be of adapters alone.
NOTES = ("peft_config", "_hf_peft_config_loaded")


@dataclass
class LoRASettings:
    """Of the adapters."""

    lora_rank: int = setting(
        0,
        "Train low-rank adapters of this rank instead of the encoder's weights (needs peft); they are merged into "
        "what is saved. 0: the weights themselves.",
        allowed=NOT_NEGATIVE,
        identity=True,
        state=True,
    )
    lora_alpha: float | None = setting(
        None,
        "Scale of the adapters is lora_alpha / lora_rank. Default: the rank.",
        allowed=POSITIVE,
        identity=True,
        state=True,
    )
    lora_init: str = setting(
        "zero",
        "What the adapters start from: a product of zero (LoRA), or the smallest singular components of each weight, "
        "which keeps the others (smallest: SoMA's and MiLoRA's). Neither changes the model's outputs.",
        choices=INITS,
        identity=True,
        state=True,
    )


class LoRA(Ingredient):
    """Adapters in the encoder instead of its weights (Hu et al., ICLR 2022), merged into the export.

    With an average, and so with DeFT, the two components share the frozen weights and have factors of their own. What
    is averaged is each factor, as any trained parameter, and the export merges the product of the averages, which is
    not the average of the products. That is ours.

    Of SoMA (Yun et al., CVPR 2025, https://arxiv.org/abs/2412.04077) this is the start alone, `lora_init: smallest`,
    which MiLoRA has too (Wang et al., NAACL 2025, https://arxiv.org/abs/2406.09044). SoMA also freezes the first
    blocks, trains the biases of adapted layers, and anneals the weight decay, which pulls these factors to zero and so
    the layer away from its pretrained weight.
    """

    name = "lora"
    summary = "low-rank adapters in the encoder, merged into the export"
    paper = "Hu et al. 2022, https://arxiv.org/abs/2106.09685"
    Settings = LoRASettings
    settings: LoRASettings
    adapts = True
    variants = {
        "lora": Variant(
            "lp_ft with low-rank adapters in the encoder (Hu et al. 2022), merged",
            {"method.name": "lp_ft", "method.lora_rank": 16},
            tries=values("method.lora_rank", 4, 16, 64),
        ),
        "deft_lora": Variant(
            "DeFT over low-rank adapters in the encoder, whose frozen weights both components share (ours)",
            {"method.name": "deft", "method.lora_rank": 16, "method.evaluate_usual": True},
            tries=values("method.lora_rank", 4, 16, 64),
        ),
        "lora_smallest": Variant(
            "lora from the smallest singular components of each weight (SoMA, Yun et al. 2025)",
            {"method.name": "lp_ft", "method.lora_rank": 16, "method.lora_init": "smallest"},
            tries=values("method.lora_rank", 4, 16, 64),
        ),
        "deft_lora_smallest": Variant(
            "deft_lora from the smallest singular components of each weight (ours)",
            {
                "method.name": "deft",
                "method.lora_rank": 16,
                "method.lora_init": "smallest",
                "method.evaluate_usual": True,
            },
            tries=values("method.lora_rank", 4, 16, 64),
        ),
    }

    @property
    def is_on(self) -> bool:
        return self.settings.lora_rank > 0

    def problems(self, run: Run) -> Iterator[str]:
        if not run.method.trains_encoder():
            yield f"lora_rank goes with a method that trains the encoder, which {run.method.name} does not"
        yield from conflicts("lora_rank", run)

    def refusals(self, launcher: Launcher) -> Iterator[str]:
        if launcher.shards_parameters:
            yield f"lora_rank {NEEDS_WHOLE}"

    def adapt(self, model: nn.Module, family: SegmentationFamily) -> SegmentationFamily:
        rank = self.settings.lora_rank
        return add_adapters(model, family, rank, self.settings.lora_alpha or rank, self.settings.lora_init)

    def plain(self, model: nn.Module, family: SegmentationFamily) -> nn.Module:
        return merged(model)


def conflicts(adapters: str, run: Run) -> Iterator[str]:
    """What does not go with adapters in a run, one message each; `adapters` names where they come from."""
    distance = run.get(L2SP)
    if (distance and distance.reads_start) or any(map(run.get, (SPD, DiGraP, Mixout, WiSEFT))):
        yield (
            f"{adapters} keeps the encoder's weights: leave distance_weight, projection_weight, "
            "gradient_projection_rate, mixout_probability, interpolation out"
        )


def trains_one_model(run: Run) -> bool:
    """Whether a run has no second component that adapters which came with the model would have to be copied into."""
    return run.method.stages[-1] == "joint" and run.average is None


def has_adapters(model: nn.Module) -> bool:
    """Whether `model` holds adapters that `merged` would fold into its weights."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def add_adapters(
    model: nn.Module, family: SegmentationFamily, rank: int, alpha: float, init: str = "zero"
) -> SegmentationFamily:
    """Put LoRA adapters into the encoder, in place, and freeze everything else of it; the decoder stays as it is.

    A layer with weight W0 gets W = W0 + (alpha / rank) B A with trained A (rank x in) and B (out x rank), B = 0 at the
    start, so that the model's outputs do not change (Hu et al., ICLR 2022, arXiv 2106.09685, section 4.1). A
    convolution's A is a convolution of the same geometry with `rank` outputs, its B is 1 x 1. Norms, embeddings and
    biases of the encoder are frozen; the running statistics of its BatchNorm go on in training mode.

    With `init="smallest"` A and B are others, and the outputs change by rounding alone: see [`start_from_smallest`].

    Adapted is every `Linear` and every ungrouped `Conv2d` that a gradient reaches, of exactly these classes: a class
    derived from them may use its weight in ways that adding B A to the output does not match.

    Args:
        model (`nn.Module`):
            A segmentation model. The draws of A depend on its layers and on torch's global seed alone.
        family (`SegmentationFamily`):
            Its split, from `resolve_family`.
        rank (`int`):
            Rank of B A, at least 1.
        alpha (`float`):
            Scale of B A in units of the rank.
        init (`str`, *optional*, defaults to `"zero"`):
            `"smallest"` starts from other factors, see [`start_from_smallest`].

    Returns:
        `SegmentationFamily`: The family of the adapted model: its trained parameters are the adapters' and the
        decoder's.

    Raises:
        UserError: `peft` cannot be imported; `rank` is below 1; the model has adapters already, or no layer to adapt.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError(f"adapters need peft: pip install 'deft-hf[peft]' ({error}).") from None
    if rank < 1:
        raise UserError(f"the rank of the adapters is {rank}, expected at least 1.")
    if has_adapters(model):
        raise UserError("the model has adapters already: merge them first.")
    layers = {
        path: [
            name
            for name, module in model.get_submodule(path).named_modules()
            if name and _is_adaptable(module) and family.is_trained(f"{path}.{name}.weight")
        ]
        for path in family.encoders
    }
    if not any(layers.values()):
        raise UserError(f"encoder {family.encoder!r} has no linear layer and no ungrouped convolution to adapt.")
    for path, names in layers.items():
        encoder = model.get_submodule(path).requires_grad_(False)
        if names:
            _inject(encoder, names, rank, alpha)
            for name in names if init == "smallest" else ():
                start_from_smallest(encoder.get_submodule(name))
    return replace(family, never_trained=family.never_trained + _frozen(model, family))


def _inject(encoder: nn.Module, layers: list[str], rank: int, alpha: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    # One pattern for whole names: peft takes an item of a list for the end of a name.
    targets = "|".join(re.escape(name) for name in layers)
    options: dict[str, Any] = {"lora_alpha": alpha}  # annotated as an int, and used as any number
    config = LoraConfig(r=rank, target_modules=targets, lora_dropout=0.0, bias="none", **options)
    inject_adapter_in_model(config, encoder, NAME)
    for module in encoder.modules():
        keep_geometry(module)


def start_from_smallest(layer: Any) -> None:
    """Move the smallest singular components of a layer's weight into its fresh adapter, in place.

    Of W = U S V^T, with s = alpha / rank and the r = rank smallest components: B = U_r (S_r / s)^1/2,
    A = (S_r / s)^1/2 V_r^T, and the frozen weight is W0 = W - s B A (SoMA: Yun et al., CVPR 2025, arXiv 2412.04077;
    MiLoRA: Wang et al., NAACL 2025, arXiv 2406.09044). A convolution is the matrix of its outputs by all that one of
    them sees. A layer with fewer components than the rank gives all of them, and what is left of its adapter starts
    as LoRA's.

    Args:
        layer (`peft.tuners.lora.LoraLayer`):
            A linear layer or a convolution with an adapter that was just put in.
    """
    import torch

    first, second, scale = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]
    weight = layer.get_base_layer().weight
    kind = torch.promote_types(weight.dtype, torch.float32)
    with torch.no_grad():
        left, sizes, right = torch.linalg.svd(weight.flatten(1).to(kind), full_matrices=False)
        count = min(len(first), len(sizes))
        roots = (sizes[-count:] / scale).sqrt()
        first[:count] = (roots[:, None] * right[-count:]).view(first[:count].shape)
        second[:, :count] = (left[:, -count:] * roots).view(second[:, :count].shape)
        change = scale * second.flatten(1).to(kind) @ first.flatten(1).to(kind)
        weight.data = weight - change.view(weight.shape).to(weight.dtype)


def keep_geometry(layer: Any) -> None:
    """Give an adapted convolution, and its factors A, what they lack of the geometry of the layer inside."""
    from peft.tuners.lora import Conv2d

    if isinstance(layer, Conv2d):
        base: Any = layer.get_base_layer()
        for name in GEOMETRY:
            setattr(layer, name, getattr(base, name))
        for first in layer.lora_A.values():
            # peft leaves these at their defaults (https://github.com/huggingface/peft/issues/3697).
            first.dilation, first.padding_mode = base.dilation, base.padding_mode
            first._reversed_padding_repeated_twice = base._reversed_padding_repeated_twice


def merged(model: nn.Module) -> nn.Module:
    """A copy of `model` without adapters, of the original class and names, that gives the same outputs.

    Args:
        model (`nn.Module`):
            Model with LoRA layers, from `add_adapters` or another hand; it is not changed and can be trained further.
            One without adapters is returned itself.
    """
    if not has_adapters(model):
        return model
    from peft.tuners.lora import LoraLayer

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        for note in NOTES:
            vars(module).pop(note, None)
    return model


def _is_adapter(name: str) -> bool:
    return any(mark in name for mark in MARKS)


def _is_adaptable(module: nn.Module) -> bool:
    from torch import nn

    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _frozen(model: nn.Module, family: SegmentationFamily) -> tuple[str, ...]:
    """Patterns of every encoder parameter that is no adapter's.

    By the last two parts of the names, which an adapter shares with no other parameter: one pattern serves all
    blocks, where one for each name would cost the square of their number whenever a model's names are gone through.
    """
    patterns: dict[str, None] = {}
    for name, _ in model.named_parameters():
        if family.part_of(name) == "encoder" and not _is_adapter(name):
            path = next(path for path in family.encoders if name.startswith(f"{path}."))
            inner = name.removeprefix(f"{path}.").split(".")
            patterns[name if len(inner) < 3 else f"{path}.*.{inner[-2]}.{inner[-1]}"] = None
    return tuple(patterns)
