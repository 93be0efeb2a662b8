"""Trainer's own mechanisms beside stages: the best model, patience, logs; what the caller froze; predictions."""

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import resolve_family
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments, history, trainer

SCORED = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "near_mean_iou",
}


def scored(run, scores, monkeypatch):
    """Let each evaluation of `run` find the next of `scores`."""
    found = iter(scores)
    evaluate = run.evaluator.evaluate

    def replaced(models, loader, prefix, on_batch):
        output = evaluate(models, loader, prefix, on_batch)
        if prefix == "eval_near":
            output.metrics["eval_near_mean_iou"] = next(found)
        return output

    monkeypatch.setattr(run.evaluator, "evaluate", replaced)
    return run


def test_the_best_model_is_never_one_of_the_warmup(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=3, decoder_warmup_steps=3, **SCORED)
    scored(run, [0.9, 0.8, 0.7, 0.1, 0.3, 0.2], monkeypatch).train()
    assert run.state.best_global_step == 5 and run.state.best_metric == 0.3
    assert run.pathways.stage == "decoupled"


def test_patience_counts_from_the_last_stage_on(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=8, decoder_warmup_steps=4, callbacks=[EarlyStoppingCallback(2)], **SCORED)
    scored(run, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], monkeypatch).train()
    assert run.state.global_step == 7  # the best is that of step 5, and two after it are worse


def test_patience_counts_on_after_a_resume(tmp_path, monkeypatch):
    scores = [0.9, 0.8, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02]
    settings = {"max_steps": 8, "decoder_warmup_steps": 2, **SCORED}

    def run(folder, first=0):
        # The second has more patience than there are steps, and must not take the first one's count.
        callbacks = [EarlyStoppingCallback(3), EarlyStoppingCallback(50, early_stopping_threshold=0.05)]
        made = trainer(tmp_path / folder, **settings, callbacks=callbacks)
        return scored(made, scores[first:], monkeypatch), callbacks

    unbroken, patience = run("whole")
    unbroken.train()
    assert unbroken.state.global_step == 7  # the best is that of step 4, and three after it are worse
    counted = [callback.early_stopping_patience_counter for callback in patience]
    for step in (1, 5, 6, 7):
        resumed, patience = run(f"from {step}", first=step)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert (resumed.state.global_step, resumed.state.best_global_step) == (7, 4), step
        assert [callback.early_stopping_patience_counter for callback in patience] == counted


def test_only_the_best_are_saved_of_the_last_stage(tmp_path, monkeypatch):
    settings = {**SCORED, "save_strategy": "best", "load_best_model_at_end": False}
    run = trainer(tmp_path, max_steps=3, decoder_warmup_steps=2, **settings)
    scored(run, [0.9, 0.8, 0.1, 0.3, 0.2], monkeypatch).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


