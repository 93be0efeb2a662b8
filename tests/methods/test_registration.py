"""Another package adds a method in one file: trained, resumed, compared, exported and refused as deft_hf's own are."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

from deft_hf.methods import METHODS, Joint, RunSettings, compose, register_method, settings_of_others
from deft_hf.methods.base import Launcher
from deft_hf.utils.errors import UserError
from tests import processes
from tests.comparison.test_plan import write_recipe

TOY = Path(__file__).with_name("toy.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path):
    """A folder as `pip install` leaves it: the toy method, and metadata that name it as an entry point."""
    folder = tmp_path / "site"
    metadata = folder / "toy-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(TOY, folder / "toy_method.py")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[deft_hf.methods]\nl1_sp = toy_method:L1SP\n")
    return folder


@pytest.fixture
def run(site, tmp_path):
    """A function that runs a command of deft_hf beside the toy package."""

    def run(*words, **options):
        environment = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
        return processes.run(f"deft_hf.{words[0]}", *words[1:], cwd=tmp_path, env=environment, **options)

    return run


def test_it_is_one_short_file():
    assert len(TOY.read_text().splitlines()) <= 60


def test_it_trains_resumes_compares_and_exports(run, tmp_path):
    write_recipe(tmp_path)
    method = ["recipe.yaml", "method.name=l1_sp", "method.decoder_warmup_steps=null"]
    saving = ["training.save_strategy=steps", "training.save_steps=2"]

    straight = run("train", *method, *saving, "method.l1_weight=0.05", "training.output_dir=straight")
    assert straight.returncode == 0, straight.stderr
    facts = json.loads((tmp_path / "straight/results/metrics.json").read_text())
    assert facts["method"] == "l1_sp" and [stage["stage"] for stage in facts["stages"]] == ["joint"]
    assert facts["recipe"]["method"]["l1_weight"] == 0.05
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "straight")

    # Stopped after two of four steps, it ends as it did without a stop.
    shutil.copytree(tmp_path / "straight", tmp_path / "broken")
    for path in ("checkpoint-4", "results", "figures"):
        shutil.rmtree(tmp_path / "broken" / path)
    weight = "method.l1_weight=0.05"
    resumed = run("train", *method, *saving, weight, "training.output_dir=broken", shortened=True)
    assert resumed.returncode == 0, resumed.stderr
    weights = [load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "broken")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert json.loads((tmp_path / "broken/results/metrics.json").read_text())["resumed"]

    exported = run("export", "straight/checkpoint-4", "exported", "--which", "usual", shortened=True)
    assert exported.returncode == 0, exported.stderr

    compared = run(
        "compare",
        "recipe.yaml",
        "--methods",
        "joint,l1_sp",
        "--seeds",
        "1",
        "--no-costs",
        "training.output_dir=compared",
        "method.l1_weight=0.05",
        shortened=True,
    )
    assert compared.returncode == 0, compared.stderr
    texts = {path.parent.name[:5]: path.read_text() for path in (tmp_path / "compared/runs").glob("*/recipe.yaml")}
    assert {name: "l1_weight" in text for name, text in texts.items()} == {"joint": False, "l1_sp": True}
    found = json.loads((tmp_path / "compared/comparison.json").read_text())
    assert found["methods"]["l1_sp"]["settings"] == {"method.name": "l1_sp", "method.l1_weight": 0.01}
    assert "l1_sp" in run("compare", "--help").stdout

    wrong = run("train", *method, "method.l1_wait=1", "--dry-run")
    assert wrong.returncode == 2 and "method.l1_wait: unknown key; did you mean l1_weight?" in wrong.stderr
    wrong = run("train", *method, "method.l1_weight=-1", "--dry-run")
    assert wrong.returncode == 2 and "l1_weight is -1.0: expected 0 or more" in wrong.stderr


@pytest.fixture
def toy(monkeypatch):
    """The toy, registered in this process."""
    monkeypatch.setattr("deft_hf.methods.METHODS", dict(METHODS))
    space: dict = {"__name__": "toy_here"}
    exec(compile(TOY.read_text(), str(TOY), "exec"), space)
    return register_method(space["L1SP"])


def test_it_is_refused_for_its_own_reason_where_parameters_are_sharded(toy):
    composition = compose(RunSettings(method="l1_sp"))
    assert composition.refusals(Launcher(shards_parameters=True)) == [
        "l1_sp sums absolute distances of whole tensors: train it with DDP"
    ]
    assert composition.refusals(Launcher(hides_gradients=True)) == []


def test_settings_that_it_has_not_are_refused(toy):
    with pytest.raises(UserError, match="method l1_sp has no l2_weight; its own are: l1_weight"):
        compose(RunSettings(method="l1_sp", method_settings={"l2_weight": 1.0}))
    assert compose(RunSettings(method="l1_sp", method_settings={"l1_weight": -1.0})).problems() == [
        "l1_weight is -1.0: expected 0 or more"
    ]


def test_its_settings_are_none_of_a_rivals_business(toy):
    assert settings_of_others("joint").keys() - settings_of_others("l1_sp") == {"l1_weight"}
    assert settings_of_others("deft")["l1_weight"] == settings_of_others("ldt")["l1_weight"] == 1e-3
    assert settings_of_others("ldt")["pathways"] == "both" and "pathways" not in settings_of_others("deft")


def test_names_are_taken_once(toy):
    assert register_method(toy) is toy
    with pytest.raises(UserError, match="method 'joint' is registered already, as Joint"):
        register_method(type("Other", (Joint,), {"name": "joint", "variants": {}}))
    with pytest.raises(UserError, match="the rows l1_sp are another method's"):
        register_method(type("Other", (Joint,), {"name": "other", "variants": toy.variants}))
