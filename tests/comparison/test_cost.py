import subprocess
from types import SimpleNamespace

import pytest

from deft_hf.comparison import cost
from deft_hf.comparison.plan import Plan
from deft_hf.comparison.variants import VARIANTS
from tests.comparison.test_plan import write_recipe


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Plan, folder and costs of joint and DeFT."""
    folder = tmp_path_factory.mktemp("cost")
    plan = Plan(write_recipe(folder), (), folder / "runs")
    return plan, folder / "costs", cost.measure(plan, rows("joint", "deft"), folder / "costs")


def rows(*names):
    return {name: VARIANTS[name] for name in names}


def flops(plan, name):
    return cost.flops_of_a_step(plan.run(VARIANTS[name].alone, 0).recipe)


def test_joint_costs_what_joint_costs(measured):
    _, _, costs = measured
    assert (costs["joint"].flops, costs["joint"].memory) == (1.0, 1.0)
    assert costs["joint"].time > 0


def test_deft_costs_more_operations_and_they_are_those_that_equal_compute_goes_by(measured):
    plan, _, costs = measured
    assert costs["deft"].flops == flops(plan, "deft") / flops(plan, "joint")
    # 4 E + 5 D to 3 E + 3 D, but for the input gradients of what stands first.
    assert 4 / 3 < costs["deft"].flops < 5 / 3 + 0.1
    assert costs["deft"].memory > 0 and costs["deft"].time > 0


def test_the_last_stage_is_the_one_that_counts(measured):
    plan, _, _ = measured
    assert flops(plan, "lp_ft") == flops(plan, "joint")
    assert flops(plan, "frozen") < flops(plan, "joint")
    assert flops(plan, "joint_ema") == flops(plan, "joint")  # the average multiplies nothing


def test_what_was_measured_is_read_from_the_folder(measured, monkeypatch):
    plan, folder, costs = measured
    monkeypatch.setattr(subprocess, "run", None)
    assert cost.measure(plan, rows("deft", "joint"), folder) == {name: costs[name] for name in ("deft", "joint")}


def test_one_that_cannot_be_measured_is_left_out(measured, monkeypatch, tmp_path, capsys):
    plan, folder, costs = measured

    def fails(command, **kwargs):
        return SimpleNamespace(returncode=1, stdout="", stderr="Traceback ...\ntorch.OutOfMemoryError: no memory\n")

    monkeypatch.setattr(subprocess, "run", fails)
    assert cost.measure(plan, rows("joint", "frozen", "deft"), folder) == costs
    assert "frozen-s0-" in (error := capsys.readouterr().err) and "torch.OutOfMemoryError: no memory" in error
    assert cost.measure(plan, rows("joint", "deft"), tmp_path / "costs") == {}  # nothing to compare with
