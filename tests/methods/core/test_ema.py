import math

import pytest
import torch

from deft_hf.methods.averages import SWA, DebiasedEMA
from deft_hf.methods.core.cosine_ema import FallingEMA, RisingEMA
from deft_hf.methods.core.ema import EMA, run_decay, share_left, update_average


def test_the_run_keeps_the_share_that_was_quoted():
    decay = run_decay(0.9999, steps=800, quoted_steps=80_000)
    assert share_left(decay, 800) == pytest.approx(0.9999**80_000, rel=1e-9)
    assert share_left(decay, 400) == pytest.approx(0.9999**40_000, rel=1e-9)
    assert run_decay(0.9999, steps=800, quoted_steps=None) == 0.9999


def drawn(count):
    return torch.randn(count, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def averaged(start, values, weights):
    average = [start.float().clone()]
    for value, weight in zip(values, weights, strict=True):
        update_average(average, [value.float()], weight)
    return average[0]


def test_the_weight_is_that_of_the_current_parameters():
    average, current = [torch.zeros(2), torch.ones(1, 2)], [torch.full((2,), 8.0), torch.full((1, 2), 5.0)]
    update_average(average, current, 0.25)
    assert [tensor.flatten().tolist() for tensor in average] == [[2.0, 2.0], [2.0, 2.0]]
    assert [tensor.flatten().tolist() for tensor in current] == [[8.0, 8.0], [5.0, 5.0]]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_are_exact(weight):
    # D_gc is D_uc where the decay is 0, bit for bit, and stays where it was where the decay is 1.
    average, current = [torch.tensor([0.1, 1e8])], [torch.tensor([0.7, 1e-8])]
    expected = (current if weight else average)[0].clone()
    update_average(average, current, weight)
    assert torch.equal(average[0], expected)


def test_plain_average_equals_the_closed_form():
    start, *values = drawn(6)
    decay = 0.9
    weights = [EMA(decay).weight("encoder", t) for t in range(1, 6)]
    closed = decay**5 * start + sum((1 - decay) * decay ** (4 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(averaged(start, values, weights), closed.float())


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_debiased_average_is_normalised_and_holds_nothing_of_the_start(decay):
    start, *values = drawn(6)
    weights = [DebiasedEMA(decay).weight("encoder", t) for t in range(1, 6)]
    shares = torch.tensor([decay ** (4 - i) for i in range(5)], dtype=torch.float64)
    closed = (shares[:, None] * torch.stack(values)).sum(0) / shares.sum()
    torch.testing.assert_close(averaged(1e6 * start, values, weights), closed.float())


@pytest.mark.parametrize("cls, sign", [(RisingEMA, 1), (FallingEMA, -1)])
def test_a_decay_that_changes_leaves_the_share_of_a_constant_one(cls, sign):
    start, *values = drawn(6)
    decay, left = 0.9, 1.0
    rule, average = cls(decay, 0.0, steps=5), start
    for t, value in enumerate(values, 1):
        own = decay ** (1 + sign * math.cos(math.pi * (t - 0.5) / 5))
        average, left = own * average + (1 - own) * value, left * own
        assert rule.share_left("encoder", t) == pytest.approx(left, rel=1e-12)
        assert rule.weight("decoder", t) == 1.0 and rule.share_left("decoder", t) == 0.0
    assert left == pytest.approx(decay**5, rel=1e-12)
    torch.testing.assert_close(
        averaged(start, values, [rule.weight("encoder", t) for t in range(1, 6)]), average.float()
    )
    assert rule.share_left("encoder", 0) == 1.0


@pytest.mark.parametrize("cls, rises", [(RisingEMA, True), (FallingEMA, False)])
def test_it_goes_from_one_end_to_the_other_and_stays_there(cls, rises):
    decays = [1 - cls(0.99, 0.99, steps=50).weight("encoder", t) for t in range(1, 51)]
    assert (decays == sorted(decays)) == rises and (decays == sorted(decays, reverse=True)) != rises
    assert max(decays) > 0.9999 and min(decays) == pytest.approx(0.99**2, rel=1e-3)
    assert cls(0.99, 0.99, steps=50).weight("encoder", 60) == 1 - decays[-1]
    assert cls(1.0, 0.9, steps=50).weight("encoder", 7) == 0.0


@pytest.mark.parametrize("first", [0, 1, 3])
def test_swa_follows_up_to_its_start_and_is_the_mean_from_there(first):
    start, *values = drawn(6)
    weights = [SWA(start=first).weight("encoder", t) for t in range(1, 6)]
    assert torch.equal(averaged(start, values[:first], weights[:first]), ([start, *values][first]).float())
    torch.testing.assert_close(averaged(start, values, weights), torch.stack(values[first:]).mean(0).float())


def test_thousand_tiny_steps_of_a_bf16_model_move_the_average():
    average, current = [torch.ones(4)], [torch.full((4,), 2.0, dtype=torch.bfloat16)]
    for _ in range(1000):
        update_average(average, current, 1 - 0.9999)
    torch.testing.assert_close(average[0], torch.full((4,), 2 - 0.9999**1000), rtol=1e-5, atol=0)
