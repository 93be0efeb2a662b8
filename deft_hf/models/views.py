"""Views: a model in which one submodule is another one, without copying a parameter."""

from __future__ import annotations

import copy

from torch import nn


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


def _shallow_copy(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone
