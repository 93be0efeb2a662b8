"""The loss of evaluation: that of training over the whole set, from the forward passes that score it."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, TrainerCallback

from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, Stream, history, trainer, valid_pixels

STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}


@torch.no_grad()
def cross_entropy(model, items):
    """Sum over the valid pixels of all items by their number, image by image, without deft_hf."""
    total = 0.0
    for item in items:
        labels = item["labels"][None]
        logits = F.interpolate(model.eval()(item["pixel_values"][None]).logits, labels.shape[-2:], mode="bilinear")
        total += float(F.cross_entropy(logits.double(), labels, ignore_index=255, reduction="sum"))
    return total / valid_pixels(items)


def test_one_data_set_and_each_domain_of_several_have_one(tmp_path):
    data = {"near": Drawn(3, seed=1, side=32), "far": Drawn(2, seed=2, side=32)}
    run = trainer(tmp_path, evaluate=data, evaluate_usual=True, per_device_eval_batch_size=2, max_steps=2)
    run.train()
    found, usual = run.evaluate(), run.pathways.usual
    for name, items in data.items():
        items = [items[index] for index in range(len(items))]
        assert found[f"eval_{name}_loss"] == pytest.approx(cross_entropy(run.generalized_model, items), rel=1e-5)
        assert found[f"eval_{name}_usual_loss"] == pytest.approx(cross_entropy(usual, items), rel=1e-5)
    assert found["eval_near_loss"] != found["eval_near_usual_loss"] and "eval_loss" not in found
    assert run.predict(data["near"]).metrics["test_loss"] == pytest.approx(found["eval_near_loss"], rel=1e-5)

    stream = Stream(5, sides=(32, 48))
    expected = pytest.approx(cross_entropy(run.generalized_model, stream.items), rel=1e-5)
    assert run.evaluate(stream)["eval_loss"] == expected


@pytest.mark.parametrize("model_type", tiny.MASKS)
def test_masks_are_matched_and_normalised_over_the_whole_set(tmp_path, model_type, monkeypatch):
    monkeypatch.setattr(torch, "rand", tiny.same_points)
    data = Drawn(3)
    run = trainer(tmp_path, model=tiny.build(model_type), evaluate=data, per_device_eval_batch_size=2)
    with torch.no_grad():
        items = [data[index] for index in range(3)]
        whole = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        expected = float(tiny.own_loss(run.generalized_model.eval(), whole))
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model_type", ["segformer", "mask2former"])
def test_it_costs_no_forward_pass_and_a_set_without_a_valid_pixel_has_none(tmp_path, model_type):
    run = trainer(tmp_path, model=tiny.build(model_type), evaluate=Drawn(3), per_device_eval_batch_size=2)
    passes = []
    run.pathways.exported.register_forward_hook(lambda *_: passes.append(1))
    assert math.isfinite(run.evaluate()["eval_loss"]) and len(passes) == 2
    ignored = [{**item, "labels": torch.full_like(item["labels"], 255)} for item in [run.eval_dataset[0]] * 2]
    assert math.isnan(run.evaluate(ignored)["eval_loss"])


def test_the_best_model_of_one_data_set_is_by_default_that_of_the_lowest_loss(tmp_path):
    callbacks = [EarlyStoppingCallback(early_stopping_patience=50)]
    choosing = {"load_best_model_at_end": True, "callbacks": callbacks, "learning_rate": 0.3, "method": "joint"}
    run = trainer(tmp_path, evaluate=Drawn(2, seed=1, side=32), train=Drawn(4, side=32), **STEPS, **choosing)
    run.train()
    losses = history(run, "eval_loss")
    best = 1 + min(range(len(losses)), key=losses.__getitem__)
    assert run.state.best_metric == min(losses) and run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_schedule_by_loss_waits_for_it_to_fall(tmp_path):
    settings = {"method": "joint", "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}
    run = trainer(tmp_path, evaluate=Drawn(2, side=32), train=Drawn(4, side=32), max_steps=1, **settings)
    run.train()
    assert run.lr_scheduler.mode == "min"


def test_a_loss_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match="is 'loss': expected one of .*near_loss, .*far_loss"):
        trainer(tmp_path, load_best_model_at_end=True, **STEPS)
    trainer(tmp_path, load_best_model_at_end=True, metric_for_best_model="near_loss", **STEPS)


def test_the_bar_has_a_step_for_each_batch_and_each_image_that_is_predicted(tmp_path):
    class Bar(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
            self.seen.append(len(eval_dataloader))

        def on_predict(self, args, state, control, metrics, **kwargs):
            self.seen.append("end")

    bar, data = Bar(), Drawn(3, side=32)
    run = trainer(tmp_path, evaluate=data, callbacks=[bar], per_device_eval_batch_size=2)
    run.evaluate()
    assert bar.seen == [2, 2]
    run.predict(data)
    assert bar.seen[2:] == [3, 3, 3, "end"]
