"""What `DeFTTrainer` pushes, to a small Hub on loopback, and that no failure of a push costs training."""

import json
import threading

import pytest
import torch
import yaml
from transformers import AutoModelForSemanticSegmentation

from deft_hf import train
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish import push as pushing
from deft_hf.publish.push import PushFailed
from deft_hf.trainer import hub as module
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import run_command
from tests import tiny
from tests.hub import TOKEN, Repository
from tests.trainer.test_trainer import Drawn, arguments

pytestmark = pytest.mark.usefixtures("unverified")
RECIPE = """\
model: {{checkpoint: embedded}}
method: {{name: deft, decoder_warmup_steps: 1, batchnorm_batches: 1}}
data:
  labels: streets
  source: [{{streets: clear, count: 2, size: [48, 64]}}]
  validation: [{{streets: clear, count: 1, seed: 1, size: [48, 64], name: val}}]
  unseen: [{{streets: night, count: 1, size: [48, 64]}}]
  image_size: [48, 64]
training:
  {{output_dir: out, max_steps: 1, per_device_train_batch_size: 2, learning_rate: 1.0e-3, save_steps: 1,
    disable_tqdm: true, use_cpu: true}}
publish: {{{publish}}}
"""
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture
def warnings(monkeypatch):
    """What the Hub's methods warned of."""
    told = []
    for logger, level in ((module.logger, "warning"), (module.logger, "error"), (pushing.logger, "warning")):
        monkeypatch.setattr(logger, level, told.append)
    return told


def trainer(folder, strategy="every_save", **overrides):
    settings = {"push_to_hub": True, "hub_model_id": "ana/town", "hub_strategy": strategy, "hub_private_repo": True}
    settings |= {"save_strategy": "steps", "save_steps": 5, "hub_always_push": True}
    return DeFTTrainer(
        tiny.build("segformer"),
        arguments(folder, **settings | overrides),
        train_dataset=Drawn(8),
        processing_class=segmentation_processor(None, (64, 64)),
    )


def load(hub, folder, prefix=""):
    """The model that lies in the repository, or in a folder of it."""
    for name, content in hub.files("ana/town").items():
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix):
            folder.mkdir(exist_ok=True)
            (folder / name.removeprefix(prefix)).write_bytes(content)
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_every_save_pushes_a_loadable_model(tmp_path, hub, warnings):
    run = trainer(tmp_path / "out", save_total_limit=1)
    assert hub.repositories["ana/town"].private
    run.train()
    steps = [f"Training in progress, step {step}" for step in (5, 10)]
    assert hub.repositories["ana/town"].commits == steps
    assert set(hub.files("ana/town")) == MODEL
    assert same(run.generalized_model.state_dict(), load(hub, tmp_path / "loaded"))
    assert not list((tmp_path / "out").glob(".push-*"))
    assert not any("failed" in text for text in warnings)

    commit = run.push_to_hub()
    assert commit.oid and hub.repositories["ana/town"].commits == [*steps, "End of training"]
    assert set(hub.files("ana/town")) == MODEL | {"README.md"}


