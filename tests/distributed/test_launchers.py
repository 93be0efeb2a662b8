import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

from deft_hf.utils.integrity import damage
from tests import processes, tiny

pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")

MODELS = ("segformer", "mobilenet_v2")
LAUNCHERS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
RUNS = [f"{launcher}{way}" for launcher in LAUNCHERS for way in ("", "-resumed")]
OWN_OPTIMIZER = ("mobilenet_v2+one_group", "mobilenet_v2+reversed_groups")
OWN_OPTIMIZER_LAUNCHERS = ("ddp", "zero2", "zero3", "fsdp2")
OWN_OPTIMIZER_RUNS = [f"{launcher}{way}" for launcher in OWN_OPTIMIZER_LAUNCHERS for way in ("", "-resumed")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two processes; each launcher trains each model straight, and again from the middle, and one with optimizers that
    came in by `optimizers`. One start for all: importing DeepSpeed takes as long as several runs."""
    folder = tmp_path_factory.mktemp("launchers")
    runs = [f"{case}/{launcher}" for case in MODELS for launcher in LAUNCHERS]
    runs += [f"{case}/{launcher}" for case in OWN_OPTIMIZER for launcher in OWN_OPTIMIZER_LAUNCHERS]
    environment = {"DS_ACCELERATOR": "cpu"}
    processes.run_ranks(2, "tests.distributed.launcher_script", folder, *runs, env=environment, timeout=540)
    return folder


def norm(tensors):
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm()


def facts(folder):
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("run", RUNS[1:])
def test_every_launcher_gives_the_same_model(trained, model_type, run):
    assert_same_model(trained / model_type / "ddp", trained / model_type / run, f"{model_type}.")


def assert_same_model(expected, found, encoder):
    """Per part and component. What deep layers of BatchNorm blow up of the rounding is small beside how far training
    went."""
    initial = load_file(expected / "initial.safetensors")
    for component in ("usual", "generalized"):
        ours, theirs = (load_file(place / f"{component}.safetensors") for place in (found, expected))
        for inside in (True, False):
            names = [name for name in initial if name.startswith(encoder) == inside]
            size = norm([theirs[name] for name in names])
            went = norm([theirs[name] - initial[name] for name in names])
            apart = norm([theirs[name] - ours[name] for name in names])
            assert went > 1e-3
            assert apart < 1e-5 * size and apart < 2e-4 * went, (component, inside)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("run", RUNS[1:])
def test_every_launcher_logs_and_scores_the_same(trained, model_type, run):
    expected, found = facts(trained / model_type / "ddp"), facts(trained / model_type / run)
    assert found["sharded"] == run.startswith(("zero3", "fsdp2"))
    for key in ("losses", "norms", "distances"):
        assert found[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-7), key
    assert found["counted"] == expected["counted"]
    # A pixel on the border between two classes may fall on the other side.
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-3)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("run", RUNS)
def test_every_export_and_checkpoint_is_a_plain_folder(trained, model_type, run):
    folder = trained / model_type / run
    assert damage(folder / "checkpoint-6") is None
    reloaded = AutoModelForSemanticSegmentation.from_pretrained(folder / "final").eval()
    expected = load_file(folder / "generalized.safetensors")
    for name, tensor in reloaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # At other addresses in memory the CPU rounds otherwise.
    reloaded.load_state_dict({name: tensor.clone() for name, tensor in reloaded.state_dict().items()}, assign=True)
    with torch.inference_mode():
        logits = reloaded(pixel_values=tiny.batch()["pixel_values"]).logits
    torch.testing.assert_close(logits, load_file(folder / "logits.safetensors")["logits"], rtol=0, atol=1e-6)
    names = {path.name for path in (folder / "checkpoint-6").iterdir()}
    assert {"model.safetensors", "usual.safetensors", "initial.safetensors", "optimizer.pt", "scheduler.pt"} <= names
    assert not [name for name in names if name.startswith(("global_step", "pytorch_model"))]


def test_a_checkpoint_goes_on_under_another_launcher(trained):
    """What the optimizer keeps is the same file everywhere."""
    for run in ("zero1", "zero3", "fsdp2"):
        assert_same_optimizer(trained / "segformer" / "ddp", trained / "segformer" / run)


def assert_same_optimizer(*folders, within=1e-5):
    expected, found = (torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True) for folder in folders)
    assert [g["params"] for g in found["param_groups"]] == [g["params"] for g in expected["param_groups"]]
    assert found["state"].keys() == expected["state"].keys()
    moments = [
        [state["state"][i]["momentum_buffer"] for i in sorted(expected["state"])] for state in (expected, found)
    ]
    apart = torch.stack([(a - b).norm() for a, b in zip(*moments, strict=True)]).norm()
    assert apart < within * torch.stack([moment.norm() for moment in moments[0]]).norm()


@pytest.mark.parametrize("case", OWN_OPTIMIZER)
@pytest.mark.parametrize("run", OWN_OPTIMIZER_RUNS[1:])
def test_an_optimizer_of_the_callers_is_the_same_under_every_launcher(trained, case, run):
    """Its groups are as they came, whatever groups the arguments would have made, and so is what a checkpoint keeps of
    each parameter."""
    expected, found = (trained / case / each for each in ("ddp", run))
    assert_same_model(expected, found, "mobilenet_v2.")
    assert_same_optimizer(expected, found, within=1e-3)
