"""What a recipe leaves open is chosen, once, with a reason, and written down."""

import json

import pytest
import yaml

from deft_hf.models.kinds import encoder_kind
from deft_hf.recipe import Recipe
from deft_hf.runs import settle
from deft_hf.runs.settle import settled
from deft_hf.runs.train import train
from deft_hf.trainer.defaults import choose, images_at_once, learning_rates, steps_of_epochs
from deft_hf.utils.errors import UserError
from deft_hf.utils.machine import Machine
from tests import tiny
from tests.comparison.test_plan import RECIPE, write_recipe

CPU = Machine(device="cpu", cores=4, memory=16 << 30)
GPU = Machine(device="cuda", cores=16, memory=80 << 30, processes=2, bf16=True)


def chosen(machine=CPU, images=48, crop=(128, 128), **options):
    found = choose("transformer", options.pop("optimizer", "adamw_torch"), images, crop, machine, **options)
    assert all(choice.why for choice in found)
    return {choice.key: choice.value for choice in found}


@pytest.fixture(autouse=True)
def same_machine(monkeypatch):
    monkeypatch.setattr(settle, "this_machine", lambda use_cpu: CPU)


def bare(folder, **changes):
    """A recipe with names and places only."""
    sections = yaml.safe_load(RECIPE)
    sections["method"] = {}
    sections["data"] = {key: sections["data"][key] for key in ("labels", "source", "validation", "unseen")}
    sections["training"] = {"output_dir": str(folder / "out"), "use_cpu": True}
    for name, values in changes.items():
        sections[name] |= values
    path = folder / "bare.yaml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def test_a_recipe_of_names_and_places_has_all_it_needs(tmp_path, capsys):
    recipe = settled(Recipe.load(bare(tmp_path)))
    training = recipe.training
    assert recipe.data.crop_size == (64, 96)  # the images are 64 x 96
    assert training.max_steps == 400 and recipe.method.decoder_warmup_steps == 40
    assert training.learning_rate == learning_rates("transformer").encoder
    assert recipe.method.decoder_learning_rate == learning_rates("transformer").decoder
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 4  # all there are
    assert training.load_best_model_at_end and training.metric_for_best_model == "clear_mean_iou"
    assert training.max_steps / training.logging_steps >= 50
    said = capsys.readouterr().out
    assert "chosen, since the recipe does not say:" in said
    for choice in recipe.choices:
        assert choice.value is None or f"{choice.key}: {choice.value} ({choice.why})" in said
    again = settled(recipe)
    assert again.to_yaml() == recipe.to_yaml() and capsys.readouterr().out == ""
    loaded = tmp_path / "resolved.yaml"
    loaded.write_text(recipe.to_yaml())
    assert settled(Recipe.load(loaded)).to_yaml() == recipe.to_yaml()


def test_what_a_recipe_says_is_left_as_it_is(tmp_path):
    recipe = Recipe.load(write_recipe(tmp_path))
    assert settled(recipe).to_yaml() == recipe.to_yaml()


def test_without_validation_nothing_is_selected(tmp_path, capsys):
    recipe = settled(Recipe.load(bare(tmp_path, data={"validation": []})))
    assert not recipe.training.load_best_model_at_end
    assert "no data.validation: nothing is scored while training" in capsys.readouterr().out


def test_a_run_that_was_started_as_it_is_resumes_as_it_is(tmp_path):
    recipe = Recipe.load(write_recipe(tmp_path, training={"output_dir": str(tmp_path / "out")}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text(recipe.to_yaml())
    assert settled(recipe) is recipe


def test_plain_words_become_what_trainer_knows(tmp_path):
    recipe = settled(Recipe.load(bare(tmp_path, training={"epochs": 2.5, "batch_size": 2})))
    assert recipe.training.max_steps == steps_of_epochs(2.5, 4, 2) == 5
    assert recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps == 2
    assert recipe.training.epochs is None and recipe.training.batch_size is None
    assert recipe.training_arguments().max_steps == 5


def test_a_batch_is_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(settle, "this_machine", lambda use_cpu: GPU)
    with pytest.raises(UserError, match="batch_size: found 5, which 2 processes cannot share evenly.* such as 4"):
        settled(Recipe.load(bare(tmp_path, training={"batch_size": 5})))
    recipe = settled(Recipe.load(bare(tmp_path, training={"batch_size": 6})))
    assert recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps == 3


def test_small_memory_accumulates():
    assert images_at_once(8, (512, 512), CPU) == 2
    assert images_at_once(8, (64, 64), CPU) == 8
    small = Machine(device="cuda", memory=24 << 30)
    size = images_at_once(8, (512, 512), small)
    assert 8 % size == 0 and size < 8
    found = chosen(machine=small, crop=(512, 512))
    assert found["training.per_device_train_batch_size"] * found["training.gradient_accumulation_steps"] == 8


def test_length_follows_the_data():
    assert chosen(images=48)["training.max_steps"] == 400
    assert chosen(images=800)["training.max_steps"] == 3000
    assert chosen(images=100_000)["training.max_steps"] == 20_000


def test_a_gpu_computes_in_bfloat16_and_has_workers():
    found = chosen(machine=GPU)
    assert found["training.bf16"] and found["training.dataloader_num_workers"] == 8
    assert "training.bf16" not in chosen()
    assert chosen(machine=Machine(device="mps", forks=False, cores=8))["training.dataloader_num_workers"] == 0


def test_sgd_has_rates_of_its_own():
    found = chosen(optimizer="sgd")
    assert found["training.optim_args"] == "momentum=0.9"
    assert found["training.learning_rate"] == learning_rates("transformer", "sgd").encoder


def test_a_rate_of_the_recipe_is_the_only_one():
    assert not [key for key in chosen(given={"training.learning_rate": 1e-3}) if "rate" in key]


@pytest.mark.parametrize("family, kind", [("mobilenet_v2", "convolutional"), ("segformer", "transformer")])
def test_the_kind_of_an_encoder(family, kind):
    assert encoder_kind(tiny.build(family).config) == kind


def test_the_reasons_are_kept_with_the_results(tmp_path, unverified):
    path = bare(tmp_path, training={"epochs": 1, "batch_size": 2, "dataloader_num_workers": 0})
    folder = train(Recipe.load(path, ["method.decoder_warmup_steps=1", "data.unseen=[]"]))
    facts = json.loads((folder / "results/metrics.json").read_text())
    reasons = {choice["key"]: choice for choice in facts["choices"]}
    assert (
        reasons["training.max_steps"]["value"] == 2 and "1 epochs of 4 images" in reasons["training.max_steps"]["why"]
    )
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["training"]["max_steps"] == 2
    train(Recipe.load(path, ["method.decoder_warmup_steps=1", "data.unseen=[]"]))  # the same command finds it done


def test_patience_ends_the_last_stage(tmp_path, unverified):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 12}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "clear_mean_iou", "early_stop": 1}
    settings |= {"per_device_train_batch_size": 2, "learning_rate": 1e-12, "dataloader_num_workers": 0}
    path = bare(tmp_path, training=settings, method={"decoder_warmup_steps": 2}, data={"unseen": []})
    folder = train(Recipe.load(path))
    history = json.loads((folder / "results/history.json").read_text())
    assert max(entry["step"] for entry in history) == 4  # two of the warm-up, the first of the last, one no better
