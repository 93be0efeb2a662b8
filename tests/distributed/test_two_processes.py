import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = ["-m", "tests.distributed.train_script"]


def launch(processes, folder, batch_size, model_type):
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, *SCRIPT, str(folder), str(batch_size), model_type]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "out.json").read_text()), load_file(folder / "final" / "model.safetensors")


@pytest.mark.parametrize("model_type", ["segformer", "mask2former"])
def test_two_processes_equal_one(tmp_path, model_type):
    """The same global batches, unequal numbers of ignored pixels per process, fewer images than processes."""
    one, weights_one = launch(1, tmp_path / "one", 2, model_type)
    two, weights_two = launch(2, tmp_path / "two", 1, model_type)
    assert two["counted"] == one["counted"]
    for found, expected in zip(two["figures"], one["figures"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert two["scores"] == pytest.approx(one["scores"], abs=1e-3)
    for name, value in weights_one.items():
        torch.testing.assert_close(weights_two[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert (tmp_path / "two" / "checkpoint-8" / "usual.safetensors").is_file()
