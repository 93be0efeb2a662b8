import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from deft_hf.utils.integrity import damage
from tests import processes

ROOT = Path(__file__).parents[2]


def test_a_signal_to_one_rank_stops_all_of_them_at_the_same_step(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "tests.distributed.sigterm_script", "3", str(tmp_path / "killed")]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode and "exitcode  : 143" in killed.stderr, killed.stderr[-3000:]
    (checkpoint,) = (tmp_path / "killed").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-4" and damage(checkpoint) is None
    processes.run_ranks(2, "tests.distributed.sigterm_script", -1, tmp_path / "killed", tmp_path / "unbroken")
    expected, found = (load_file(tmp_path / folder / "usual.safetensors") for folder in ("unbroken", "killed"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
