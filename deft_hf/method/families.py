"""What deft_hf knows of architectures, in one table: where the encoder ends, and how logits and loss are made.

Nothing else in the project asks which architecture a model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deft_hf.errors import UserError

IGNORE_INDEX = 255

Batch = Mapping[str, Any]


class Objective(Protocol):
    """How a kind of model turns a batch into a loss, and its outputs into semantic logits.

    The loss is a *sum* over items and `count` says how many items a batch has, so that the caller can divide by the
    items of the whole optimizer step over all ranks. Items are valid pixels for per-pixel heads; for
    mask-classification heads they are target masks.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def count(self, batch: Batch) -> Tensor: ...

    def logits(self, outputs: Any) -> Tensor: ...


class PerPixel:
    """Cross-entropy on every pixel whose label is not 255, with the logits resized to the label's size."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over the valid pixels of `batch`, a float32 scalar; exactly 0 without any.

        Args:
            model: returns logits (N, C, h, w), of any resolution, or an output that has them as `logits`.
            batch: `pixel_values` (N, 3, H, W) float and `labels` (N, H, W) int64.
        """
        labels = batch["labels"]
        logits = self.logits(model(batch["pixel_values"]))
        if logits.dtype in (torch.float16, torch.bfloat16):
            # A sum over millions of pixels overflows fp16 and stalls in bf16.
            logits = logits.float()
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")

    def count(self, batch: Batch) -> Tensor:
        """Valid pixels of `batch`, an int64 scalar on the labels' device."""
        return (batch["labels"] != IGNORE_INDEX).sum()

    def logits(self, outputs: Any) -> Tensor:
        """Semantic logits (N, C, h, w) as the model gives them."""
        return outputs if isinstance(outputs, Tensor) else outputs.logits


@dataclass(frozen=True)
class SegmentationFamily:
    """Where one architecture's encoder is, and how it is trained and read.

    Args:
        encoder: dotted path of the encoder; every parameter outside it belongs to the decoder.
        never_trained: patterns (`fnmatch`) of parameters that no gradient reaches, such as an auxiliary head that the
            method does not use or a last norm that the decoder does not read. They are frozen.
        blocks: dotted path of the encoder's transformer blocks where the decoder reads only those up to the last of
            `config.out_indices`; the blocks after it are never trained either.
        objective: how loss and logits are computed.
    """

    encoder: str
    never_trained: tuple[str, ...] = ()
    blocks: str | None = None
    objective: Objective = PerPixel()

    def logits(self, outputs: Any) -> Tensor:
        """Raw semantic logits (N, C, h, w) out of the model's outputs."""
        return self.objective.logits(outputs)

    def part_of(self, name: str) -> str:
        """`"encoder"` or `"decoder"`: the part that the parameter or buffer `name` belongs to."""
        return "encoder" if name.startswith(self.encoder + ".") else "decoder"

    def is_trained(self, name: str) -> bool:
        """Whether a gradient can reach the parameter `name`."""
        return not any(fnmatchcase(name, pattern) for pattern in self.never_trained)


def _unread(backbone: str) -> tuple[str, ...]:
    """Patterns of what a head does not read of transformers' backbone classes: tokens for masked images, and the last
    norms of models whose backbone class has a norm for each feature map.
    """
    unread = ("*embeddings.mask_token", "swin.layernorm.*", "model.layernorm.*", "bit.norm.*")
    return tuple(f"{backbone}.{name}" for name in unread)


FAMILIES: dict[str, SegmentationFamily] = {
    "beit": SegmentationFamily("beit", ("auxiliary_head.*",), blocks="beit.layers"),
    "data2vec-vision": SegmentationFamily(
        "data2vec_vision", ("auxiliary_head.*",), blocks="data2vec_vision.encoder.layer"
    ),
    "dpt": SegmentationFamily(
        "dpt", ("auxiliary_head.*", "dpt.layernorm.*", "neck.fusion_stage.layers.0.residual_layer1.*")
    ),
    "mobilenet_v2": SegmentationFamily("mobilenet_v2", ("mobilenet_v2.conv_1x1.*",)),
    "mobilevit": SegmentationFamily("mobilevit"),
    "mobilevitv2": SegmentationFamily("mobilevitv2"),
    "sapiens2": SegmentationFamily("model"),
    "segformer": SegmentationFamily("segformer"),
    "tipsv2_dpt": SegmentationFamily("backbone", _unread("backbone")),
    "upernet": SegmentationFamily("backbone", ("auxiliary_head.*", *_unread("backbone"))),
}


def resolve_family(model: nn.Module, encoder: str | None = None) -> SegmentationFamily:
    """The family of `model`, looked up by `model.config.model_type`.

    Args:
        model: a Hugging Face semantic segmentation model.
        encoder: dotted path of the encoder, for a model that the table does not know, or to split a known one
            elsewhere.

    Raises:
        UserError: the type is unknown and no `encoder` was given; `encoder` is no submodule, or holds all parameters
            or none; encoder and decoder share a parameter.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = FAMILIES.get(model_type)
    if encoder is not None:
        family = replace(family, encoder=encoder) if family else SegmentationFamily(encoder)
    if family is None:
        raise UserError(
            f"model type {model_type!r} is unknown: name its encoder (`encoder=` in Python, `model.encoder` in a "
            "recipe). "
            f"Children of the model: {_children(model)}. Known types: {', '.join(sorted(FAMILIES))}."
        )
    _check_split(model, family)
    if family.blocks is not None:
        # `out_indices` counts hidden states from 1, the embeddings first: index i is what block i - 2 (from 0) puts
        # out.
        unread = range(max(model.config.out_indices) - 1, len(model.get_submodule(family.blocks)))
        patterns = tuple(f"{family.blocks}.{index}.*" for index in unread)
        family = replace(family, never_trained=family.never_trained + patterns)
    return family


def _check_split(model: nn.Module, family: SegmentationFamily) -> None:
    try:
        encoder = model.get_submodule(family.encoder)
    except AttributeError:
        raise UserError(f"encoder {family.encoder!r} is not in the model. Its children: {_children(model)}.") from None
    inside = {id(parameter) for parameter in encoder.parameters()}
    outside = {
        name: id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if family.part_of(name) == "decoder"
    }
    shared = [name for name, key in outside.items() if key in inside]
    if shared:
        raise UserError(f"encoder {family.encoder!r} shares {shared[0]!r} with the decoder: they cannot be decoupled.")
    if not inside or not outside:
        raise UserError(
            f"encoder {family.encoder!r} holds {'no' if not inside else 'every'} parameter of the model: "
            f"nothing to decouple. Children of the model: {_children(model)}."
        )


def _children(model: nn.Module) -> str:
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return ", ".join(f"{name} ({size:,} parameters)" for name, size in sizes.items()) or "none"


def untouched_parameters(model: nn.Module, family: SegmentationFamily, batch: Batch) -> list[str]:
    """Names of the parameters that one loss on `batch` gives no gradient: what `never_trained` has to list.

    Gradients are cleared before and after.
    """
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        family.objective.loss(model, batch).backward()
    names = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return names
