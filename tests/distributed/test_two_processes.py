import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = ["-m", "tests.distributed.train_script"]


def launch(processes, folder, batch_size, model_type="segformer"):
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, *SCRIPT, str(folder), str(batch_size), model_type]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    weights = {name: load_file(folder / f"{name}.safetensors") for name in ("usual", "generalized")}
    return json.loads((folder / "out.json").read_text()), weights


def assert_equal_weights(found, expected):
    """Per tensor; those that have no gradient hold nothing but rounding."""
    for component in ("usual", "generalized"):
        for name, value in expected[component].items():
            apart, size = (found[component][name] - value).double().norm(), value.double().norm()
            assert apart <= 1e-6 * size + 1e-8, (component, name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(1, tmp_path_factory.mktemp("one"), 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return *launch(2, folder, 1), folder


def test_two_processes_equal_one(one, two):
    """The same global batches over both stages; batches accumulated, with unequal numbers of ignored pixels, or
    without a valid one on a process; fewer images to score than processes."""
    (facts, weights), (found, found_weights, _) = one, two
    assert found["counted"] == facts["counted"]
    for ours, theirs in zip(found["figures"], facts["figures"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found["scores"] == pytest.approx(facts["scores"], abs=1e-3)
    assert_equal_weights(found_weights, weights)


def test_one_process_goes_on_with_a_checkpoint_of_two(one, two, tmp_path):
    shutil.copytree(two[-1] / "checkpoint-7", tmp_path / "checkpoint-7")
    _, weights = launch(1, tmp_path, 2)
    assert_equal_weights(weights, one[1])


def test_two_processes_equal_one_in_matching_masks(tmp_path):
    one, weights_one = launch(1, tmp_path / "one", 2, "mask2former")
    two, weights_two = launch(2, tmp_path / "two", 1, "mask2former")
    assert two["counted"] == one["counted"]
    for found, expected in zip(two["figures"], one["figures"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    for component in ("usual", "generalized"):
        for name, value in weights_one[component].items():
            torch.testing.assert_close(weights_two[component][name], value, rtol=1e-5, atol=1e-7, msg=name)
