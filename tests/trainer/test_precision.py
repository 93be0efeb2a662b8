import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from tests.trainer.test_trainer import history, trainer


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps the precision of the first one in a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class AfterEachStep(TrainerCallback):
    """Keeps both components as they are after each step, and whether the optimizer skipped it."""

    def __init__(self):
        self.usual, self.generalized, self.skipped, self.updates = [], [], [], []

    def attach(self, run):
        self.run = run
        run.add_callback(self)
        return run

    def on_step_end(self, args, state, control, **kwargs):
        pathways = self.run.pathways
        for name in ("usual", "generalized"):
            parameters = getattr(pathways, name).parameters()
            getattr(self, name).append([p.detach().double().clone() for p in parameters])
        self.skipped.append(self.run.accelerator.optimizer_step_was_skipped)
        self.updates.append(int(pathways.updates))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("bf16", [False, True])
def test_the_average_is_float32_whatever_the_compute_dtype(tmp_path, bf16):
    seen = AfterEachStep()
    run = seen.attach(trainer(tmp_path, bf16=bf16, ema_decay=0.99, ema_decay_steps=None))
    run.train()
    assert {p.dtype for p in run.pathways.parameters()} == {torch.float32}
    average = seen.usual[3]  # the snapshot, after the four steps of the warm-up
    for step in range(4, 10):
        average = [0.99 * a + 0.01 * u for a, u in zip(average, seen.usual[step], strict=True)]
    for found, expected in zip(seen.generalized[-1], average, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not equal(seen.generalized[-1], seen.usual[-1])


def test_bf16_computes_in_bf16(tmp_path):
    losses = {}
    for bf16 in (False, True):
        AcceleratorState._reset_state(True)
        run = trainer(tmp_path / str(bf16), bf16=bf16)
        run.train()
        losses[bf16] = history(run, "loss")
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    assert losses[True] != losses[False]


def test_a_skipped_optimizer_step_moves_neither_component(tmp_path):
    """A loss scale that overflows, as fp16's dynamic one does: the step is skipped, and the scale falls."""
    seen = AfterEachStep()
    run = seen.attach(trainer(tmp_path, decoder_warmup_steps=0, max_grad_norm=0))
    # Accelerate makes one for fp16 on a GPU; on a CPU the same scaler works on float32.
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=3e38, backoff_factor=1e-19)
    run.train()
    assert seen.skipped[0] and not all(seen.skipped)
    updates = 0
    for step in range(1, 6):
        stood = [equal(getattr(seen, name)[step], getattr(seen, name)[step - 1]) for name in ("usual", "generalized")]
        assert stood == [seen.skipped[step]] * 2
    for skipped, found in zip(seen.skipped, seen.updates, strict=True):
        updates += not skipped
        assert found == updates


def test_a_skipped_step_does_not_put_the_schedule_behind_the_stages(tmp_path, recwarn):
    seen = AfterEachStep()
    run = seen.attach(trainer(tmp_path, max_grad_norm=0))
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=3e38, backoff_factor=1e-19)
    run.train()
    assert seen.skipped[0] and not any(seen.skipped[4:])
    assert history(run, "encoder_learning_rate") == pytest.approx([0.0] * 4 + [1e-2 * (1 - t / 6) for t in range(6)])
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]
