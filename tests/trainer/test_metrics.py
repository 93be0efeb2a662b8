"""Further metrics of `DeFTTrainer`."""

import pytest
import torch

from deft_hf import DeFTTrainingArguments
from deft_hf.scoring.inference import predict_logits
from deft_hf.scoring.metrics import METRICS, Segmented
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, trainer

NAMES = ["f_score", "boundary_iou", "calibration_error"]


@pytest.mark.parametrize("model_type", ["segformer", "mask2former"])
def test_they_are_those_of_the_models_own_logits(tmp_path, model_type):
    data = Drawn(3, seed=4)
    run = trainer(tmp_path, model=tiny.build(model_type), evaluate=data, metrics=NAMES, per_device_eval_batch_size=2)
    found = run.evaluate()
    counts = []
    for index in range(3):
        item = data[index]
        logits = predict_logits(run.generalized_model, run.family, item["pixel_values"][None], item["labels"].shape)
        probabilities = run.family.objective.probabilities(logits)[0]
        seen = Segmented(logits[0].argmax(0), item["labels"], tiny.NUM_LABELS, lambda p=probabilities: p)
        counts.append({name: METRICS[name].count(seen) for name in NAMES[1:]})
    for name in NAMES[1:]:
        total = torch.stack([each[name] for each in counts]).sum(0)
        expected = METRICS[name].values(total)
        assert found[f"eval_{METRICS[name].key}"] == pytest.approx(expected[METRICS[name].key], abs=1e-6)
        assert 0 < expected[METRICS[name].key] < 1
    iou = torch.tensor(run.scores["eval"].iou)
    assert run.scores["eval"].to_dict()["f_score"] == pytest.approx((2 * iou / (1 + iou)).tolist(), nan_ok=True)
    predicted = run.predict(data).metrics
    assert {name.removeprefix("test_"): value for name, value in predicted.items() if "loss" not in name} == {
        name.removeprefix("eval_"): pytest.approx(value, abs=1e-6)
        for name, value in found.items()
        if f"test_{name.removeprefix('eval_')}" in predicted and "loss" not in name
    }


def test_of_an_error_the_lowest_is_the_best():
    for name, higher in (("calibration_error", False), ("town_calibration_error", False), ("mean_boundary_iou", True)):
        args = DeFTTrainingArguments("out", metrics=NAMES, metric_for_best_model=name, use_cpu=True)
        assert args.greater_is_better is higher


def test_a_metric_that_there_is_not():
    with pytest.raises(UserError, match="metrics: found dice, expected names among f_score, .*boundary_iou"):
        DeFTTrainingArguments("out", metrics=["dice"])
