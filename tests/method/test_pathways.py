import copy

import pytest
import torch
from torch.nn import functional as F

from deft_hf.method.batchnorm import mend_momentum
from deft_hf.method.families import resolve_family
from deft_hf.method.pathways import DualPathway
from tests import models

DECAY = 0.9


def dual(model_type="segformer", overrides=(), dtype=torch.float32, **kwargs):
    model = models.build(model_type, **dict(overrides)).to(dtype)
    mend_momentum(model)
    pathways = DualPathway(model, resolve_family(model), **kwargs).train()
    pathways.enter("decoupled", DECAY, DECAY)
    pathways.snapshot()
    return pathways


@pytest.mark.parametrize("model_type", sorted(models.BUILDERS))
def test_gradients_reach_exactly_the_right_part(model_type):
    pathways, batch = dual(model_type), models.batch()
    family = pathways.family
    # Move the copies apart, so that a pathway through the wrong component shows in the loss.
    with torch.no_grad():
        for parameter in pathways.generalized.parameters():
            parameter.mul_(1.05)
    for stage, parts in (("warmup", {"decoder"}), ("decoupled", {"encoder", "decoder"})):
        pathways.enter(stage)
        pathways.zero_grad()
        pathways(**batch)["loss"].backward()
        moved = {n for n, p in pathways.usual.named_parameters() if p.grad is not None}
        expected = {
            n for n, _ in pathways.usual.named_parameters() if family.part_of(n) in parts and family.is_trained(n)
        }
        assert moved == expected
        assert all(p.grad is None for p in pathways.generalized.parameters())


@pytest.mark.parametrize("model_type", sorted(models.BUILDERS))
def test_equal_components_give_the_familys_own_loss(model_type):
    pathways, batch = dual(model_type).eval(), models.batch()
    family, own = pathways.family, pathways.usual(pixel_values=batch["pixel_values"]).logits
    view = pathways.pathway(encoder=pathways.usual, decoder=pathways.generalized)
    torch.testing.assert_close(view(pixel_values=batch["pixel_values"]).logits, own, rtol=0, atol=0)
    # Views leave the models they were taken from alone.
    assert pathways.generalized.get_submodule(family.encoder) is not pathways.usual.get_submodule(family.encoder)
    assert type(view) is type(pathways.usual)


def reference_steps(model, batches, rate, decay):
    """DeFT's second stage written straight from its equations: two pathways, two losses, plain SGD, one average."""
    part = resolve_family(model).part_of
    encoder_path = model.train()  # E_uc -> D_gc
    decoder_path = copy.deepcopy(model)  # E_gc -> D_uc
    for path, trained in ((encoder_path, "encoder"), (decoder_path, "decoder")):
        for name, parameter in path.named_parameters():
            parameter.requires_grad_(part(name) == trained)
    for batch in batches:
        for path in (encoder_path, decoder_path):
            path.zero_grad()
            logits = F.interpolate(
                path(batch["pixel_values"]).logits, size=batch["labels"].shape[-2:], mode="bilinear"
            )
            F.cross_entropy(logits, batch["labels"], ignore_index=255).backward()
        with torch.no_grad():
            for path in (encoder_path, decoder_path):
                for parameter in path.parameters():
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-rate)
            ours, theirs = dict(encoder_path.named_parameters()), dict(decoder_path.named_parameters())
            for name in ours:
                usual, average = (ours, theirs) if part(name) == "encoder" else (theirs, ours)
                average[name].lerp_(usual[name], 1 - decay)
    usual = {n: (ours if part(n) == "encoder" else theirs)[n].detach() for n in ours}
    generalized = {n: (theirs if part(n) == "encoder" else ours)[n].detach() for n in ours}
    return usual, generalized


def relative_errors(model, expected):
    return {
        name: float((parameter.detach() - expected[name]).norm() / expected[name].norm().clamp(min=1e-6))
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model_type", ["segformer", "mobilenet_v2"])
def test_twenty_steps_equal_the_equations(model_type, dtype):
    overrides, rate = models.WITHOUT_DROPOUT[model_type], 0.05
    batches = [models.batch(seed=seed) for seed in range(20)]
    batches = [{**batch, "pixel_values": batch["pixel_values"].to(dtype)} for batch in batches]
    model = models.build(model_type, **overrides).to(dtype)
    mend_momentum(model)
    usual, generalized = reference_steps(model, batches, rate, DECAY)
    pathways = dual(model_type, overrides, dtype=dtype)
    optimizer = torch.optim.SGD([p for p in pathways.usual.parameters() if p.requires_grad], lr=rate)
    for batch in batches:
        optimizer.zero_grad()
        pathways(**batch)["loss"].backward()
        optimizer.step()
        pathways.update_generalized()
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    for expected, component in ((usual, pathways.usual), (generalized, pathways.generalized)):
        errors = relative_errors(component, expected)
        worst = max(errors, key=errors.get)
        assert errors[worst] < bound, (worst, errors[worst])
    assert sum((usual[n] - generalized[n]).abs().sum() for n in usual) > 1e-3


def test_warmup_moves_the_decoder_alone_and_the_generalized_one_follows():
    pathways = dual()
    before = copy.deepcopy(pathways.usual.state_dict())
    pathways.enter("warmup")
    optimizer = torch.optim.SGD(pathways.usual.parameters(), lr=0.1)
    pathways(**models.batch())["loss"].backward()
    optimizer.step()
    pathways.update_generalized()
    for name, value in pathways.usual.named_parameters():
        assert torch.equal(value, before[name]) == (pathways.family.part_of(name) == "encoder"), name
        assert torch.equal(value, dict(pathways.generalized.named_parameters())[name])
    assert pathways.share_left() == {"encoder": 1.0, "decoder": 0.0}


def test_share_and_distances():
    pathways = dual()
    assert pathways.share_left() == {"encoder": 1.0, "decoder": 1.0}
    with torch.no_grad():
        for parameter in pathways.usual.get_submodule("decode_head").parameters():
            parameter += 1
    numel = sum(p.numel() for p in pathways.usual.decode_head.parameters())
    pathways.update_generalized()
    assert pathways.share_left() == {"encoder": DECAY, "decoder": DECAY}
    usual, generalized = pathways.distances(pathways.usual), pathways.distances(pathways.generalized)
    assert usual["encoder"] == generalized["encoder"] == 0
    assert usual["decoder"] == pytest.approx(numel**0.5, rel=1e-5)
    assert generalized["decoder"] == pytest.approx((1 - DECAY) * numel**0.5, rel=1e-4)


def test_distance_regulariser_pulls_the_usual_component_back():
    plain, pulled, batch = dual(), dual(distance_weights=(0.3, 0.3)), models.batch()
    for pathways in (plain, pulled):
        with torch.no_grad():
            for parameter in pathways.usual.parameters():
                parameter += 0.01
        torch.manual_seed(0)
        pathways(**batch)["loss"].backward()
    gradients = dict(plain.usual.named_parameters())
    for name, parameter in pulled.usual.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad + 0.3 * 0.01, rtol=1e-4, atol=1e-5)


