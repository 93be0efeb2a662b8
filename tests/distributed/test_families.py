"""Every family trains in two processes, which end with the same weights to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One start of two processes for all families: most of the time goes into starting."""
    path = tmp_path_factory.mktemp("families") / "found.json"
    command = [sys.executable, *TWO_PROCESSES, "-m", "tests.distributed.families_script", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
def test_two_processes_agree(model_type, found):
    family = found[model_type]
    assert family["processes"] == 2 and family["trained"] > 1e-6
    assert family["usual"] == family["generalized"] == 0
