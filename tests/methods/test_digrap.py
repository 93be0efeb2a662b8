"""Directional gradient projection against the algorithm, written out for one tensor."""

import pytest
import torch

from deft_hf.methods.base import Launcher
from deft_hf.methods.digrap import Strengths
from tests.methods.test_rivals import Recorder, parameters
from tests.trainer.test_trainer import trainer


def reference(gradients, weights, start, rate):
    """The gradients that a run of steps leaves for one tensor, and the strengths, as algorithm 1 has them."""
    strength, mean, square, before, found, strengths = 0.0, 0.0, 0.0, None, [], []
    for t, (g1, theta) in enumerate(zip(gradients, weights, strict=True), 1):
        g2 = theta - start
        projection = (g1 * g2).sum() / (g2 * g2).sum() * g2 if g2.any() else torch.zeros_like(g2)
        if t > 1:
            slope = (g1 * before).sum() / (g1.norm() * before.norm()) if before.any() and g1.any() else 0.0
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            step = mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)) ** 0.5 + 1e-8)
            strength = max(0.0, min(1.0, float(strength - rate * step)))
        found.append(g1 - strength * projection if (g1 * g2).sum() < 0 else g1)
        strengths.append(strength)
        before = projection
    return found, strengths


def drawn(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_projection_equals_the_algorithm():
    starts = [drawn(0, 3, 4), drawn(1, 5)]
    gradients = [[drawn(10 * t + i, *s.shape) for i, s in enumerate(starts)] for t in range(12)]
    tensors = [start.clone().requires_grad_() for start in starts]
    strengths, weights, found, learned = Strengths.of(tensors), [], [], []
    for step in gradients:
        weights.append([tensor.detach().clone() for tensor in tensors])
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = gradient.clone()
        strengths.project(tensors, starts, 0.3)
        found.append([tensor.grad.clone() for tensor in tensors])
        learned.append(strengths.scalars[0].clone())
        with torch.no_grad():
            for tensor in tensors:
                tensor -= 0.1 * tensor.grad
    projected = 0
    for index, start in enumerate(starts):
        mine = [step[index] for step in gradients], [step[index] for step in weights]
        expected, omegas = reference(*mine, start, 0.3)
        assert [float(step[index]) for step in learned] == pytest.approx(omegas, abs=1e-10)
        torch.testing.assert_close([step[index] for step in found], expected, rtol=0, atol=1e-10)
        projected += sum(not torch.equal(a, b) for a, b in zip(expected, mine[0], strict=True))
        assert max(omegas) > 0.05
    assert projected > 4


def test_a_gradient_that_leads_back_is_left_alone_and_a_full_strength_takes_all_that_leads_away():
    start, theta = torch.zeros(2), torch.tensor([3.0, 4.0]).requires_grad_()
    for gradient, expected in (([1.0, 0.0], [1.0, 0.0]), ([-3.0, -4.0], [0.0, 0.0]), ([-5.0, 0.0], [-3.2, 2.4])):
        strengths = Strengths.of([theta])
        strengths.scalars[0] = 1.0
        theta.grad = torch.tensor(gradient)
        strengths.project([theta], [start], 0.0)
        assert theta.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_step_that_will_be_skipped_and_a_tensor_without_gradient_leave_the_strengths_finite():
    tensors = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    strengths = Strengths.of(tensors)
    for gradient in (1.0, float("inf"), float("nan"), -1.0):
        tensors[0].grad = torch.full((3,), gradient)
        strengths.project(tensors, [torch.zeros(3), torch.zeros(2)], 0.1)
    assert strengths.scalars.isfinite().all() and tensors[1].grad is None


@pytest.mark.parametrize("size, accumulation", [(4, 1), (2, 2)])
@pytest.mark.parametrize("method", ["joint", "deft"])
def test_a_run_projects_the_encoder_alone(tmp_path, method, size, accumulation):
    run = trainer(
        tmp_path,
        method=method,
        max_steps=6,
        decoder_warmup_steps=1,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        gradient_projection_rate=0.4,
    )
    start, seen = parameters(run.pathways.usual), Recorder().watch(run)
    callbacks = run.callback_handler.callbacks
    callbacks.insert(0, callbacks.pop(callbacks.index(seen)))  # before the projection
    run.train()
    first = int(method == "deft")
    seen.gradients, seen.before, after = seen.gradients[first:], seen.before[first:], seen.usual[first:]
    projected = 0
    for name, begin in start.items():
        given = [step[name] for step in seen.gradients]  # as they were before the projection
        if run.family.part_of(name) == "decoder":
            expected = given
        else:
            expected, strengths = reference(given, [step[name] for step in seen.before], begin, 0.4)
            projected += max(strengths) > 0
        for before, gradient, moved in zip(seen.before, expected, after, strict=True):
            torch.testing.assert_close(moved[name], before[name] - 0.5 * gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert projected > 10


def test_it_is_refused_where_gradients_cannot_be_changed(tmp_path):
    run = trainer(tmp_path, method="joint", gradient_projection_rate=0.4)
    for launcher in (Launcher(hides_gradients=True), Launcher(shards_parameters=True)):
        assert [reason.startswith("gradient_projection_rate") for reason in run.composition.refusals(launcher)] == [
            True
        ]
