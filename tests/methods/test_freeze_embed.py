"""Freeze-embed: what the layer is in each family, and that it alone stays where it was."""

import pytest
import torch
from torch import nn

from deft_hf.methods.freeze_embed import embedding
from deft_hf.models.families import SegmentationFamily, resolve_family
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.methods.test_rivals import Recorder, differing, parameters
from tests.trainer.test_trainer import arguments, trainer, without_batchnorm

LAYERS = {
    "beit": ["beit.embeddings.patch_embeddings.projection"],
    "data2vec_vision": ["data2vec_vision.embeddings.patch_embeddings.projection"],
    "deeplabv3plus": ["backbone.embedder.embedder.convolution", "backbone.embedder.embedder.normalization"],
    "dpt": ["dpt.embeddings.patch_embeddings.projection"],
    "eomt": ["embeddings.patch_embeddings.projection"],
    "mask2former": [
        "model.pixel_level_module.encoder.swin.embeddings.norm",
        "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection",
    ],
    "mobilenet_v2": [
        "mobilenet_v2.conv_stem.first_conv.convolution",
        "mobilenet_v2.conv_stem.first_conv.normalization",
    ],
    "segformer": ["segformer.stages.0.patch_embeddings.layer_norm", "segformer.stages.0.patch_embeddings.proj"],
    "sapiens2": ["model.embeddings.patch_embeddings"],
    "upernet": ["backbone.embeddings.layernorm", "backbone.embeddings.patch_embeddings"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_the_first_convolution_and_the_norm_after_it(name):
    model = getattr(tiny, name)()
    found = embedding(model, resolve_family(model))
    assert sorted({parameter.rpartition(".")[0] for parameter in found}) == LAYERS[name]
    assert found <= dict(model.named_parameters()).keys()


def test_a_norm_that_is_not_right_after_it_trains_on():
    blocks = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Dropout(), nn.BatchNorm2d(4))
    model = nn.ModuleDict({"encoder": blocks, "decoder": nn.Conv2d(4, 2, 1)})
    assert embedding(model, SegmentationFamily("encoder")) == {"encoder.0.weight", "encoder.0.bias"}


def test_an_encoder_that_takes_no_image_by_a_convolution_is_one_clear_message():
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(12, 4), nn.Conv2d(4, 4, 1)), "decoder": nn.Linear(4, 2)})
    with pytest.raises(UserError, match="found no convolution of three channels in encoder 'encoder': leave it out"):
        embedding(model, SegmentationFamily("encoder"))


@pytest.mark.parametrize("method", ["joint", "deft"])
def test_a_step_is_that_of_the_method_for_all_else(tmp_path, method):
    steps = {}
    for frozen in (False, True):
        run = trainer(
            tmp_path / str(frozen),
            model=without_batchnorm(),
            method=method,
            optim="sgd",
            max_steps=1,
            decoder_warmup_steps=0,
            max_grad_norm=0,
            freeze_embedding=frozen,
            ema_decay_steps=None,
            ema_decay=0.5,
        )
        start, seen = parameters(run.pathways.usual), Recorder().watch(run)
        run.train()
        steps[frozen] = seen.usual[0], seen.generalized[0]
    layer = embedding(run.pathways.usual, resolve_family(run.pathways.usual))
    for free, frozen in zip(steps[False], steps[True], strict=True):
        assert set(differing(frozen, free)) == layer
        assert not set(differing(frozen, start)) & layer
        assert all(not torch.equal(free[name], start[name]) for name in layer)


def test_it_goes_with_adapters_which_leave_the_layer_alone(tmp_path):
    pytest.importorskip("peft")
    model = tiny.mobilenet_v2()
    layer = embedding(model, resolve_family(model))
    run = trainer(tmp_path, model=model, method="joint", max_steps=1, freeze_embedding=True, lora_rank=2)
    before = {name: run.pathways.usual.get_parameter(name).clone() for name in layer}
    run.train()
    assert [name for name in before if not torch.equal(run.pathways.usual.get_parameter(name), before[name])] == []
    assert not any("first_conv" in name for name, _ in run.pathways.usual.named_parameters() if "lora_" in name)


def test_there_is_nothing_to_freeze_in_a_frozen_encoder(tmp_path):
    with pytest.raises(UserError, match="method frozen trains nothing of the encoder: leave freeze_embedding out"):
        arguments(tmp_path, method="frozen", freeze_embedding=True)


@pytest.mark.parametrize(
    "there, message",
    [(False, "3 tensors that it trained are frozen here, mobilenet_v2"), (True, "initialisation are missing, mobile")],
)
def test_a_checkpoint_that_trained_other_layers_is_refused(tmp_path, there, message):
    def run(freeze, **settings):
        folder, own = tmp_path / str(freeze), {"method": "joint", "freeze_embedding": freeze}
        return trainer(folder, tiny.mobilenet_v2(), max_steps=2, **own, **settings)

    run(there, save_strategy="steps", save_steps=1).train()
    with pytest.raises(UserError, match=message):
        run(not there).train(resume_from_checkpoint=str(tmp_path / str(there) / "checkpoint-1"))
