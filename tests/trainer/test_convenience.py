"""What users of `Trainer` expect besides: a model by its name, metrics of their own."""

import numpy as np
import pytest
import torch

from deft_hf import DeFTTrainer, DeFTTrainingArguments
from deft_hf.data.domains import Domain
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments, history, trainer


def dice(scores, confusion):
    diagonal = confusion.diag().double()
    found = 2 * diagonal / (confusion.sum(0) + confusion.sum(1))
    return {"dice": float(found.nanmean()), "classes": int((confusion.sum(1) > 0).sum())}


@pytest.fixture
def streets():
    domain = Domain.from_streets("clear", count=4, size=(64, 64))
    return TrainingSet([domain], TrainTransform(crop=(64, 64))), EvaluationSet(domain, EvalTransform(size=None))


def test_a_model_may_be_a_name(streets, tmp_path):
    training, evaluated = streets

    def named(seed):
        args = arguments(tmp_path, seed=seed, max_steps=1, decoder_warmup_steps=1)
        return DeFTTrainer("embedded", args, train_dataset=training, eval_dataset=evaluated)

    one, again, other = named(1), named(1), named(2)
    assert one.class_names == list(training.domains[0].labels.names)
    weights = [run.generalized_model.decode_head.classifier.weight for run in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    one.train()
    one.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "preprocessor_config.json").is_file()  # the checkpoint's own


def test_a_name_needs_classes(tmp_path):
    with pytest.raises(UserError, match="does not say which classes it has: load the model, with .*num_labels"):
        DeFTTrainer("nvidia/mit-b0", arguments(tmp_path), train_dataset=Drawn(4))
    with pytest.raises(UserError, match="nobody/nothing"):
        domain = Domain.from_streets("clear", count=1, size=(64, 64))
        training = TrainingSet([domain], TrainTransform(crop=(64, 64)))
        DeFTTrainer("nobody/nothing", arguments(tmp_path), train_dataset=training)


def test_metrics_of_the_callers_own_are_logged_and_may_choose(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    args = arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model="near_dice", **options)
    run = DeFTTrainer(
        tiny.build("segformer"),
        args,
        train_dataset=Drawn(8),
        eval_dataset={"near": Drawn(3, seed=1), "far": Drawn(2, seed=2)},
        compute_metrics=dice,
    )
    run.train()
    logged = [round(value, 6) for value in history(run, "eval_near_dice")]
    steps = [entry["step"] for entry in run.state.log_history if "eval_near_dice" in entry]
    last_stage = [value for value, step in zip(logged, steps, strict=True) if step > 4]
    assert run.state.best_metric == pytest.approx(max(last_stage), abs=1e-6)
    found = run.evaluate()
    confusion = run.evaluator.confusions["eval_far"]
    assert found["eval_far_dice"] == pytest.approx(dice(None, confusion)["dice"])
    assert found["eval_far_classes"] == int((confusion.sum(1) > 0).sum())
    predicted = run.predict(Drawn(2, seed=2)).metrics
    assert predicted["test_dice"] == pytest.approx(found["eval_far_dice"])


@pytest.mark.parametrize(
    "returned, message",
    [
        ({"mean_iou": 1.0}, "returned mean_iou, which is a metric already"),
        ({"dice": np.ones(3)}, "expected numbers by name"),
        (0.5, "returned 0.5, expected numbers by name"),
    ],
)
def test_what_is_no_metric_is_said(returned, message, tmp_path):
    run = trainer(tmp_path)
    run.evaluator.own_metrics = lambda scores, confusion: returned
    with pytest.raises(UserError, match=message):
        run.evaluate()


def test_a_metric_to_choose_by_needs_a_domain_of_the_run(tmp_path):
    with pytest.raises(UserError, match="metric_for_best_model is 'other_dice'"):
        DeFTTrainer(
            tiny.build("segformer"),
            arguments(tmp_path, metric_for_best_model="other_dice"),
            train_dataset=Drawn(4),
            eval_dataset={"near": Drawn(2)},
            compute_metrics=dice,
        )


def test_the_rate_that_nobody_named_is_said(tmp_path, caplog):
    def said(model="segformer", train=True, **settings):
        caplog.clear()
        args = DeFTTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **settings)
        DeFTTrainer(tiny.build(model), args, train_dataset=Drawn(2) if train else None, eval_dataset=Drawn(1))
        return [line for line in caplog.messages if line.startswith("learning_rate is 5e-05 for encoder and decoder")]

    assert "a transformer encoder at 0.0001 and its decoder at 0.001 (" in said()[0]
    assert "a convolutional encoder at 0.1 and its decoder at 0.1 (" in said("mobilenet_v2", optim="sgd")[0]
    assert not said(learning_rate=1e-4) and not said(decoder_learning_rate=1e-3) and not said(train=False)