@pytest.mark.parametrize("strategy, place", [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-10")])
def test_checkpoints_are_pushed_to_be_gone_on_from(tmp_path, hub, warnings, strategy, place):
    run = trainer(tmp_path / "out", strategy)
    run.train()
    written = {f"{place}/{path.name}": path.read_bytes() for path in (tmp_path / "out" / "checkpoint-10").iterdir()}
    found = hub.files("ana/town")
    assert written.items() <= found.items() and set(found) >= MODEL
    assert ("checkpoint-5/optimizer.pt" in found) == (strategy == "all_checkpoints")
    assert {name for name in found if "/" not in name} == MODEL


def test_training_is_the_same_whatever_becomes_of_its_pushes(tmp_path, hub, warnings):
    hub.fault = lambda method, path: 500 if method == "PUT" else None
    run = trainer(tmp_path / "out")
    run.train()
    alone = trainer(tmp_path / "alone", push_to_hub=False)
    alone.train()
    assert same(run.generalized_model.state_dict(), alone.generalized_model.state_dict())
    failed = [text for text in warnings if "the push to ana/town failed" in text]
    assert len(failed) == 2 and hub.files("ana/town") == {}
    checkpoint = tmp_path / "out" / "checkpoint-10"
    assert f"Everything is safe in {checkpoint}" in failed[1]
    assert f"python -m deft_hf.push {checkpoint} ana/town --private" in failed[1]

    run.save_model()
    assert "the push to ana/town failed" in warnings[-1] and (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(PushFailed, match="Everything is safe in .*out. "):
        run.push_to_hub()
    hub.fault = lambda method, path: None
    run.save_model()
    assert set(hub.files("ana/town")) == MODEL | {"README.md"}


def test_a_slow_hub_holds_up_neither_steps_nor_rotation(tmp_path, hub, warnings):
    over = threading.Event()

    def fault(method, path):
        if method == "PUT" and not over.is_set():
            assert over.wait(60)

    hub.fault = fault
    run = trainer(tmp_path / "out", hub_always_push=False, save_steps=2, save_total_limit=1)
    wait = run._finish_current_push
    run._finish_current_push = lambda: (over.set(), wait())
    run.train()
    assert run.state.global_step == 10
    assert sum("is not pushed: the push before it is still in progress" in text for text in warnings) == 4
    assert hub.repositories["ana/town"].commits == ["Training in progress, step 2"]
    assert set(hub.files("ana/town")) == MODEL  # of a checkpoint that made room long ago


def test_a_hub_that_says_no_is_heard_before_training(tmp_path, hub, warnings):
    with pytest.raises(PushFailed, match="401.*Nothing was trained. Log in.*then start again") as raised:
        trainer(tmp_path / "out", hub_token="hf_wrongtokenofana")
    assert "wrongtoken" not in str(raised.value)
    hub.repositories["ana/town"] = Repository(private=False)
    with pytest.raises(PushFailed, match="exists and is public"):
        trainer(tmp_path / "out")
    trainer(tmp_path / "out", hub_private_repo=False, hub_revision="try", hub_token=TOKEN)
    assert set(hub.repositories["ana/town"].branches) == {"main", "try"}


def test_a_hub_out_of_reach_lets_training_start(tmp_path, hub, warnings):
    hub.fault = lambda method, path: 503
    run = trainer(tmp_path / "out")
    assert "Training starts all the same; every push tries again" in warnings[0]
    hub.fault = lambda method, path: None
    run.train()
    assert hub.repositories["ana/town"].private and set(hub.files("ana/town")) == MODEL


# ---- from a recipe


def test_a_recipe_pushes_every_save_and_the_finished_run(tmp_path, hub, monkeypatch):
    publish = "push_to_hub: true, every_save: true, repo_id: ana/town, revision: run-1, license: mit"
    text = RECIPE.format(publish=publish).replace(
        "output_dir: out", f"output_dir: {tmp_path}/out, report_to: tensorboard"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    train.main(["recipe.yaml"])
    repository = hub.repositories["ana/town"]
    assert repository.private and repository.branches["main"] == {}
    first, *between, last = repository.commits
    assert (first, last) == ("Training in progress, step 1", "Upload model")
    assert between in ([], ["Training in progress, step 2"])  # passed over where the push before it still goes on
    found = hub.files("ana/town", "run-1")
    assert MODEL | {"README.md", "recipe.yaml", "results/metrics.json", "figures/panels.png"} <= set(found)
    assert found["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "runs").is_dir() and not [name for name in found if "tfevents" in name]
    # The local recipe stays as it is, which the run goes on by.
    assert str(tmp_path) in (tmp_path / "out" / "recipe.yaml").read_text()
    assert not [name for name, content in found.items() if str(tmp_path).encode() in content]
    facts = json.loads((tmp_path / "out" / "results" / "metrics.json").read_text())
    assert facts["recipe"]["training"]["output_dir"] == f"{tmp_path}/out"
    pushed = json.loads(found["results/metrics.json"])
    assert pushed["recipe"]["training"]["output_dir"] == "out" and pushed["scores"] == facts["scores"]
    assert yaml.safe_load(found["recipe.yaml"]) == pushed["recipe"]

    assert not [name for name in found if name.startswith("checkpoint-") or name.endswith((".pt", ".pth", ".bin"))]


def test_a_finished_run_that_could_not_be_pushed_is_pushed_by_the_same_command(tmp_path, hub, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(publish="push_to_hub: true, repo_id: ana/town"))
    monkeypatch.chdir(tmp_path)
    hub.fault = lambda method, path: 500 if method == "PUT" else None
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: train.main(["recipe.yaml"]), "")
    told = capsys.readouterr().err
    assert (
        f"safe in out. When the Hub can be reached, push again: python -m deft_hf.push {tmp_path}/out ana/town" in told
    )
    assert "error: the push to ana/town failed" in told and (tmp_path / "out" / "model.safetensors").is_file()
    hub.fault = lambda method, path: None
    train.main(["recipe.yaml"])
    assert "deft: done before" in capsys.readouterr().out
    assert MODEL <= set(hub.files("ana/town"))


def test_a_token_that_may_not_write_is_known_before_any_image_is_read(tmp_path, hub, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(publish="push_to_hub: true, repo_id: stranger/town"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PushFailed, match="the rights to write to stranger/town.*Nothing was trained"):
        train.main(["recipe.yaml"])
    assert not (tmp_path / "out").exists()
