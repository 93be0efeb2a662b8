"""Mixout and its anchors, against the formula."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deft_hf.methods.mixout import mixed
from deft_hf.models.views import exchange, sharing
from tests.methods.test_rivals import GMIXOUT, Recorder, differing, parameters
from tests.trainer.test_trainer import trainer, without_batchnorm


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_share_of_the_elements_is_the_anchor_and_the_rest_is_stretched():
    weights, anchor = drawn(400, 50, seed=1).requires_grad_(), drawn(400, 50, seed=2)
    found = mixed(weights, anchor, 0.75, torch.Generator().manual_seed(3))
    kept = found == anchor
    assert 0.74 < kept.double().mean() < 0.76
    torch.testing.assert_close(found[~kept], (anchor + 4 * (weights - anchor))[~kept], rtol=0, atol=1e-12)
    gradient = drawn(400, 50, seed=4)
    found.backward(gradient)
    torch.testing.assert_close(weights.grad, torch.where(kept, 0.0, 4 * gradient), rtol=0, atol=1e-12)


def test_the_mean_over_masks_is_the_weights():
    weights, anchor, generator = drawn(5, 4, seed=1), drawn(5, 4, seed=2), torch.Generator().manual_seed(3)
    mean = torch.stack([mixed(weights, anchor, 0.5, generator) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, weights, rtol=0, atol=0.15)


def test_a_view_with_other_tensors_shares_all_else():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
    before, inputs = copy.deepcopy(model.state_dict()), torch.randn(4, 3)
    tensors = {"0.weight": 2 * model[0].weight, "1.1.bias": model[1][1].bias + 1}
    view = sharing(model)
    exchange(view, tensors)
    outputs = view(inputs)
    hidden = F.batch_norm(F.linear(inputs, 2 * model[0].weight, model[0].bias), None, None, training=True)
    torch.testing.assert_close(outputs, F.linear(hidden, model[1][1].weight, model[1][1].bias + 1))
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.0.running_mean", "1.0.running_var", "1.0.num_batches_tracked"}


@pytest.mark.parametrize("size, accumulation", [(4, 1), (2, 2)])
@pytest.mark.parametrize("own", [{"mixout_probability": 0.6}, {"average": "ema", **GMIXOUT}], ids=["start", "average"])
def test_the_gradient_is_that_of_the_mixed_model(tmp_path, own, size, accumulation):
    batches, period = [], own.get("mixout_period", 1)
    run = trainer(
        tmp_path,
        model=without_batchnorm(),
        method="joint",
        max_steps=4,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0,
        ema_decay=0.5,
        ema_decay_steps=None,
        **own,
    )
    collate = run.data_collator
    run.data_collator = lambda items: batches.append(collate(items)) or batches[-1]
    seen, start = Recorder().watch(run), parameters(run.pathways.usual)
    run.train()

    reference, part = without_batchnorm(), run.family.part_of
    for step, (found, weights) in enumerate(zip(seen.gradients, seen.before, strict=True)):
        anchor = start if "average" not in own or not step else seen.generalized[step - 1]
        generator = torch.Generator().manual_seed(run.args.seed * 1_000_003 + step // period)
        masks = {
            name: torch.empty_like(value).bernoulli_(0.4, generator=generator) / 0.4
            for name, value in weights.items()
            if part(name) == "encoder" and value.ndim > 1
        }
        seen_ = {n: anchor[n] + masks[n] * (w - anchor[n]) if n in masks else w for n, w in weights.items()}
        reference.load_state_dict({**reference.state_dict(), **seen_})
        reference.zero_grad()
        mine = batches[step * accumulation : (step + 1) * accumulation]
        valid = sum(int((batch["labels"] != 255).sum()) for batch in mine)
        for batch in mine:
            logits = F.interpolate(reference(batch["pixel_values"]).logits, size=(64, 64), mode="bilinear")
            (F.cross_entropy(logits, batch["labels"], ignore_index=255, reduction="sum") / valid).backward()
        for name, parameter in reference.named_parameters():
            expected = parameter.grad * masks.get(name, 1.0)
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6, msg=f"{step} {name}")
    assert len(masks) > 10
    if "average" in own:
        assert len(differing(parameters(run.generalized_model), seen.usual[-1])) == len(start)
