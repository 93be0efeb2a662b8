"""Every family of the table goes through the same checks; tests/models.py has a tiny model of each."""

import copy

import pytest
import torch
from torch import nn
from transformers import CLIPSegConfig, VideomtConfig

from deft_hf.methods.core.batchnorm import mend_momentum
from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import (
    FAMILIES,
    SegmentationFamily,
    resolve_family,
    untouched_parameters,
)
from deft_hf.models.opening import auto_class
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, trainer

DECAY = 0.9


def test_every_family_of_the_table_has_a_tiny_model():
    assert sorted(FAMILIES) == sorted(tiny.BUILDERS)


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
class TestFamily:
    """What holds for every family."""

    def model(self, model_type):
        return tiny.build(model_type).train()

    def pathways(self, model_type):
        model = self.model(model_type)
        mend_momentum(model)
        pathways = DualPathway(model, resolve_family(model)).train()
        pathways.enter("decoupled", EMA(DECAY, DECAY))
        pathways.snapshot()
        return pathways

    def batch(self, seed=0):
        return tiny.with_masks(tiny.batch(seed=seed))

    def test_each_parameter_is_in_exactly_one_part(self, model_type):
        model = self.model(model_type)
        family = resolve_family(model)
        encoder = {id(p) for path in family.encoders for p in model.get_submodule(path).parameters()}
        everything = {id(p) for p in model.parameters()}
        by_name = {
            part: {id(p) for n, p in model.named_parameters() if family.part_of(n) == part}
            for part in ("encoder", "decoder")
        }
        assert by_name["encoder"] == encoder
        assert by_name["decoder"] == everything - encoder
        assert by_name["encoder"] and by_name["decoder"]

    def test_the_table_lists_exactly_what_gets_no_gradient(self, model_type):
        model = self.model(model_type)
        family = resolve_family(model)
        listed = {name for name, _ in model.named_parameters() if not family.is_trained(name)}
        # An auxiliary head that is switched off in the config is listed and not there: nothing to compare.
        assert set(untouched_parameters(model, family, self.batch())) == listed

    def test_gradients_reach_exactly_the_right_part(self, model_type):
        pathways = self.pathways(model_type)
        family = pathways.family
        # Move the copies apart, so that a pathway through the wrong component shows in the loss.
        with torch.no_grad():
            for parameter in pathways.generalized.parameters():
                parameter.mul_(1.05)
        for stage, parts in (("warmup", {"decoder"}), ("decoupled", {"encoder", "decoder"})):
            pathways.enter(stage)
            pathways.zero_grad()
            pathways(**self.batch())["loss"].backward()
            moved = {n for n, p in pathways.usual.named_parameters() if p.grad is not None}
            expected = {
                n for n, _ in pathways.usual.named_parameters() if family.part_of(n) in parts and family.is_trained(n)
            }
            assert moved == expected
            assert all(p.grad is None for p in pathways.generalized.parameters())

    def test_equal_components_give_the_familys_own_loss(self, model_type):
        pathways, batch = self.pathways(model_type).eval(), self.batch()
        family, objective = pathways.family, pathways.family.objective
        view = pathways.pathway(encoder=pathways.usual, decoder=pathways.generalized)
        with torch.no_grad():
            torch.manual_seed(0)
            own = tiny.own_loss(pathways.usual, batch)
            torch.manual_seed(0)
            found = objective.loss(view, batch, objective.count(view, batch))
            outputs = pathways.usual(pixel_values=batch["pixel_values"], **tiny.extra_inputs(pathways.usual))
            seen = objective.forward(view, batch["pixel_values"])
        torch.testing.assert_close(found, own, rtol=1e-6, atol=0)
        for name in objective.outputs:
            # Not bit for bit: copies lie at other addresses, where the CPU's kernels round differently.
            torch.testing.assert_close(seen[name], outputs[name], rtol=1e-5, atol=1e-6)
        # Views leave the models they were taken from alone.
        assert pathways.generalized.get_submodule(family.encoder) is not pathways.usual.get_submodule(family.encoder)
        assert type(view) is type(pathways.usual)

    def test_twenty_steps_equal_the_equations(self, model_type):
        rate = tiny.RATES.get(model_type, 0.02)
        batches = [self.batch(seed) for seed in range(20)]
        model = self.model(model_type)
        mend_momentum(model)
        usual, generalized = reference_steps(model, batches, rate)
        pathways = self.pathways(model_type)
        optimizer = torch.optim.SGD([p for p in pathways.usual.parameters() if p.requires_grad], lr=rate)
        for step, batch in enumerate(batches):
            torch.manual_seed(step)
            optimizer.zero_grad()
            pathways(**batch)["loss"].backward()
            optimizer.step()
            pathways.update_generalized()
        assert_equal_to(pathways, usual, generalized, 1e-4)
        assert sum((usual[n] - generalized[n]).abs().sum() for n in usual) > 1e-3

    def test_export_reloads_with_equal_logits(self, model_type, tmp_path):
        model = self.model(model_type).eval()
        model.save_pretrained(tmp_path)
        restored, keys = auto_class(model.config).from_pretrained(tmp_path, output_loading_info=True)
        assert type(restored) is type(model) and not any(keys.values())
        images = tiny.batch()["pixel_values"]
        with torch.no_grad():
            # Copies lie at aligned addresses; tensors of a file do not, and kernels round differently there.
            logits = [resolve_family(m).semantic_logits(m, images) for m in (model, copy.deepcopy(restored).eval())]
        assert torch.equal(*logits)
        assert logits[0].shape[:2] == (2, tiny.NUM_LABELS)

    def test_resumed_is_bit_equal_to_unbroken(self, model_type, tmp_path):
        settings = {"max_steps": 2, "decoder_warmup_steps": 2, "train": Drawn(5), "optim": "sgd", "evaluate": Drawn(2)}
        unbroken = trainer(tmp_path, self.model(model_type), save_strategy="steps", save_steps=3, **settings)
        unbroken.train()
        resumed = trainer(tmp_path, self.model(model_type), **settings)
        torch.manual_seed(99)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        expected, found = unbroken.pathways.state_dict(), resumed.pathways.state_dict()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def reference_steps(model, batches, rate, shown=lambda batch, trained: batch):
    """DeFT's second stage written straight from its equations: two pathways, two losses, plain SGD, one average;
    `shown` is what of a batch passes through the pathway that trains a part."""
    part = resolve_family(model).part_of
    encoder_path = model  # E_uc -> D_gc
    decoder_path = copy.deepcopy(model)  # E_gc -> D_uc
    paths = ((decoder_path, "decoder"), (encoder_path, "encoder"))
    for path, trained in paths:
        for name, parameter in path.named_parameters():
            parameter.requires_grad_(part(name) == trained)
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        for path, trained in paths:
            path.zero_grad()
            tiny.own_loss(path, shown(batch, trained)).backward()
        with torch.no_grad():
            for path, _ in paths:
                for parameter in path.parameters():
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-rate)
            ours, theirs = dict(encoder_path.named_parameters()), dict(decoder_path.named_parameters())
            for name in ours:
                usual, average = (ours, theirs) if part(name) == "encoder" else (theirs, ours)
                average[name].lerp_(usual[name], 1 - DECAY)
    usual = {n: (ours if part(n) == "encoder" else theirs)[n].detach() for n in ours}
    generalized = {n: (theirs if part(n) == "encoder" else ours)[n].detach() for n in ours}
    return usual, generalized


