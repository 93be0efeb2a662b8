import copy

import pytest
import torch

from deft_hf.methods.averages import SWA, DebiasedEMA
from deft_hf.methods.core.batchnorm import mend_momentum
from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.halves import halves
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.l2_sp import L2SP, DistanceSettings
from deft_hf.models.families import resolve_family
from tests import tiny
from tests.models.test_families import DECAY, assert_equal_to, reference_steps


def penalties(distance=0.0, decoder_distance=None, decoder_norm=0.0):
    return L2SP(DistanceSettings(distance, decoder_distance, decoder_norm)).penalties


def dual(
    model_type="segformer",
    overrides=(),
    dtype=torch.float32,
    average=EMA(DECAY, DECAY),  # noqa: B008
    stage="decoupled",
    **kwargs,
):
    model = tiny.build(model_type, **dict(overrides)).to(dtype)
    mend_momentum(model)
    pathways = DualPathway(model, resolve_family(model), average, **kwargs).train()
    pathways.enter(stage)
    pathways.snapshot()
    return pathways


def every_other(batch, trained):
    """The half of a batch that trains a part, as long as there are two images for each."""
    start = ("encoder", "decoder").index(trained)
    return {name: value[start::2] for name, value in batch.items()} if len(batch["labels"]) > 3 else batch


@pytest.mark.parametrize("model_type", ["segformer", "mobilenet_v2"])
@pytest.mark.parametrize("stage, sizes", [("decoupled", [2] * 20), ("split", [4, 5, 7, 3, 1, 2])])
def test_steps_equal_the_equations_in_float64(model_type, stage, sizes):
    if model_type == "mobilenet_v2":
        sizes = [size for size in sizes if size > 1]  # for BatchNorm after its pooling
    overrides, rate = tiny.WITHOUT_DROPOUT[model_type], 0.05
    batches = [tiny.batch(size, seed=seed) for seed, size in enumerate(sizes)]
    batches = [{**batch, "pixel_values": batch["pixel_values"].double()} for batch in batches]
    model = tiny.build(model_type, **overrides).double().train()
    mend_momentum(model)
    shown = {"shown": every_other} if stage == "split" else {}
    usual, generalized = reference_steps(model, batches, rate, **shown)
    pathways = dual(model_type, overrides, dtype=torch.float64, stage=stage)
    optimizer = torch.optim.SGD([p for p in pathways.usual.parameters() if p.requires_grad], lr=rate)
    for batch in batches:
        optimizer.zero_grad()
        pathways(**batch)["loss"].backward()
        optimizer.step()
        pathways.update_generalized()
    assert_equal_to(pathways, usual, generalized, 1e-10)


def test_warmup_moves_the_decoder_alone_and_the_generalized_one_follows():
    pathways = dual()
    before = copy.deepcopy(pathways.usual.state_dict())
    pathways.enter("warmup")
    optimizer = torch.optim.SGD(pathways.usual.parameters(), lr=0.1)
    pathways(**tiny.batch())["loss"].backward()
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
    plain, pulled, batch = dual(), dual(penalties=penalties(0.3)), tiny.batch()
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
def test_l2_sp_pulls_the_encoder_to_its_start_and_the_decoders_weights_to_zero(passes):
    batch, penalised = tiny.batch(), dual(penalties=penalties(0.3, 0.0, 0.2))
    plain, pulled = gradients(dual(), batch), gradients(penalised, batch, passes=passes)
    assert {penalised.family.part_of(name) for name in pulled} == {"encoder", "decoder"}
    for name, parameter in penalised.usual.named_parameters():
        if penalised.family.part_of(name) == "encoder":
            pull = 0.3 * (parameter - penalised.initial[name])
        else:
            pull = 0.2 * parameter if parameter.ndim > 1 else torch.zeros_like(parameter)
        torch.testing.assert_close(pulled[name], plain[name] + pull / passes, rtol=1e-4, atol=1e-5, msg=name)


def test_the_warmup_knows_no_penalty():
    batch, plain = tiny.batch(), dual()
    penalised = dual(penalties=penalties(0.3, 0.3, 0.2))
    for pathways in (plain, penalised):
        pathways.enter("warmup")
    pulled = gradients(penalised, batch)
    for name, gradient in gradients(plain, batch).items():
        assert (gradient is None and pulled[name] is None) or torch.equal(gradient, pulled[name]), name


@pytest.mark.parametrize("average", [None, EMA()])
def test_the_usual_component_can_be_the_exported_one(average):
    pathways, images = dual(average=average, exported="usual").eval(), tiny.batch()["pixel_values"]
    with torch.no_grad():
        for parameter in pathways.usual.parameters():
            parameter.mul_(1.1)
    assert pathways.exported is pathways.usual
    assert torch.equal(pathways(images).logits, pathways.usual(images).logits)
    if average:
        assert not torch.equal(pathways(images).logits, pathways.generalized(images).logits)


@pytest.mark.parametrize(
    "settings",
    [{"average": DebiasedEMA(DECAY, DECAY)}, {"average": SWA()}, {"average": None}, {"exported": "usual"}],
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
    found, initial = pathways.trained("encoder"), pathways.start("encoder")
    assert [id(parameter) for parameter in found] == [id(pathways.usual.get_parameter(name)) for name in names]
    assert all(torch.equal(start, pathways.initial[name]) for start, name in zip(initial, names, strict=True))


def test_eval_mode_is_the_generalized_model_and_no_average_means_one_model():
    pathways, batch = dual().eval(), tiny.batch()
    with torch.no_grad():
        for parameter in pathways.usual.parameters():
            parameter.zero_()
    images = batch["pixel_values"]
    torch.testing.assert_close(pathways(images).logits, pathways.generalized(images).logits)
    single = DualPathway(tiny.build("segformer"), resolve_family(tiny.build("segformer")), average=None)
    assert single.generalized is single.usual and not single.averages
    assert len(list(single.parameters())) == len(list(single.usual.parameters()))


def test_joint_with_average_keeps_usable_batchnorm_statistics():
    pathways = dual("mobilenet_v2")
    pathways.enter("joint", EMA(DECAY, DECAY))
    pathways(**tiny.batch())["loss"].backward()
    pathways.update_generalized()
    usual = dict(pathways.usual.named_buffers())
    assert all(torch.equal(buffer, usual[name]) for name, buffer in pathways.generalized.named_buffers())


def test_values_that_are_not_by_image_go_both_ways():
    batch = {
        "labels": torch.zeros(5, 2, 2),
        "names": list("abcde"),
        "scale": torch.tensor(2.0),
        "flag": True,
        "x": "ab",
    }
    own, other = halves(batch)
    assert (own["names"], other["names"]) == (["a", "c", "e"], ["b", "d"])
    assert len(own["labels"]) == 3 and len(other["labels"]) == 2
    for name in ("scale", "flag", "x"):
        assert own[name] is other[name] is batch[name]


def test_masks_are_split_as_their_images_are():
    pathways = dual("mask2former", stage="split")
    batch = tiny.with_masks(tiny.batch(4))
    own, other = halves(batch)
    assert [len(own[name]) for name in batch] == [len(other[name]) for name in batch] == [2] * len(batch)
    assert all(mine is given for mine, given in zip(own["mask_labels"], batch["mask_labels"][::2], strict=True))
    items = pathways.count(batch, "split")
    assert torch.equal(items[0] + items[1], pathways.count(batch, "decoupled")) and len(items) == 2
    torch.manual_seed(0)
    losses = pathways(**batch)
    assert losses["loss"] == losses["encoder_loss"] + losses["decoder_loss"]