def gradients(pathways, batch, **kwargs):
    """What one backward pass leaves, with all weights moved off the initialisation beforehand."""
    with torch.no_grad():
        for parameter in pathways.usual.parameters():
            parameter.mul_(1.1).add_(0.01)
    torch.manual_seed(0)
    pathways(**batch, **kwargs)["loss"].backward()
    return {n: p.grad for n, p in pathways.usual.named_parameters()}


@pytest.mark.parametrize("passes", [1, 4])
def test_l2_sp_pulls_the_encoder_to_its_start_and_the_decoder_to_zero(passes):
    batch, penalised = models.batch(), dual(distance_weights=(0.3, 0.0), decoder_norm_weight=0.2)
    plain, pulled = gradients(dual(), batch), gradients(penalised, batch, passes=passes)
    assert {penalised.family.part_of(name) for name in pulled} == {"encoder", "decoder"}
    for name, parameter in penalised.usual.named_parameters():
        if penalised.family.part_of(name) == "encoder":
            pull = 0.3 * (parameter - penalised.initial[name])
        else:
            pull = 0.2 * parameter
        torch.testing.assert_close(pulled[name], plain[name] + pull / passes, rtol=1e-4, atol=1e-5, msg=name)


def test_the_warmup_knows_no_penalty():
    batch, plain = models.batch(), dual()
    penalised = dual(distance_weights=(0.3, 0.3), decoder_norm_weight=0.2)
    for pathways in (plain, penalised):
        pathways.enter("warmup")
    pulled = gradients(penalised, batch)
    for name, gradient in gradients(plain, batch).items():
        assert (gradient is None and pulled[name] is None) or torch.equal(gradient, pulled[name]), name


@pytest.mark.parametrize("average", [None, "ema"])
def test_the_usual_component_can_be_the_exported_one(average):
    pathways, images = dual(average=average, exported="usual").eval(), models.batch()["pixel_values"]
    with torch.no_grad():
        for parameter in pathways.usual.parameters():
            parameter.mul_(1.1)
    assert pathways.exported is pathways.usual
    assert torch.equal(pathways(images).logits, pathways.usual(images).logits)
    if average:
        assert not torch.equal(pathways(images).logits, pathways.generalized(images).logits)


@pytest.mark.parametrize(
    "settings",
    [{"average": "debiased_ema"}, {"average": "swa"}, {"average": None}, {"exported": "usual"}],
    ids=["debiased_ema", "swa", "none", "usual"],
)
def test_only_the_plain_average_keeps_a_share_of_the_initialisation(settings):
    pathways = dual(**settings)
    assert pathways.share_left() == {"encoder": 1.0, "decoder": 1.0}
    pathways.update_generalized()
    assert pathways.share_left() == {"encoder": 0.0, "decoder": 0.0}


def test_the_encoder_is_handed_out_beside_its_own_initialisation():
    pathways = dual("mobilenet_v2")
    names = [name for name in pathways.initial if pathways.family.part_of(name) == "encoder"]
    assert len(names) > 50
    found, initial = pathways.encoder_and_initial()
    assert [id(parameter) for parameter in found] == [id(pathways.usual.get_parameter(name)) for name in names]
    assert all(torch.equal(start, pathways.initial[name]) for start, name in zip(initial, names, strict=True))


def test_eval_mode_is_the_generalized_model_and_no_average_means_one_model():
    pathways, batch = dual().eval(), models.batch()
    with torch.no_grad():
        for parameter in pathways.usual.parameters():
            parameter.zero_()
    images = batch["pixel_values"]
    torch.testing.assert_close(pathways(images).logits, pathways.generalized(images).logits)
    single = DualPathway(models.build("segformer"), resolve_family(models.build("segformer")), average=None)
    assert single.generalized is single.usual and not single.averages
    assert len(list(single.parameters())) == len(list(single.usual.parameters()))


def test_joint_with_average_keeps_usable_batchnorm_statistics():
    pathways = dual("mobilenet_v2")
    pathways.enter("joint", DECAY, DECAY)
    pathways(**models.batch())["loss"].backward()
    pathways.update_generalized()
    usual = dict(pathways.usual.named_buffers())
    assert all(torch.equal(buffer, usual[name]) for name, buffer in pathways.generalized.named_buffers())
