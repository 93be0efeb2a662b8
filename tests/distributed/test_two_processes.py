import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from tests import processes, tiny
from tests.distributed import train_script
from tests.trainer.test_trainer import valid_pixels

MODELS = ("segformer", "reweighted", "mask2former", "halved", "combined", "terms", "layers", "layers_in_turn")
MODELS += ("adapters",) if find_spec("peft") else ()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes train each model; a batch has an image of each."""
    folder = tmp_path_factory.mktemp("two")
    processes.run_ranks(2, "tests.distributed.train_script", folder, *MODELS)
    return folder


def results(folder):
    weights = {name: load_file(folder / f"{name}.safetensors") for name in ("usual", "generalized")}
    return json.loads((folder / "out.json").read_text()), weights


def assert_equal_weights(found, expected):
    """Per tensor; those that have no gradient hold nothing but rounding."""
    for component in ("usual", "generalized"):
        for name, value in expected[component].items():
            apart, size = (found[component][name] - value).double().norm(), value.double().norm()
            assert apart <= 1e-6 * size + 1e-8, (component, name)


@pytest.mark.parametrize("model_type", MODELS)
def test_two_processes_equal_one(two, tmp_path, monkeypatch, model_type):
    """The same global batches over both stages; batches accumulated, with unequal numbers of ignored pixels, or
    without a valid one on a process; fewer images to score than processes."""
    monkeypatch.setattr(torch, "rand", tiny.same_points)
    train_script.train(tmp_path / "one", 2, model_type)
    expected, weights = results(tmp_path / "one")
    found, weights_of_two = results(two / model_type)
    assert found["counted"] == expected["counted"]
    for ours, theirs in zip(found["figures"], expected["figures"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-3)
    assert_equal_weights(weights_of_two, weights)


@pytest.mark.parametrize("how", train_script.SHARDING)
def test_every_image_is_scored_once_however_training_is_sharded(two, how):
    scored = {
        name: [data[i] for i in range(len(data))] for name, data in train_script.SCORED.items() if name != "stream"
    }
    scored["stream"] = list(train_script.SCORED["stream"])
    expected = {name: valid_pixels(items) for name, items in scored.items()}
    assert json.loads((two / f"{how}.json").read_text()) == {"pixels": expected, "samples": [7, 1, 5]}


def test_one_process_goes_on_from_the_checkpoint_of_two(two, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "rand", tiny.same_points)
    shutil.copytree(two / "mask2former" / "checkpoint-7", tmp_path / "checkpoint-7")
    train_script.train(tmp_path, 2, "mask2former")
    assert_equal_weights(results(tmp_path)[1], results(two / "mask2former")[1])
