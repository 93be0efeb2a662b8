import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deft_hf.comparison import cost
from deft_hf.comparison.plan import Plan
from deft_hf.comparison.variants import parse_variants
from deft_hf.methods import variants as known_variants
from deft_hf.methods.core.cost import step_flops
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import resolve_family
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.start import open_start
from deft_hf.utils.errors import UserError
from tests.comparison.test_plan import write_recipe

ROOT = Path(cost.__file__).parents[2]


def settings(*names):
    return {name: known_variants()[name].own for name in names}


@pytest.fixture
def plan(tmp_path):
    return Plan(write_recipe(tmp_path), (), tmp_path / "runs")


# ---- what a step costs


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Plan, folder and costs of joint and DeFT."""
    folder = tmp_path_factory.mktemp("cost")
    plan = Plan(write_recipe(folder), (), folder / "runs")
    return plan, folder / "costs", cost.measure(plan, settings("joint", "deft"), folder / "costs")


def flops(plan, name):
    """Operations of a step of the last stage on two images, of which a split step takes four."""
    trainer, _, four = cost._prepare(plan.run(known_variants()[name].own, 0).recipe)
    return step_flops(trainer.pathways, four) // 2


def test_a_split_step_has_half_the_operations(plan):
    assert 2 * flops(plan, "deft_split") == flops(plan, "deft")


def test_what_joint_costs_is_kept_beside_it(measured):
    plan, folder, costs = measured
    (path,) = folder.glob("joint-*.json")
    kept = json.loads(path.read_text())
    assert kept["flops"] == flops(plan, "joint") and kept["memory"] > 0
    assert costs["joint"].time == kept["seconds"] / kept["joint_seconds"]


def test_deft_costs_more_operations(measured):
    plan, _, costs = measured
    assert costs["deft"].flops == flops(plan, "deft") / flops(plan, "joint")
    # 4 E + 5 D to 3 E + 3 D, but for the input gradients of what stands first.
    assert 4 / 3 < costs["deft"].flops < 5 / 3 + 0.1
    assert costs["deft"].memory > 1 and costs["deft"].time > 0


def test_the_last_stage_is_the_one_that_counts(measured):
    plan, _, _ = measured
    assert flops(plan, "lp_ft") == flops(plan, "joint")
    assert flops(plan, "frozen") < flops(plan, "joint")
    assert flops(plan, "joint_ema") == flops(plan, "joint")  # the average multiplies nothing


def test_what_was_measured_is_read_from_the_folder(measured, monkeypatch):
    plan, folder, costs = measured
    monkeypatch.setattr(subprocess, "run", None)
    assert cost.measure(plan, settings("deft", "joint"), folder) == {name: costs[name] for name in ("deft", "joint")}


def test_other_settings_and_other_hardware_are_measured_anew(measured, monkeypatch):
    plan, folder, costs = measured
    figures, asked = {"seconds": 3.0, "joint_seconds": 2.0, "memory": 5, "flops": 7}, []

    def run(command, **kwargs):
        asked.append(command[-2:])
        return SimpleNamespace(returncode=0, stdout=f"a line of the log\n{json.dumps(figures)}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    tuned = {"deft": {**known_variants()["deft"].own, "training.learning_rate": 3e-3}}
    found = cost.measure(plan, tuned, folder)
    assert found["deft"].time == 1.5 and len(asked) == 1
    assert cost.Recipe.load(asked[0][0]).training.learning_rate == 3e-3
    assert cost.Recipe.load(asked[0][1]).method.name == "joint"

    monkeypatch.setattr(cost, "hardware", lambda: "2 x NVIDIA H100 80GB HBM3")
    found = cost.measure(plan, settings("deft"), folder)
    assert (found["deft"].time, found["deft"].memory, found["deft"].flops) == (1.5, 1.0, 1.0) and len(asked) == 3
    names = [plan.run(own, 0).folder.name for own in settings("joint", "deft").values()]
    assert all((folder / f"{name}-2-x-NVIDIA-H100-80GB-HBM3.json").is_file() for name in names)
    monkeypatch.undo()
    assert cost.measure(plan, settings("joint", "deft"), folder) == costs


def test_one_that_cannot_be_measured_is_left_out(measured, monkeypatch, tmp_path, capsys):
    plan, folder, costs = measured

    def fails(command, **kwargs):
        return SimpleNamespace(returncode=1, stdout="", stderr="Traceback ...\ntorch.OutOfMemoryError: no memory\n")

    monkeypatch.setattr(subprocess, "run", fails)
    assert cost.measure(plan, settings("joint", "frozen", "deft"), folder) == costs
    assert "frozen-s0-" in (error := capsys.readouterr().err) and "torch.OutOfMemoryError: no memory" in error
    assert cost.measure(plan, settings("joint", "deft"), tmp_path / "costs") == {}  # nothing to compare with


def test_memory_is_that_of_the_process_itself():
    grows = (
        "from deft_hf.utils.machine import peak_memory as peak\n"
        "before = peak(); more = b'1' * (64 << 20); print(peak() - before)"
    )
    burden = b"1" * (256 << 20)  # held here while the other process starts
    found = subprocess.run([sys.executable, "-c", grows], capture_output=True, text=True, check=True, cwd=ROOT)
    assert len(burden) > 128 << 20 > int(found.stdout) > 60 << 20


def test_memory_that_no_step_added_to_is_unknown(measured, monkeypatch):
    figures = {"seconds": 1.0, "joint_seconds": 1.0, "memory": 0, "flops": 1}
    monkeypatch.setattr(cost, "_measured", lambda *args: figures)
    found = cost.measure(measured[0], settings("deft"), measured[1])
    assert math.isnan(found["deft"].memory) and found["deft"].time == 1.0


def test_time_is_that_of_a_training_batch_and_operations_are_counted_on_four_images(plan):
    own = {**known_variants()["joint"].own, "training.per_device_train_batch_size": 3}
    _, batch, four = cost._prepare(plan.run(own, 0).recipe)
    for values, size in ((batch, 3), (four, 4)):
        assert values["pixel_values"].shape == (size, 3, 64, 64) and values["labels"].shape == (size, 64, 64)


@pytest.mark.parametrize("name", ["wise_ft", "l2_sp", "spd", "swa"])
def test_a_step_is_a_whole_one_whatever_the_method(plan, name):
    own = {**known_variants()[name].own, "training.lr_scheduler_type": "constant"}
    trainer, batch, _ = cost._prepare(plan.run(own, 0).recipe)
    before = {key: value.clone() for key, value in trainer.pathways.usual.named_parameters()}
    for _ in range(2):  # the first one starts from where the regularisers pull to
        assert cost._step(trainer, batch) > 0
    after = dict(trainer.pathways.usual.named_parameters())
    assert all(not torch.equal(after[key], value) for key, value in before.items())
    assert int(trainer.pathways.updates) == 2
    assert all(parameter.grad is None for parameter in after.values())


@pytest.mark.parametrize("bf16, expected", [(False, torch.float32), (True, torch.bfloat16)])
def test_a_step_computes_in_the_precision_of_the_training(plan, bf16, expected):
    own = {**known_variants()["deft"].own, "training.bf16": bf16}
    trainer, batch, _ = cost._prepare(plan.run(own, 0).recipe)
    found = []
    for component in (trainer.pathways.usual, trainer.pathways.generalized):
        for module in component.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    cost._step(trainer, batch)
    assert len(found) > 20 and {*found} == {expected}


# ---- as much compute


@pytest.fixture
def run_flops(plan):
    """A function from settings to the operations of the whole run, on two images a step."""
    recipe = plan.run({}, 0).recipe
    model, *_ = open_start(recipe.model, recipe.data, recipe.data.label_space(), recipe.training.seed)
    pathways = DualPathway(model, resolve_family(model))
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.randint(0, 7, (2, 64, 64))}
    cost_of = {}
    for stage in ("warmup", "decoupled", "joint"):
        pathways.enter(stage)
        cost_of[stage] = step_flops(pathways, batch)

    def count(plan, settings):
        own = plan.run(settings, 0).recipe
        stages = method_arguments(own, own.method.name).spans(own.training.max_steps)
        return sum(span.steps * cost_of[span.stage] for span in stages)

    return SimpleNamespace(count=count, joint_step=cost_of["joint"], warmup_step=cost_of["warmup"])


@pytest.mark.parametrize("overrides", [(), ("method.decoder_warmup_steps=null", "training.max_steps=40")])
def test_equal_compute_is_as_many_steps_as_the_operations_of_deft_buy(plan, run_flops, overrides):
    plan = replace(plan, overrides=overrides)
    asked = parse_variants("joint,joint_equal,lp_ft_equal,deft,deft_split_equal")
    found = cost.with_equal_compute(plan, asked)
    wanted = run_flops.count(plan, known_variants()["deft"].settings)
    for name in ("joint_equal", "lp_ft_equal"):
        spent = run_flops.count(plan, found[name].settings)
        assert wanted - run_flops.joint_step < spent <= wanted
        assert replace(found[name], own=asked[name].own) == asked[name]
        assert found[name].settings.items() > asked[name].settings.items()
    split = found["deft_split_equal"].settings
    assert abs(split["training.max_steps"] - 2 * plan.steps(known_variants()["deft"].settings)) <= 1
    assert (found["joint"], found["deft"], [*found]) == (asked["joint"], asked["deft"], [*asked])
    # The default warm-up, a tenth, does not grow with what it precedes.
    joint, lp_ft = (found[name].settings for name in ("joint_equal", "lp_ft_equal"))
    assert (joint["method.decoder_warmup_steps"], lp_ft["method.decoder_warmup_steps"]) == (0, 4 if overrides else 1)
    assert plan.steps(known_variants()["deft"].settings) < lp_ft["training.max_steps"] < joint["training.max_steps"]


def test_equal_compute_keeps_what_a_name_sets(plan, run_flops):
    spec = "lp_ft_equal:method.decoder_warmup_steps=3:training.learning_rate=0.002"
    found = cost.with_equal_compute(plan, parse_variants(spec))[spec].settings
    assert (found["method.decoder_warmup_steps"], found["training.learning_rate"]) == (3, 2e-3)
    left = run_flops.count(plan, known_variants()["deft"].settings) - 3 * run_flops.warmup_step
    assert found["training.max_steps"] == left // run_flops.joint_step


def test_a_warmup_that_takes_all_of_the_compute_is_refused(plan):
    spec = "lp_ft_equal:method.decoder_warmup_steps=500"
    with pytest.raises(UserError, match=f"^{spec}: its decoder warm-up of 500 steps takes all the compute of deft"):
        cost.with_equal_compute(plan, parse_variants(spec))


def test_without_equal_compute_nothing_is_counted(plan, monkeypatch):
    monkeypatch.setattr(cost, "open_start", None)
    asked = parse_variants("joint,lp_ft,deft")
    assert cost.with_equal_compute(plan, asked) == asked