class StopsEarly(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_a_run_that_ends_in_the_warmup_says_so(tmp_path, caplog):
    trainer(tmp_path, callbacks=[StopsEarly()]).train()
    assert "Training stopped at step 2, within the warm-up: the method's own stage never ran" in caplog.text


def test_the_first_line_has_the_steps_and_the_warmup_logs_the_rate_that_trains(tmp_path, capsys):
    run = trainer(tmp_path, max_steps=6, decoder_warmup_steps=4, decoder_warmup_learning_rate=3e-3)
    run.train()
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "deft: 4 (warmup) + 6 (decoupled) = 10 optimizer steps; max_steps is the last stage's"
    assert history(run, "learning_rate")[0] == pytest.approx(3e-3)


def test_the_warmup_has_a_weight_decay_of_its_own_resumed_too(tmp_path):
    seen = []

    class Watching(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            groups = optimizer.param_groups
            seen.append([(group["part"], group["weight_decay"]) for group in groups])

    settings = {"max_steps": 2, "decoder_warmup_steps": 2, "weight_decay": 0.1, "decoder_warmup_weight_decay": 0.3}
    settings |= {"save_strategy": "steps", "save_steps": 1, "optim": "sgd", "train": Drawn(5)}
    unbroken = trainer(tmp_path, callbacks=[Watching()], **settings)
    unbroken.train()
    first, later = ([("encoder", 0.1), ("encoder", 0.0), ("decoder", decay), ("decoder", 0.0)] for decay in (0.3, 0.1))
    assert seen == [first, first, later, later]
    for step in (1, 2, 3):
        seen.clear()
        resumed = trainer(tmp_path / str(step), callbacks=[Watching()], **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert seen == [first, first, later, later][step:]
        found = resumed.pathways.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in unbroken.pathways.state_dict().items())
    assert arguments(tmp_path, weight_decay=0.1).weight_decays()["warmup"] == 0.1


def test_a_batch_size_cannot_be_searched_for_within_a_run(tmp_path):
    with pytest.raises(UserError, match="auto_find_batch_size would start again from weights that were trained"):
        arguments(tmp_path, auto_find_batch_size=True)


# ---- what the caller froze


@pytest.mark.parametrize("method", ["joint", "lp_ft", "deft"])
def test_what_was_frozen_stays_as_it_is_in_both_components(tmp_path, method, caplog):
    model = tiny.build("segformer")
    block = model.segformer.stages[0] if hasattr(model.segformer, "stages") else next(model.segformer.children())
    block.requires_grad_(False)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    run = trainer(tmp_path, model=model, method=method)
    run.train()
    for component in (run.pathways.usual, run.pathways.generalized):
        now = dict(component.named_parameters())
        assert all(torch.equal(now[name], value) for name, value in frozen.items())
    count = sum(value.numel() for value in frozen.values())
    assert f"{count:,} parameters in {len(frozen)} tensors came in frozen" in caplog.text
    moved = [name for name in run.pathways.initial if run.family.part_of(name) == "encoder"]
    assert moved and not frozen.keys() & run.pathways.initial.keys()


def test_a_model_that_is_all_frozen_is_refused(tmp_path):
    with pytest.raises(UserError, match="found every parameter frozen"):
        trainer(tmp_path, model=tiny.build("segformer").requires_grad_(False))


def test_a_pathway_takes_no_gradient_of_what_was_frozen():
    model = tiny.build("segformer")
    model.decode_head.classifier.requires_grad_(False)
    pathways = DualPathway(model, resolve_family(model)).train()
    pathways.enter("decoupled")
    pathways.snapshot()
    pathways(**tiny.batch())["loss"].backward()
    assert pathways.usual.decode_head.classifier.weight.grad is None
    assert pathways.generalized.decode_head.classifier.weight is pathways.usual.decode_head.classifier.weight


# ---- predictions


class Unlabelled(Drawn):
    def __getitem__(self, index):
        return {"pixel_values": super().__getitem__(index)["pixel_values"]}


def test_images_without_labels_are_predicted(tmp_path):
    run = trainer(tmp_path, max_steps=2)
    labelled, unlabelled = run.predict(Drawn(3)), run.predict(Unlabelled(3))
    assert unlabelled.metrics == {}
    assert [found.shape for found in unlabelled.predictions] == [(64, 64)] * 3
    assert all(np.array_equal(*pair) for pair in zip(labelled.predictions, unlabelled.predictions, strict=True))
    assert labelled.metrics["test_mean_iou"] == run.evaluate(Drawn(3))["eval_mean_iou"]


@pytest.mark.parametrize(("strategy", "steps", "logs"), [("steps", 500, 10), ("steps", 4, 2), ("no", 500, 0)])
def test_a_run_that_is_shorter_than_the_logging_interval_logs_all_the_same(tmp_path, strategy, steps, logs):
    run = trainer(tmp_path, train=Drawn(4, side=32), logging_steps=steps, logging_strategy=strategy)
    run.train()
    assert len(history(run, "loss")) == logs
