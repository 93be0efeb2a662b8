"""Parameters that are spread over ranks: the piece that a rank holds, and the whole.

DDP, ZeRO-1 and ZeRO-2 leave every parameter whole on every rank: its piece is all of it. ZeRO-3 leaves a rank a slice
of the flattened tensor (`ds_tensor`), the last one padded; FSDP2 makes it a `DTensor`. What is done element by
element, such as an average, is done on pieces, without communication. `join` and what calls it are collective: every
rank calls them for the same parameters in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing import TypeGuard

    class ZeroParameter(Tensor):
        """A parameter under ZeRO-3, with what DeepSpeed hangs on it."""

        ds_tensor: Any
        ds_process_group: Any
        ds_numel: int
        ds_shape: torch.Size


def is_sharded(model: nn.Module) -> bool:
    """Whether some parameter of `model` is not whole on this rank."""
    return any(_by_zero(parameter) or isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a parameter or buffer before it was spread."""
    return tensor.ds_shape if _by_zero(tensor) else tensor.shape


@torch.no_grad()
def piece(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter or buffer, sharing its memory."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    if _by_zero(tensor):
        return tensor.ds_tensor.data.narrow(0, 0, _slice(tensor)[1])
    return tensor.data


@torch.no_grad()
def cut(whole: Tensor, like: Tensor) -> Tensor:
    """What this rank would hold of `whole`, spread as `like` is; of the shape of `piece(like)`."""
    if isinstance(like, DTensor):
        whole = whole.to(like.to_local().device)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()
    if _by_zero(like):
        return whole.flatten().narrow(0, *_slice(like))
    return whole


@torch.no_grad()
def join(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which each rank holds `part`, spread as `like` is: `join(cut(x, like), like)` equals `x`."""
    if isinstance(like, DTensor):
        held = like.to_local()
        spread = DTensor.from_local(
            part.to(held.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
        return spread.full_tensor()
    if _by_zero(like):
        padded = F.pad(part.to(like.device), (0, like.ds_tensor.ds_numel - part.numel()))
        ranks = dist.get_world_size(like.ds_process_group)
        parts = padded.new_empty(ranks * padded.numel())
        dist.all_gather_into_tensor(parts, padded, group=like.ds_process_group)
        return parts.narrow(0, 0, like.ds_numel).view(like.ds_shape)
    return part


def sum_over_pieces(value: Tensor, like: Tensor) -> Tensor:
    """The sum of a scalar that each rank computed from its piece of parameters spread as `like` is."""
    if isinstance(like, DTensor):
        for dimension, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(value, group=like.device_mesh.get_group(dimension))
    elif _by_zero(like):
        dist.all_reduce(value, group=like.ds_process_group)
    return value


def whole_state(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The state dict of `model` with whole tensors of their own on the CPU.

    Args:
        model (`nn.Module`):
            Model whose parameters may be sharded over ranks.
        keep (`bool`, *optional*, defaults to `True`):
            `False` takes part in the gathering and keeps nothing, for ranks that do not write.
    """
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        whole = join(piece(tensor), tensor)
        if keep:
            state[name] = whole.detach().to("cpu", copy=True).contiguous()
    return state


@torch.no_grad()
def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into `model`, whose parameters may be spread over ranks.

    Raises:
        ValueError: `state` lacks a tensor, has one of another shape, or one that the model does not know.
    """
    targets = model.state_dict(keep_vars=True)
    if missing := sorted(targets.keys() - state.keys()):
        raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} first")
    if unknown := sorted(state.keys() - targets.keys()):
        raise ValueError(f"{len(unknown)} tensors are of another model, {unknown[0]} first")
    for name, target in targets.items():
        if whole_shape(target) != state[name].shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {tuple(whole_shape(target))}")
        piece(target).copy_(cut(state[name], target))


def empty_copy(model: nn.Module) -> nn.Module:
    """`model` without memory of its own, on the meta device: the shape of what `whole_state` holds."""
    parameters = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, {**parameters, **{id(buffer): buffer.to("meta") for buffer in model.buffers()}})


def _by_zero(tensor: Tensor) -> TypeGuard[ZeroParameter]:
    return hasattr(tensor, "ds_tensor")


def _slice(parameter: ZeroParameter) -> tuple[int, int]:
    """Start and length of this rank's slice of a flattened parameter, without the padding of the last ones."""
    length = parameter.ds_tensor.ds_numel
    start = min(dist.get_rank(parameter.ds_process_group) * length, parameter.ds_numel)
    return start, min(length, parameter.ds_numel - start)
