import pytest
import torch

from deft_hf.method.ema import run_decay, share_left, update_average


def test_the_run_keeps_the_share_that_was_quoted():
    decay = run_decay(0.9999, steps=800, quoted_steps=80_000)
    assert share_left(decay, 800) == pytest.approx(0.9999**80_000, rel=1e-9)
    assert share_left(decay, 400) == pytest.approx(0.9999**40_000, rel=1e-9)
    assert run_decay(0.9999, steps=800, quoted_steps=None) == 0.9999


def test_update_equals_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    start, *values = torch.randn(6, 10, dtype=torch.float64, generator=generator)
    average, decay = [start.float().clone()], 0.9
    for value in values:
        update_average(average, [value.float()], decay)
    closed = decay**5 * start + sum((1 - decay) * decay ** (4 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(average[0], closed.float())


def test_thousand_tiny_steps_of_a_bf16_model_move_the_average():
    average, current = [torch.ones(4)], [torch.full((4,), 2.0, dtype=torch.bfloat16)]
    for _ in range(1000):
        update_average(average, current, 0.9999)
    torch.testing.assert_close(average[0], torch.full((4,), 2 - 0.9999**1000), rtol=1e-5, atol=0)
