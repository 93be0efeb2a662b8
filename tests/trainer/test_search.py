"""Models that `train` builds anew, and the search for hyperparameters on source validation."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from deft_hf import DeFTTrainer
from deft_hf.trainer import search as module
from deft_hf.utils.errors import TrainingDiverged, UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments, history

optuna = pytest.importorskip("optuna")
RATES = [1e-7, 1e-2]
SCORED = {"metric_for_best_model": "near_loss", "eval_strategy": "steps", "eval_steps": 1, "decoder_warmup_steps": 1}


class Leaning(Drawn):
    """Most pixels are of one class, which takes few steps to learn; it counts how often it is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        item = super().__getitem__(index)
        return {**item, "labels": torch.where(item["labels"] == 255, 255, item["labels"].clamp(max=1))}


def fresh():
    """Other weights at every call, unless the seed is set."""
    return tiny.segformer()


def trainer(folder, model_init=fresh, **changes):
    args = arguments(folder, **{"max_steps": 2, **SCORED, **changes})
    evaluated = {"near": Leaning(3, seed=1), "far": Leaning(2, seed=2)}
    return DeFTTrainer(model_init=model_init, args=args, train_dataset=Leaning(8), eval_dataset=evaluated)


def rates(trial):
    return {"learning_rate": trial.suggest_categorical("learning_rate", RATES)}


def weights(run):
    return {name: value.clone() for name, value in run.pathways.state_dict().items()}


def test_train_builds_the_model_anew(tmp_path):
    run = trainer(tmp_path, eval_strategy="no", metric_for_best_model=None)
    before = weights(run)
    torch.manual_seed(5)
    run.train()
    once, losses = weights(run), history(run, "loss")
    torch.manual_seed(6)
    run.train()
    assert history(run, "loss") == losses
    assert [name for name, value in weights(run).items() if not torch.equal(value, once[name])] == []
    assert any(not torch.equal(value, before[name]) for name, value in once.items())
    run.call_model_init()
    for name, value in run.pathways.usual.state_dict().items():
        assert torch.equal(value, run.pathways.generalized.state_dict()[name]), name


def test_what_model_init_may_not_do(tmp_path):
    with pytest.raises(UserError, match="found model_init beside a model"):
        DeFTTrainer(fresh(), arguments(tmp_path), model_init=fresh, train_dataset=Drawn(2))
    with pytest.raises(UserError, match="model_init: takes 2 arguments, expected none, or one"):
        trainer(tmp_path, lambda one, two: fresh())
    with pytest.raises(UserError, match="model_init: returned None"):
        trainer(tmp_path, lambda: None)
    models = iter([fresh(), tiny.mobilenet_v2()])
    with pytest.raises(UserError, match="model_init: returned another model than the first time"):
        trainer(tmp_path, lambda: next(models)).train()


def test_the_better_rate_is_found_on_source_validation(tmp_path):
    seen, long_enough = [], {"max_steps": 5, "eval_steps": 2}

    class Seen(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append((args.learning_rate, args.output_dir))

    def found(folder):
        run = trainer(tmp_path / folder, **long_enough)
        run.add_callback(Seen())
        run.eval_dataset["far"].reads = 0
        best = run.hyperparameter_search(rates, n_trials=3, backend="optuna", unseen=["far"])
        assert run.eval_dataset["far"].reads == 0
        return best

    best = found("a")
    tried = [rate for rate, _ in seen]
    assert {*tried} == {*RATES} and best.hyperparameters == {"learning_rate": 1e-2}
    assert [folder for _, folder in seen] == [str(tmp_path / "a" / f"run-{trial}") for trial in range(3)]
    assert found("b") == best
    assert [rate for rate, _ in seen[3:]] == tried
    args = arguments(tmp_path / "c", learning_rate=1e-2, **{**SCORED, **long_enough})
    torch.manual_seed(args.seed)
    alone = DeFTTrainer(fresh(), args, train_dataset=Leaning(8), eval_dataset={"near": Leaning(3, seed=1)})
    alone.train()
    assert best.objective == min(history(alone, "eval_near_loss"))


def test_without_evaluations_the_trained_model_is_scored(tmp_path):
    settings = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 3}
    run = trainer(tmp_path, lambda trial: fresh(), **settings)
    best = run.hyperparameter_search(rates, n_trials=1, hp_name=lambda trial: f"trial {trial.number}")
    assert math.isfinite(best.objective) and best.run_id == "0"
    kept = json.loads((tmp_path / "trial 0" / "checkpoint-3" / "trainer_state.json").read_text())
    assert kept["trial_params"] == best.hyperparameters


