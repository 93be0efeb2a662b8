import weakref
from functools import partial

import pytest
import torch
from torch import nn

from deft_hf.methods.core import losses
from deft_hf.methods.core import pathways as module
from deft_hf.methods.core.staged import staged
from tests import tiny
from tests.methods.core.test_pathways import dual


class Kept:
    def __init__(self, tensor):
        self.tensor = tensor


def step(model_type, stage, may_stage, monkeypatch):
    """Loss, gradients, and bytes that autograd still keeps when the forward has ended."""
    with monkeypatch.context() as patch:
        if not may_stage:
            patch.setattr(losses, "can_be_staged", lambda tensors: False)
        pathways = dual(model_type, stage=stage)
        batch = tiny.batch(4)
        batch = tiny.with_masks(batch) if pathways.family.objective.needs_masks else batch
        alive: weakref.WeakSet = weakref.WeakSet()

        def pack(tensor):
            kept = Kept(tensor)
            alive.add(kept)
            return kept

        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            loss = pathways(**batch)["loss"]
        size = sum(kept.tensor.nbytes for kept in alive)
        (2 * loss).backward()
    return float(loss.detach()), {name: p.grad for name, p in pathways.named_parameters() if p.grad is not None}, size


@pytest.mark.parametrize("stage", ["decoupled", "split"])
@pytest.mark.parametrize("model_type", ["segformer", "mobilenet_v2", "mask2former"])
def test_gradients_are_those_of_one_graph_bit_for_bit_and_less_is_kept(monkeypatch, model_type, stage):
    loss, gradients, kept = step(model_type, stage, True, monkeypatch)
    expected, wanted, kept_at_once = step(model_type, stage, False, monkeypatch)
    assert loss == expected and gradients.keys() == wanted.keys() and len(wanted) > 10
    assert [name for name, value in wanted.items() if not torch.equal(gradients[name], value)] == []
    assert kept < 0.95 * kept_at_once


def test_gradients_that_the_backward_gathers_or_scales_wait_for_it(monkeypatch):
    pathways, taken_ahead = dual(), []
    monkeypatch.setattr(losses, "staged", lambda loss, tensors: taken_ahead.append(tensors) or loss())

    def may_stage(pathways):
        taken_ahead.clear()
        pathways(**tiny.batch())
        return taken_ahead == [pathways.trained("decoder")] if taken_ahead else False

    assert may_stage(pathways)
    with torch.autocast("cpu", torch.bfloat16):
        assert may_stage(pathways)
    with torch.autocast("cpu", torch.float16):
        assert not may_stage(pathways)
    with torch.no_grad():
        assert not may_stage(pathways)
        assert pathways(**tiny.batch())["loss"] > 0
    monkeypatch.setattr(module, "is_sharded", lambda model: True)
    pathways.enter("decoupled")
    assert not may_stage(pathways)


def gradients(loss, parameters, taken_ahead, autocast=False, scale=2):
    for each in parameters:
        each.grad = None
    for _ in range(2):  # the second is added, in place, to a gradient that must be the parameter's own
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = staged(loss, parameters) if taken_ahead else loss()
        (scale * value).backward()
    return [each.grad for each in parameters]


def in_float32(first, second):
    with torch.autocast("cpu", enabled=False):
        return (first @ second).sigmoid().sum()


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    "loss, autocast",
    [
        (lambda a, b: ((a + b) * torch.arange(9.0).view(3, 3)).sum(), False),  # the gradients are one tensor
        (lambda a, b: a.sum() + b.sum(), False),  # each is a single number, expanded
        (lambda a, b: (2 * a).sum(), False),  # there is one alone
        (in_float32, True),
    ],
)
def test_any_gradients_are_handed_on_as_they_are(loss, autocast, scale):
    torch.manual_seed(0)
    pair = [nn.Parameter(torch.randn(3, 3)) for _ in range(2)]
    found, expected = (gradients(partial(loss, *pair), pair, ahead, autocast, scale) for ahead in (True, False))
    for own, wanted in zip(found, expected, strict=True):
        assert (own is None and wanted is None) or torch.equal(own, wanted)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_hook_on_a_parameter_changes_its_gradient_once(part):
    grads = []
    for hook in (None, lambda gradient: 0.5 * gradient):
        pathways = dual()
        parameter = pathways.trained(part)[0]
        if hook:
            parameter.register_hook(hook)
        torch.manual_seed(0)
        pathways(**tiny.batch(4))["loss"].backward()
        grads.append(parameter.grad)
    assert torch.equal(grads[1], 0.5 * grads[0])
