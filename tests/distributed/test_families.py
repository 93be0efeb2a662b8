"""Every family trains in two processes, which end with the same weights to the bit."""

import json

import pytest

from tests import processes, tiny


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One start of two processes for all families: most of the time goes into starting."""
    path = tmp_path_factory.mktemp("families") / "found.json"
    processes.run_ranks(2, "tests.distributed.families_script", path)
    return json.loads(path.read_text())


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
def test_two_processes_agree(model_type, found):
    family = found[model_type]
    assert family["processes"] == 2 and family["trained"] > 1e-6
    assert family["usual"] == family["generalized"] == 0
