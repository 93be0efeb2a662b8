"""Optimizer state kept whole, in torch's own form, however a run was spread.

A checkpoint can therefore be resumed with another number of processes, or under another launcher.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from deft_hf.methods.core.shards import cut, join, piece

Groups = Sequence[Sequence[nn.Parameter]]


def inner(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer within what Accelerate and DeepSpeed put around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def whole_optimizer_state(optimizer: Any, groups: Groups, keep: bool = True) -> dict[str, Any]:
    """`state_dict()` of an optimizer as if nothing had been spread, on the CPU. Collective.

    Args:
        optimizer (`Any`):
            Optimizer as prepared by Accelerate, after a step.
        groups (`Groups`):
            The parameters of each of its groups, in order.
        keep (`bool`, *optional*, defaults to `True`):
            `False` takes part in the gathering and keeps nothing, for ranks that do not write.
    """
    state, kept_groups, index = {}, [], 0
    for number, (group, parameters) in enumerate(zip(inner(optimizer).param_groups, groups, strict=True)):
        indices = list(range(index, index + len(parameters)))
        kept_groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": indices})
        for place, parameter in zip(indices, parameters, strict=True):
            whole = _whole_state_of(optimizer, number, parameter)
            if keep and whole:
                state[place] = {
                    key: v.to("cpu", copy=True) if isinstance(v, Tensor) else v for key, v in whole.items()
                }
        index += len(parameters)
    return {"state": state, "param_groups": kept_groups} if keep else {}


def load_optimizer_state(optimizer: Any, groups: Groups, saved: Mapping[str, Any]) -> None:
    """Spread what `whole_optimizer_state` or a plain optimizer kept; every rank reads the same.

    Args:
        optimizer (`Any`):
            Optimizer as prepared by Accelerate, before its first step.
        groups (`Groups`):
            The parameters of each of its groups, in order.
        saved (`Mapping[str, Any]`):
            State dict in torch's form.
    """
    base = inner(optimizer)
    for number, (group, kept, parameters) in enumerate(
        zip(base.param_groups, saved["param_groups"], groups, strict=True)
    ):
        group.update({key: value for key, value in kept.items() if key != "params"})
        for index, parameter in zip(kept["params"], parameters, strict=True):
            if index in saved["state"]:
                _place_state_of(optimizer, number, parameter, saved["state"][index])


def reset_optimizer_state(optimizer: Any) -> None:
    """Forget all momentum. DeepSpeed keeps references into its state, which is therefore zeroed in place."""
    base = inner(optimizer)
    if not _zero(optimizer):
        base.state.clear()
        return
    for state in base.state.values():
        for key, value in state.items():
            state[key] = value.zero_() if isinstance(value, Tensor) else type(value)()


def _zero(optimizer: Any) -> Any:
    """DeepSpeed's optimizer around the torch one, or `None`."""
    wrapped = getattr(optimizer, "optimizer", None)
    return wrapped if hasattr(wrapped, "optimizer") else None


class _Held(NamedTuple):
    """What this rank's torch optimizer sees of a parameter under DeepSpeed.

    Attributes:
        flat (`Tensor`):
            The flat float32 tensor that it sees in place of a whole group.
        start (`int`):
            Where in `flat` the parameter is.
        first (`int`):
            Which element of the flattened parameter is there.
        length (`int`):
            How many of its elements are.
    """

    flat: Tensor
    start: int
    first: int
    length: int


def _is_owned(zero: Any, parameter: Any) -> bool:
    """Whether DeepSpeed trains a parameter: it leaves out what needed no gradient when it was set up."""
    if hasattr(parameter, "ds_tensor"):
        return zero.get_param_id(parameter) in zero.grad_position
    return hasattr(parameter, "_hp_mapping")


def _held(zero: Any, number: int, parameter: Any) -> _Held:
    if hasattr(parameter, "ds_tensor"):
        group, start, _ = zero.grad_position[zero.get_param_id(parameter)]
        return _Held(zero.fp32_partitioned_groups_flat[group], start, 0, piece(parameter).numel())
    flat, mapping = zero.single_partition_of_fp32_groups[number], parameter._hp_mapping
    if mapping is None:
        return _Held(flat, 0, 0, 0)
    inside, of_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
    return _Held(flat, inside.start, of_parameter.start, of_parameter.numel)


def _whole_state_of(optimizer: Any, number: int, parameter: nn.Parameter) -> dict[str, Any]:
    base, zero = inner(optimizer), _zero(optimizer)
    if not zero:
        found = base.state.get(parameter, {})
        return {key: v.full_tensor() if isinstance(v, DTensor) else v for key, v in found.items()}
    if not _is_owned(zero, parameter):
        return {}
    held = _held(zero, number, parameter)
    state = base.state.get(held.flat, {})
    return {key: _join(value, held, parameter) if _is_spread(value) else value for key, value in state.items()}


def _join(value: Tensor, held: _Held, parameter: Any) -> Tensor:
    mine = value.narrow(0, held.start, held.length)
    if hasattr(parameter, "ds_tensor"):
        return join(mine, parameter)
    whole = value.new_zeros(parameter.numel())
    whole.narrow(0, held.first, held.length).copy_(mine)
    dist.all_reduce(whole, group=parameter._dp_group)
    return whole.view_as(parameter)


def _place_state_of(optimizer: Any, number: int, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
    base, zero = inner(optimizer), _zero(optimizer)
    if not zero:
        base.state[parameter] = {k: _like(v, parameter) if _is_spread(v) else v for k, v in state.items()}
        return
    if not _is_owned(zero, parameter):
        return
    held = _held(zero, number, parameter)
    own = base.state[held.flat]
    for key, value in state.items():
        if not _is_spread(value):
            own[key] = copy.deepcopy(value)
            continue
        if key not in own:
            own[key] = torch.zeros_like(held.flat)
        first = cut(value, parameter) if hasattr(parameter, "ds_tensor") else value.flatten()
        own[key].narrow(0, held.start, held.length).copy_(first.narrow(0, held.first, held.length))


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _is_spread(value: Any) -> bool:
    """Whether a value of an optimizer's state is of its parameter's shape, and not a count of steps."""
    return isinstance(value, Tensor) and value.ndim > 0
