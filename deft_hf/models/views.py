"""Views: a model in which one submodule, or some parameters, are others, without copying a parameter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def with_module(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """`model` with `module` at `path`.

    Only the modules along the path are copied, shallowly: no parameter is registered twice, the model itself does not
    change, and no architecture's forward is rewritten.

    Args:
        model (`nn.Module`):
            Model that shares everything else with the view.
        path (`str`):
            Dotted path of the submodule to replace.
        module (`nn.Module`):
            Module at `path` in the view.
    """
    *parents, name = path.split(".")
    view = node = _shallow_copy(model)
    for parent in parents:
        child = _shallow_copy(node.get_submodule(parent))
        node._modules[parent] = child
        node = child
    node._modules[name] = module
    return view


def sharing(model: nn.Module) -> nn.Module:
    """A copy of `model`'s modules over its own parameters and buffers, in which `exchange` may put others.

    The modules are all copied, since what transformers hooks into some of them to record hidden states must not be
    there twice.
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def exchange(view: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, which may have a graph, in the place of parameters of a copy that `sharing` made, by name."""
    for name, tensor in tensors.items():
        path, _, own = name.rpartition(".")
        parameters: dict[str, Any] = view.get_submodule(path)._parameters
        parameters[own] = tensor


def _shallow_copy(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone
