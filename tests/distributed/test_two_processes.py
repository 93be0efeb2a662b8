import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_two_processes_equal_one(tmp_path):
    """The same global batches over both stages; batches accumulated, with unequal numbers of ignored pixels, or
    without a valid one on a process; fewer images to score than processes."""
    facts, weights = launch(1, tmp_path / "one", 2)
    found, found_weights = launch(2, tmp_path / "two", 1)
    assert found["counted"] == facts["counted"]
    for ours, theirs in zip(found["figures"], facts["figures"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found["scores"] == pytest.approx(facts["scores"], abs=1e-3)
    assert_equal_weights(found_weights, weights)


def test_matching_masks_and_going_on_with_another_number_of_processes(tmp_path):
    one, weights = launch(1, tmp_path / "one", 2, "mask2former")
    two, weights_of_two = launch(2, tmp_path / "two", 1, "mask2former")
    assert two["counted"] == one["counted"]
    for found, expected in zip(two["figures"], one["figures"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert_equal_weights(weights_of_two, weights)
    shutil.copytree(tmp_path / "two" / "checkpoint-7", tmp_path / "on" / "checkpoint-7")
    _, weights_of_both = launch(1, tmp_path / "on", 2, "mask2former")
    assert_equal_weights(weights_of_both, weights)
