"""Layer-decomposition training against its equations, written with two whole copies of the model."""

import copy

import pytest
import torch
from torch import nn

from deft_hf.methods import RunSettings, compose
from deft_hf.methods.base import Launcher
from deft_hf.methods.core.cost import step_flops
from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.layers import LayerEMA, Layers
from deft_hf.models.families import resolve_family
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.methods.core.test_pathways import dual
from tests.methods.test_rivals import Recorder, differing, parameters
from tests.trainer.test_trainer import Drawn, arguments, history, trainer, without_batchnorm

RATE, W = 0.05, 0.7


def drawn_variances(model, seed=0):
    """By trained parameter, any number."""
    family, generator = resolve_family(model), torch.Generator().manual_seed(seed)
    names = [name for name, _ in model.named_parameters() if family.is_trained(name)]
    return dict(zip(names, torch.rand(len(names), generator=generator).tolist(), strict=True))


def reference_steps(model, layers, batches, decays, in_turn):
    """The primary network, in which the stable layers train, and the auxiliary one, after a step on each batch."""
    primary, auxiliary = copy.deepcopy(model), copy.deepcopy(model)
    for network, frozen in ((primary, layers.unstable), (auxiliary, layers.stable)):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in decays and name not in frozen)
    for step, batch in enumerate(batches):
        for network in (primary, auxiliary)[step % 2 :][:1] if in_turn else (primary, auxiliary):
            trained = [p for p in network.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(tiny.own_loss(network, batch), trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.data -= RATE * gradient
        for name in decays:
            own, other = (primary, auxiliary) if name in layers.stable else (auxiliary, primary)
            frozen = other.get_parameter(name)
            frozen.data = decays[name] * frozen.data + (1 - decays[name]) * own.get_parameter(name).data
    return primary, auxiliary


@pytest.mark.parametrize("stage", ["decoupled", "alternating"])
@pytest.mark.parametrize("model_type", ["segformer", "mobilenet_v2"])
def test_steps_equal_the_equations_in_float64(model_type, stage):
    batches = [tiny.batch(seed=seed) for seed in range(5)]
    batches = [{**batch, "pixel_values": batch["pixel_values"].double()} for batch in batches]
    pathways = dual(model_type, tiny.WITHOUT_DROPOUT[model_type], torch.float64, EMA(W, W), stage)
    layers = Layers.by_variance(drawn_variances(pathways.usual), 0.7)
    start = copy.deepcopy(pathways.usual)
    for name, parameter in start.named_parameters():
        parameter.data += 0.1 * (name in layers.unstable)  # so that it shows which network a tensor is taken from
    pathways.usual.load_state_dict(start.state_dict())
    pathways.snapshot()
    pathways.divide(layers)
    every = dict.fromkeys(pathways.initial, W)
    primary, auxiliary = reference_steps(start.train(), layers, batches, every, stage == "alternating")

    optimizer = torch.optim.SGD([p for p in pathways.usual.parameters() if p.requires_grad], lr=RATE)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        losses = pathways(**batch)
        expected = {"stable_loss", "unstable_loss"}
        if stage == "alternating":
            expected = {("stable_loss", "unstable_loss")[step % 2]}
        assert losses.keys() == {"loss", *expected}
        losses["loss"].backward()
        assert all(p.grad is None for p in pathways.generalized.parameters())
        optimizer.step()
        pathways.update_generalized()
    for name in every:
        (usual, generalized) = (primary, auxiliary) if name in layers.stable else (auxiliary, primary)
        for found, wanted in ((pathways.usual, usual), (pathways.generalized, generalized)):
            torch.testing.assert_close(found.get_parameter(name), wanted.get_parameter(name), rtol=0, atol=1e-10)
    for found, wanted in ((pathways.generalized, primary), (pathways.usual, auxiliary)):
        for name, buffer in wanted.named_buffers():
            torch.testing.assert_close(found.get_buffer(name), buffer, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
def test_every_family_can_be_cut_by_layers(model_type):
    pathways = dual(model_type)
    layers = Layers.by_variance(drawn_variances(pathways.usual), 0.5)
    assert {*layers.stable, *layers.unstable} == {*pathways.initial}
    pathways.divide(layers)
    batch = tiny.batch()
    batch = tiny.with_masks(batch) if pathways.family.objective.needs_masks else batch
    own, trained = {}, dict(pathways.usual.named_parameters())
    for turn, group in enumerate(("stable", "unstable")):
        pathways.stage, pathways.turn = "alternating", turn
        pathways.zero_grad()
        pathways(**batch)["loss"].backward()
        assert {name for name, p in trained.items() if p.grad is not None} <= {*getattr(layers, group)}
        own |= {name: p.grad for name, p in trained.items() if p.grad is not None}
    assert own.keys() == {*pathways.initial}


def test_a_parameter_in_two_places_stays_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.c = nn.Linear(3, 1)

    from deft_hf.methods.core.layers import branches

    usual, generalized = Tied(), Tied()
    views = branches(usual, generalized, Layers(("a.weight",), ("c.weight", "c.bias")))
    stable, unstable = views["stable"], views["unstable"]
    assert stable.a.weight is stable.b.weight is usual.a.weight and stable.c.weight is generalized.c.weight
    assert unstable.a.weight is unstable.b.weight is generalized.a.weight and unstable.c.bias is usual.c.bias


def test_the_layers_that_vary_most_are_unstable_and_slowest():
    variances = {"a": 3.0, "b": 0.5, "c": 2.0, "d": 9.0, "e": 1.0}
    layers = Layers.by_variance(variances, 0.5)
    assert layers == Layers(stable=("b", "e", "c"), unstable=("a", "d"))
    decays = layers.decays(100, None)
    assert decays == pytest.approx(
        {"b": 0.99, "e": 0.99 + 0.01 / 3, "c": 0.99 + 0.02 / 3, "a": 0.999, "d": 0.999 + 0.001 / 2}
    )
    assert layers.decays(1000, 80_000) == pytest.approx({name: decay**80 for name, decay in decays.items()})
    assert [len(Layers.by_variance(variances, ratio).unstable) for ratio in (0.01, 0.4, 0.7, 0.99)] == [1, 2, 3, 4]


def measured(folder, **settings):
    defaults = {"method": "ldt", "variance_steps": 4, "max_steps": 3, "decoder_warmup_steps": 2, "optim": "sgd"}
    return trainer(folder, **{**defaults, "learning_rate": 0.5, **settings})


@pytest.mark.parametrize("size, accumulation", [(4, 1), (2, 2)])
@pytest.mark.parametrize("branches", ["both", "single"])
def test_a_run_measures_divides_and_averages(tmp_path, branches, size, accumulation):
    run = measured(
        tmp_path,
        branches=branches,
        unstable_ratio=0.4,
        ema_decay_steps=30,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        weight_decay=0.1,
    )
    seen = Recorder().watch(run)
    run.train()
    last = "decoupled" if branches == "both" else "alternating"
    assert seen.stages == ["warmup"] * 2 + ["measure"] * 4 + [last] * 3
    assert history(run, "encoder_initial_share")[:6] == [1.0] * 6

    # Nothing moves while it measures.
    for component in (seen.usual, seen.generalized):
        assert all(differing(component[step], seen.usual[1]) == [] for step in range(2, 6))
    gradients = {name: torch.stack([step[name] for step in seen.gradients[2:6]]) for name in run.pathways.initial}
    variances = {name: float(gradient.double().var()) for name, gradient in gradients.items()}
    layers = run.composition.method.layers
    order = [*layers.stable, *layers.unstable]
    assert all(variances[a] <= variances[b] * 1.001 for a, b in zip(order, order[1:], strict=False))
    assert len(layers.unstable) == int(0.4 * len(variances)) and {*order} == {*variances}
    assert run.composition.facts() == {"unstable_layers": [*layers.unstable]}
    assert {run.family.part_of(name) for name in layers.unstable} == {"encoder", "decoder"}

    decays = layers.decays(3, 30)
    for name, decay in decays.items():
        expected = seen.usual[1][name].double()
        for step in seen.usual[6:]:
            expected = decay * expected + (1 - decay) * step[name].double()
        torch.testing.assert_close(seen.generalized[-1][name].double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    sizes = {name: value.numel() for name, value in seen.usual[0].items() if name in decays}
    for part in ("encoder", "decoder"):
        own = [name for name in decays if run.family.part_of(name) == part]
        share = sum(decays[name] ** 3 * sizes[name] for name in own) / sum(sizes[name] for name in own)
        assert run.pathways.share_left()[part] == pytest.approx(share, rel=1e-3)


def test_a_branch_that_rests_gets_no_gradient_and_no_decay(tmp_path):
    run = measured(tmp_path, branches="single", max_steps=4, optim="adamw_torch", weight_decay=0.5)
    seen = Recorder().watch(run)
    run.train()
    unstable = {*run.composition.facts()["unstable_layers"]}
    for step in range(6, 10):
        moved = {*differing(seen.usual[step], seen.usual[step - 1])}
        turn = unstable if step % 2 else {*run.pathways.initial} - unstable
        assert moved and moved <= turn
        assert {name for name, gradient in seen.gradients[step].items() if gradient is not None} == turn


@pytest.mark.parametrize("branches", ["both", "single"])
def test_accumulation_equals_one_large_batch(tmp_path, branches):
    found = {}
    for size, accumulation in ((4, 1), (2, 2)):
        run = measured(
            tmp_path / str(size),
            model=without_batchnorm(),
            train=Drawn(16),
            branches=branches,
            average="ema",
            ema_decay=0.5,
            ema_decay_steps=None,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        found[size] = parameters(run.generalized_model), run.composition.facts()["unstable_layers"]
    assert found[2][1] == found[4][1]
    for name, value in found[4][0].items():
        torch.testing.assert_close(found[2][0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_that_starts_anew_measures_anew(tmp_path):
    run = measured(tmp_path)
    run.train()
    first = run.composition.tensors()["ldt.sums"]
    run.train()
    assert int(run.composition.tensors()["ldt.count"]) == 4
    assert not torch.equal(run.composition.tensors()["ldt.sums"], first)  # of weights that were trained


def test_gradients_that_overflow_are_not_counted(tmp_path):
    method = measured(tmp_path).composition.method
    pathways = dual()
    pathways.enter("measure")
    pathways.snapshot()
    for value in (1.0, float("inf"), 2.0):
        for parameter in pathways.usual.parameters():
            parameter.grad = torch.full_like(parameter, value)
        method.before_step(pathways)
    assert int(method.tensors()["count"]) == 2 and method.tensors()["sums"].isfinite().all()


def test_a_step_costs_two_forwards_two_backwards_and_the_weights_once():
    def flops(stage, divided=False):
        pathways = dual("segformer", stage=stage)
        if divided:
            names = [*pathways.initial]
            pathways.divide(Layers(tuple(names[::2]), tuple(names[1::2])))
        return step_flops(pathways, tiny.batch())

    joint, deft, ldt = flops("joint"), flops("decoupled"), flops("decoupled", True)
    assert flops("measure") == joint
    assert deft < ldt < 5 / 3 * joint * 1.02
    assert 2 * flops("alternating", True) == ldt and 2 * flops("alternating") == deft


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"average": "none"}, "method ldt needs an average"),
        ({"unstable_ratio": 1.0}, "unstable_ratio is 1.0: expected a share between 0 and 1"),
        ({"variance_steps": 1}, "variance_steps is 1: expected 2 or more"),
        ({"branches": "split"}, "branches is 'split': expected one of both, single"),
        ({"pathways": "split"}, "pathways is 'split': a setting of method deft alone"),
        ({"mixout_probability": 0.5}, "mixout_probability goes with method joint or lp_ft"),
        ({"method": "deft", "average": "layer_ema"}, "layer_ema is of layers that method deft does not measure"),
        ({"method": "deft", "branches": "single"}, "branches is 'single': a setting of method ldt alone"),
    ],
)
def test_what_excludes_it(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **{"method": "ldt", **overrides})


def test_it_is_refused_in_one_message_where_gradients_are_out_of_sight():
    composition = compose(RunSettings(method="ldt"))
    assert composition.refusals(Launcher()) == []
    for launcher in (Launcher(hides_gradients=True), Launcher(shards_parameters=True), Launcher(True, True)):
        (reason,) = composition.refusals(launcher)
        assert reason.startswith("method ldt compares whole gradients") and "ddp.yaml" in reason


def test_one_tensor_is_too_few(tmp_path):
    model = tiny.build("segformer").requires_grad_(False)
    model.decode_head.classifier.bias.requires_grad_(True)
    with pytest.raises(UserError, match="method ldt: found 1 trained tensor, expected two groups of them"):
        measured(tmp_path, model=model).train()


def test_too_few_gradients_to_compare_are_an_error(tmp_path):
    run = measured(tmp_path)
    run.composition.method.before_step = lambda pathways: None  # as if each had overflowed
    with pytest.raises(UserError, match="ldt: found 0 batches with finite gradients, expected 2 or more: raise"):
        run.train()


def test_the_average_of_its_layers_is_that_of_the_parts_until_they_are_known():
    average = LayerEMA(0.5, 0.25, steps=10, quoted_steps=20)
    assert average.weight("decoder", 1) == 0.75 and average.share_left("encoder", 2) == 0.25
    assert average.decays == pytest.approx({"stable": 0.99**2, "unstable": 0.999**2})