def assert_equal_to(pathways, usual, generalized, tolerance):
    """Both components, per tensor, relative to its size."""
    for expected, component in ((usual, pathways.usual), (generalized, pathways.generalized)):
        for name, value in component.named_parameters():
            error = (value.detach() - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
            assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("kind", ["resnet", "convnext", "dinov2"])
@pytest.mark.parametrize("model_type", tiny.PIXEL_DECODERS)
def test_the_table_fits_other_backbones(model_type, kind):
    model = tiny.build(model_type, kind=kind).train()
    family = resolve_family(model)
    listed = {name for name, _ in model.named_parameters() if not family.is_trained(name)}
    assert set(untouched_parameters(model, family, tiny.with_masks(tiny.batch()))) == listed


def test_a_model_of_videos_is_refused_with_the_reason():
    model = nn.Module()
    model.config = VideomtConfig()
    for refused in (lambda: resolve_family(model, encoder="layers"), lambda: auto_class(model.config)):
        with pytest.raises(UserError, match="'videomt' is not supported: it takes videos"):
            refused()


def test_a_model_with_a_text_branch_is_refused():
    model = tiny.build("oneformer", is_training=True, text_encoder_width=64, text_encoder_num_layers=1)
    with pytest.raises(UserError, match="load it with `is_training=False`"):
        resolve_family(model)


def test_unknown_type_lists_children_and_the_way_out():
    model = nn.Module()
    model.config = CLIPSegConfig()
    model.vision, model.decoder = nn.Linear(2, 3), nn.Linear(3, 1)
    with pytest.raises(UserError, match=r"'clipseg' is unknown.*encoder=.*vision \(9 parameters\)"):
        resolve_family(model)
    assert resolve_family(model, encoder="vision") == SegmentationFamily("vision")


@pytest.mark.parametrize(
    "encoder, message",
    [("nowhere", "is not in the model"), ("", "shares|holds"), ("segformer.stages_typo", "is not in")],
)
def test_an_encoder_that_is_none(encoder, message):
    with pytest.raises(UserError, match=message):
        resolve_family(tiny.build("segformer"), encoder=encoder)


def test_tied_parameters_are_refused():
    model = nn.Module()
    model.encoder, model.head = nn.Linear(2, 2), nn.Linear(2, 2)
    model.head.weight = model.encoder.weight
    with pytest.raises(UserError, match="shares 'head.weight'"):
        resolve_family(model, encoder="encoder")


def test_a_batch_without_valid_pixels_costs_nothing():
    model, batch = tiny.build("segformer"), tiny.batch()
    batch["labels"].fill_(255)
    objective = resolve_family(model).objective
    loss = objective.loss(model, batch, objective.count(model, batch))
    loss.backward()
    assert loss.item() == 0 and objective.count(model, batch).item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
