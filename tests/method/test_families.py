import pytest
import torch
from torch import nn
from transformers import CLIPSegConfig

from deft_hf.errors import UserError
from deft_hf.method.families import FAMILIES, SegmentationFamily, resolve_family, untouched_parameters
from tests import models


@pytest.fixture(params=sorted(models.BUILDERS))
def model(request):
    return models.build(request.param)


def test_every_family_of_the_table_has_a_tiny_model():
    assert sorted(FAMILIES) == sorted(models.BUILDERS)


def test_each_parameter_is_in_exactly_one_part(model):
    family = resolve_family(model)
    encoder = {id(p) for p in model.get_submodule(family.encoder).parameters()}
    everything = {id(p) for p in model.parameters()}
    by_name = {
        part: {id(p) for n, p in model.named_parameters() if family.part_of(n) == part}
        for part in ("encoder", "decoder")
    }
    assert by_name["encoder"] == encoder
    assert by_name["decoder"] == everything - encoder
    assert by_name["encoder"] and by_name["decoder"]


def test_the_table_lists_exactly_what_gets_no_gradient(model):
    family = resolve_family(model)
    model.train()
    listed = {name for name, _ in model.named_parameters() if not family.is_trained(name)}
    # An auxiliary head that is switched off in the config is listed and not there: nothing to compare.
    assert set(untouched_parameters(model, family, models.batch())) == listed


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
        resolve_family(models.build("segformer"), encoder=encoder)


def test_tied_parameters_are_refused():
    model = nn.Module()
    model.encoder, model.head = nn.Linear(2, 2), nn.Linear(2, 2)
    model.head.weight = model.encoder.weight
    with pytest.raises(UserError, match="shares 'head.weight'"):
        resolve_family(model, encoder="encoder")


def test_loss_is_the_models_own_times_the_valid_pixels():
    model, batch = models.build("segformer").eval(), models.batch()
    family = resolve_family(model)
    own = model(**batch).loss
    torch.testing.assert_close(family.objective.loss(model, batch) / family.objective.count(batch), own)


def test_a_batch_without_valid_pixels_costs_nothing():
    model, batch = models.build("segformer"), models.batch()
    batch["labels"].fill_(255)
    objective = resolve_family(model).objective
    loss = objective.loss(model, batch)
    loss.backward()
    assert loss.item() == 0 and objective.count(batch).item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
