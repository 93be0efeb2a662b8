"""Which tensors of a model are pretrained and which are new, and whether a checkpoint may lack the new ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from deft_hf.models.families import SegmentationFamily
from deft_hf.utils.errors import UserError


def newly_made(
    model: PreTrainedModel, family: SegmentationFamily, keys: Mapping[str, Any], classes_before: int, where: str
) -> list[str]:
    """Names of the tensors that a checkpoint lacks, in the model's order, provided it may lack them.

    A checkpoint to fine-tune is either a segmentation model, whose tensors with one row per class are new if it has
    other classes, or an encoder without any part of the decoder, which is then new. Parts that are never trained
    (auxiliary heads) may be missing.

    Args:
        model (`PreTrainedModel`):
            Model as loaded, for the new classes.
        family (`SegmentationFamily`):
            Its split into encoder and decoder.
        keys (`Mapping[str, Any]`):
            The `output_loading_info` of `from_pretrained(..., ignore_mismatched_sizes=True)`.
        classes_before (`int`):
            `num_labels` of the checkpoint's config.
        where (`str`):
            Key and value in the user's recipe, for the error message.

    Raises:
        UserError: If anything else is missing or has another size.
    """
    config: Any = model.config
    change = classes_before - config.num_labels
    sizes = {key: (tuple(before), tuple(now)) for key, before, now in keys["mismatched_keys"]}
    rows = {key for key, (before, now) in sizes.items() if _rows_of_classes(before, now, change)}
    new = {*keys["missing_keys"], *sizes}
    names = [name for name in model.state_dict() if name in new]
    wanted = [name for name in names if family.is_trained(name)]
    lost = [name for name in wanted if family.part_of(name) == "encoder"]
    if lost:
        raise UserError(
            f"{where} lacks {len(lost)} tensors of the encoder, {lost[0]} first, or has them in another size: there "
            "would be nothing to retain. Give one of the same architecture."
        )
    decoder = [n for n in model.state_dict() if family.part_of(n) == "decoder" and family.is_trained(n)]
    found = sorted(set(decoder) - set(keys["missing_keys"]))
    odd = [name for name in wanted if name not in rows]
    if odd and found:
        sized = f" (of size {sizes[odd[0]][0]}, expected {sizes[odd[0]][1]})" if odd[0] in sizes else ""
        raise UserError(
            f"{where} has a part of the decoder ({found[0]}, for one) but lacks {summary(odd, model.state_dict())}"
            f"{sized}. Only the classifier may be new: give a whole segmentation model, or an encoder without a head."
        )
    return names


def _rows_of_classes(before: tuple[int, ...], now: tuple[int, ...], change: int) -> bool:
    return change != 0 and before[1:] == now[1:] and before[0] - now[0] == change


def draw_classifier(model: PreTrainedModel, new: Sequence[str]) -> list[str]:
    """Reinitialize, in place, the tensors with one row per class of a checkpoint for as many other classes.

    Args:
        model (`PreTrainedModel`):
            Model as loaded.
        new (`Sequence[str]`):
            Names of the tensors that were not in the checkpoint.

    Returns:
        `list[str]`: `new` and the names of the reinitialized tensors, in the model's order.
    """
    config: Any = copy.deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        wider = type(model)(config).state_dict()
    tensors = model.state_dict()
    rows = [name for name, tensor in tensors.items() if tensor.shape != wider[name].shape and name not in new]
    if rows:
        drawn = type(model)(model.config).state_dict()
        for name in rows:
            tensors[name].copy_(drawn[name])
    return [name for name in tensors if name in {*new, *rows}]


def summary(names: Sequence[str], everything: Iterable[str]) -> str:
    """The names in one line, where `module.*` stands for all tensors of a module.

    Args:
        names (`Sequence[str]`):
            Names of tensors.
        everything (`Iterable[str]`):
            The names of all tensors of the model.
    """
    chosen, everything = set(names), list(everything)
    shown: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        whole = (".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
        prefix = next((p for p in whole if all(n in chosen for n in everything if n.startswith(p))), None)
        key = f"{prefix}*" if prefix else name
        shown[key] = shown.get(key, 0) + 1
    return ", ".join(f"{key} ({count})" if key.endswith("*") else key for key, count in shown.items()) or "nothing"
