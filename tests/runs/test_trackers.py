"""Weights & Biases: a run for each method, in one group. A stand-in for the package notes what is called."""

import os
import sys
from types import SimpleNamespace

import pytest

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.trackers import own_tracker_run

ARGS = SimpleNamespace(report_to=["wandb"])


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    fake = SimpleNamespace(run=None, ended=[])

    def finish():
        fake.ended.append(fake.run)
        fake.run = None

    fake.finish = finish
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_each_method_has_a_run_of_its_own_in_one_group(wandb):
    for method in ("joint", "deft"):
        with own_tracker_run(ARGS, "town"):
            assert wandb.run is None and os.environ["WANDB_RUN_GROUP"] == "town"
            wandb.run = method  # as Trainer's callback begins it
    assert wandb.ended == ["joint", "deft"] and "WANDB_RUN_GROUP" not in os.environ
    with pytest.raises(KeyError), own_tracker_run(ARGS, "town"):
        wandb.run = "failed"
        raise KeyError
    assert wandb.ended[-1] == "failed"


def test_what_the_caller_set_up_stays(wandb, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    with own_tracker_run(ARGS, "town"):
        assert os.environ["WANDB_RUN_GROUP"] == "mine"
    wandb.run = "mine"
    with own_tracker_run(ARGS, "town"):
        pass
    assert wandb.run == "mine" and wandb.ended == [] and os.environ["WANDB_RUN_GROUP"] == "mine"
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed, and not asked for
    with own_tracker_run(SimpleNamespace(report_to=[]), "town"):
        pass


def test_runs_are_named_after_folder_and_method(tmp_path):
    def names(*overrides):
        recipe = Recipe.load("quickstart", [f"training.output_dir={tmp_path / 'town'}", *overrides])
        return [method_arguments(recipe, method).run_name for method in [*recipe.method.baselines, recipe.method.name]]

    assert names("method.baselines=[joint]") == ["town-joint", "town-deft"]
    assert names("method.baselines=[]") == ["town"]
    assert names("method.baselines=[joint]", "training.run_name=x") == ["x-joint", "x-deft"]
