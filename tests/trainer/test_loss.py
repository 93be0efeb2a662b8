import json

import numpy as np
import pytest
import torch

from deft_hf.data.class_index import ClassIndex
from deft_hf.data.domains import Domain
from deft_hf.data.samplers import RareClass
from deft_hf.data.sampling import TrainingSet
from deft_hf.data.transforms import TrainTransform
from deft_hf.models.objectives import PerPixel
from deft_hf.models.reweighted import ReweightedPerPixel
from deft_hf.recipe import Recipe
from deft_hf.trainer.loss import balanced_weights
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError
from deft_hf.utils.integrity import write_manifest
from tests import tiny
from tests.models.test_plain import Net
from tests.trainer.test_trainer import Drawn, arguments, history, trainer, without_batchnorm

OPTIONS = {"class_weights": [0.2, 3, 1, 1, 2, 0.5, 1], "ohem_threshold": 0.7, "ohem_min_kept": 0.1, "dice_weight": 0.5}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.mark.parametrize("method, own", [("deft", {}), ("deft", {"pathways": "split"}), ("joint", {})])
def test_accumulation_equals_one_large_batch(tmp_path, method, own):
    runs, small = {}, 4 if own else 2  # a split batch has two images for each pathway
    for size, accumulation in ((8, 1), (small, 8 // small)):
        runs[size] = trainer(
            tmp_path / str(size),
            model=without_batchnorm(),
            train=Drawn(16),
            method=method,
            max_steps=2,
            decoder_warmup_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            **OPTIONS,
            **own,
        )
        runs[size].train()
    for key in ("loss", "grad_norm"):
        assert history(runs[small], key) == pytest.approx(history(runs[8], key), rel=1e-5)
    for model in ("usual", "generalized"):
        expected = getattr(runs[8].pathways, model).state_dict()
        for name, value in getattr(runs[small].pathways, model).state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_resumed_run_has_the_same_crops_and_losses(tmp_path):
    domain = Domain.from_streets("clear", count=4, size=(64, 64))
    sampler = RareClass(ClassIndex.of(domain), temperature=0.1, pixels=9, crop_pixels=9)

    def fresh(folder):
        data = TrainingSet([domain], TrainTransform((64, 64), style="randconv"), seed=3, samplers=[sampler])
        settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 4, "decoder_warmup_steps": 1} | OPTIONS
        return trainer(tmp_path / folder, train=data, **settings)

    unbroken, resumed = fresh("a"), fresh("b")
    unbroken.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert history(unbroken, "loss") == history(resumed, "loss") and len(history(unbroken, "loss")) == 5
    for name, value in unbroken.pathways.state_dict().items():
        assert torch.equal(resumed.pathways.state_dict()[name], value), name


def test_a_checkpoint_of_another_loss_is_refused_with_all_that_differs(tmp_path, caplog):
    def run(weights, **changes):
        settings = {"method": "joint", "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **OPTIONS}
        return trainer(tmp_path, **settings | {"class_weights": weights} | changes)

    weights, checkpoint = OPTIONS["class_weights"], str(tmp_path / "checkpoint-1")
    run(weights).train()
    others = {"ohem_threshold": 0.6, "ohem_min_kept": 0.2, "dice_weight": 0.0}
    with pytest.raises(UserError) as error:
        run(None, **others).train(checkpoint)
    kept = "[0.2, 3.0, 1.0, 1.0, 2.0, 0.5, 1.0]"
    differing = (f"class_weights {kept}", None), ("ohem_threshold 0.7", 0.6), ("dice_weight 0.5", 0.0)
    differing += (("ohem_min_kept 0.1", 0.2),)
    told = "; with ".join(f"{there}, this run has {here}" for there, here in differing)
    assert str(error.value).startswith(f"the checkpoint was made with {told}: resume with the same arguments")
    assert run(tuple(weights)).train(checkpoint).global_step == 2
    run(weights, dice_weight=0.1).train(checkpoint, resume_anyway=True)
    assert "Resumed anyway: the checkpoint was made with dice_weight 0.5, this run has 0.1" in caplog.text

    state = tmp_path / "checkpoint-1" / "deft_state.json"  # as earlier versions wrote it
    facts = {key: value for key, value in json.loads(state.read_text()).items() if key not in OPTIONS}
    state.write_text(json.dumps(facts))
    write_manifest(state.parent)
    assert run(None, **others).train(checkpoint).global_step == 2


def test_by_default_the_objective_is_the_plain_one(tmp_path):
    assert type(trainer(tmp_path).family.objective) is PerPixel
    objective = trainer(tmp_path, **OPTIONS).family.objective
    assert objective == ReweightedPerPixel((0.2, 3, 1, 1, 2, 0.5, 1), 0.7, 0.1, 0.5)


def test_balanced_weights_are_those_of_the_training_data(tmp_path):
    domain = Domain.from_streets("clear", count=3, size=(64, 64))
    run = trainer(tmp_path, train=TrainingSet([domain], TrainTransform((64, 64))), class_weights="balanced")
    pixels = ClassIndex.of(domain).pixels.sum(0)
    expected = [pixels.sum() / ((pixels > 0).sum() * count) if count else 1.0 for count in pixels]
    assert run.family.objective.class_weights == pytest.approx(expected)
    assert balanced_weights(np.array([0.5, 0.25, 0.25, 0])) == pytest.approx((2 / 3, 4 / 3, 4 / 3, 1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_weights": "balance"}, "class_weights: found balance, expected balanced, or a list"),
        ({"class_weights": [1, -1]}, r"class_weights: found \[1, -1\]"),
        ({"class_weights": [0, 0]}, "not all of them 0"),
        ({"class_weights": [1, 2]}, "class_weights: found 2, expected one for each of the 7 classes"),
        ({"class_weights": "balanced"}, "give the weights as a list"),
        ({"ohem_threshold": 1}, "ohem_threshold: found 1, expected a probability between 0 and 1"),
        ({"ohem_min_kept": 0}, "ohem_min_kept: found 0"),
        ({"dice_weight": -1}, "dice_weight: found -1"),
    ],
)
def test_mistakes(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **options)


def test_weights_of_a_plain_model_are_as_many_as_its_classes(tmp_path):
    for weights in ([1, 2], [1] * 9):
        with pytest.raises(UserError, match=f"class_weights: found {len(weights)}, expected .* the 7 classes"):
            DeFTTrainer(Net(), arguments(tmp_path, class_weights=weights), train_dataset=Drawn(2), encoder="encoder")


def test_models_that_match_masks_are_refused_in_one_message(tmp_path):
    with pytest.raises(UserError, match=r"^class_weights, ohem_threshold, dice_weight: found for a maskformer model"):
        trainer(tmp_path, model=tiny.build("maskformer"), **OPTIONS)


# ---- recipes


def test_a_recipe_says_it():
    settings = ["training.class_weights=balanced", "training.ohem_threshold=0.7", "training.dice_weight=1"]
    args = Recipe.load("quickstart", settings).training_arguments()
    assert (args.class_weights, args.ohem_threshold, args.dice_weight) == ("balanced", 0.7, 1.0)
    assert Recipe.load("quickstart").training_arguments().asks_for_loss() == []
    listed = Recipe.load("quickstart", ["training.class_weights=[1, 2, 1, 1, 1, 1, 0.5]"]).training_arguments()
    assert listed.class_weights == [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    "setting, message",
    [
        ("training.class_weights=[1, 2]", "training.class_weights: found 2, expected 7, one for each of drivable"),
        ("training.class_weights=even", "training.class_weights: found .even., expected balanced, or a list"),
        ("training.class_weight=balanced", "did you mean class_weights"),
        ("method.class_weights=balanced", "class_weights"),
    ],
)
def test_mistakes_in_recipes(setting, message):
    with pytest.raises(UserError, match=message):
        Recipe.load("quickstart", [setting])
