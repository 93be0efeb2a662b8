import pytest
import torch

from deft_hf.methods.core import losses as step
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import resolve_family
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import history, trainer


def saved_bytes(pathways, batch):
    """What autograd keeps for the backward of one step, parameters not counted."""
    parameters = {parameter.data_ptr() for parameter in pathways.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pathways(**batch)["loss"].backward()
    return sum(kept.values())


def test_checkpointing_reaches_both_components_and_changes_nothing_but_memory(tmp_path, monkeypatch):
    losses, weights, kept = {}, {}, {}
    for on in (False, True):
        run = trainer(
            tmp_path / str(on),
            model=tiny.build("segformer", **tiny.WITHOUT_DROPOUT["segformer"]),
            activation_checkpointing=on,
        )
        run.train()
        losses[on] = history(run, "loss")
        weights[on] = dict(run.generalized_model.state_dict())
        monkeypatch.setattr(step, "can_be_staged", lambda tensors: False)  # the graphs of both at once
        kept[on] = saved_bytes(run.pathways.train(), tiny.batch())
        for component in (run.pathways.usual, run.pathways.generalized):
            assert component.is_activation_checkpointing == on
    assert losses[True] == losses[False]
    assert all(torch.equal(weights[True][name], weights[False][name]) for name in weights[True])
    assert kept[True] < 0.8 * kept[False]


def test_checkpointing_of_a_model_that_has_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="activation_checkpointing .* Mask2Former.* does not support it: leave it out"):
        trainer(tmp_path, model=tiny.build("mask2former"), activation_checkpointing=True)


@pytest.mark.parametrize("shared", [True, False])
def test_what_never_trains_is_there_once(shared):
    model = tiny.build("upernet")
    family = resolve_family(model)
    pathways = DualPathway(model, family, share_untrained=shared)
    usual, generalized = (dict(getattr(pathways, name).named_parameters()) for name in ("usual", "generalized"))
    once = {name for name in usual if usual[name] is generalized[name]}
    assert once == ({name for name in usual if not family.is_trained(name)} if shared else set())
    assert any(name.startswith("auxiliary_head") for name in usual)


@pytest.mark.parametrize("settings", [{"distance_weight": 0.1}, {"projection_weight": 1.0, "distance_weight": 0.01}])
def test_a_snapshot_on_the_cpu_is_the_same_snapshot(tmp_path, settings):
    runs = {}
    for on_cpu in (False, True):
        run = runs[on_cpu] = trainer(tmp_path / str(on_cpu), snapshot_on_cpu=on_cpu, **settings)
        run.train()
        assert run.pathways.initial_at_hand == (not on_cpu)
    for one, other in zip(runs[True].pathways.parameters(), runs[False].pathways.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_compiled_step_gives_the_same_gradients_and_is_compiled_once():
    """Pathways are views made at every step: were they compiled at every step, graphs would pile up."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    model = tiny.build("segformer").eval()
    pathways = DualPathway(model, resolve_family(model))
    pathways.enter("decoupled")
    batch = tiny.batch()
    trained = [*pathways.trained("encoder"), *pathways.trained("decoder")]
    expected = pathways(**batch)["loss"]
    gradients = torch.autograd.grad(expected, trained)
    compiled = torch.compile(pathways, backend="eager")
    graphs = []
    for _ in range(3):
        loss = compiled(**batch)["loss"]
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, trained), gradients, atol=1e-6, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[0] == graphs[2]


def test_a_batch_that_batchnorm_cannot_be_trained_on_is_one_message(tmp_path):
    """Behind a pooling to one pixel a single image leaves one value per channel."""
    run = trainer(tmp_path, model=tiny.build("mobilenet_v2"), per_device_train_batch_size=1)
    with pytest.raises(UserError, match="per_device_train_batch_size: found 1, too few for a BatchNorm"):
        run.train()