def test_a_score_of_the_callers_own(tmp_path):
    asked = []

    def objective(metrics):
        asked.append({key for key in metrics if key.endswith("mean_iou")})
        return metrics["eval_near_mean_iou"]

    run = trainer(tmp_path, metric_for_best_model=None)
    best = run.hyperparameter_search(rates, objective, n_trials=1, direction="maximize", unseen=["far"])
    assert asked == [{"eval_near_mean_iou"}] and 0 <= best.objective <= 1


def test_a_trial_without_hope_is_pruned_and_one_that_diverges_fails(tmp_path, monkeypatch):
    study = {"pruner": optuna.pruners.ThresholdPruner(upper=0.0)}
    with pytest.raises(UserError, match="none of 1 trials ended with a score"):
        trainer(tmp_path / "a").hyperparameter_search(rates, n_trials=1, **study)
    train, turns = DeFTTrainer.train, iter([True, False])

    def diverges(self, *args, **kwargs):
        if next(turns):
            raise TrainingDiverged("the loss is nan")
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DeFTTrainer, "train", diverges)
    assert trainer(tmp_path / "b").hyperparameter_search(rates, n_trials=2).run_id == "1"


@pytest.mark.parametrize(
    ("asked", "settings", "message"),
    [
        ({"hp_space": None}, {}, "hp_space: found none, expected a function of a trial"),
        ({"backend": "ray"}, {}, "backend: found 'ray', expected optuna"),
        ({}, {"metric_for_best_model": None}, "metric_for_best_model: found none in the arguments"),
        ({"direction": "maximize"}, {}, "direction: found 'maximize', expected minimize for metric_for_best_model"),
        ({"compute_objective": sum}, {}, "direction: found none, expected minimize or maximize"),
        ({"unseen": ["near"]}, {}, "metric_for_best_model: found 'near_loss', of an unseen domain"),
        ({"unseen": ["nigh"]}, {}, "unseen: found 'nigh', expected of eval_dataset: near, far"),
        ({"hp_space": lambda trial: {"learning_rat": 1}}, {}, "run-0: hp_space: returned learning_rat; did you mean"),
        ({"hp_space": lambda trial: {"ema_decay": 2}}, {}, "run-0: ema_decay is 2: expected 0 to 1"),
    ],
)
def test_what_cannot_be_searched_is_said(tmp_path, asked, settings, message):
    with pytest.raises(UserError) as error:
        trainer(tmp_path, **settings).hyperparameter_search(**{"hp_space": rates, "n_trials": 1, **asked})
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_search_needs_model_init_and_optuna(tmp_path, monkeypatch):
    plain = DeFTTrainer(fresh(), arguments(tmp_path), train_dataset=Drawn(2), eval_dataset=Drawn(1))
    with pytest.raises(UserError, match=r"model_init: found none.*DeFTTrainer\(model_init=...\)"):
        plain.hyperparameter_search(rates)
    backend = module.ALL_HYPERPARAMETER_SEARCH_BACKENDS[module._OPTUNA]
    monkeypatch.setattr(backend, "is_available", staticmethod(lambda: False))
    with pytest.raises(UserError, match=r"needs optuna: pip install 'deft-hf\[hpo\]'"):
        trainer(tmp_path).hyperparameter_search(rates)
