"""Models of peft that the caller made: trained as they are, merged into what is saved."""

import json
import re

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSemanticSegmentation
from transformers.integrations.peft import MIN_PEFT_VERSION

from deft_hf import DeFTTrainer
from deft_hf.methods.base import Launcher
from deft_hf.models.families import SegmentationFamily
from deft_hf.trainer.adapters import GivenAdapters, compose_for, unwrapped
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments

peft = pytest.importorskip("peft")

TARGETS = ["query", "value", "q_proj", "v_proj"]


def config(cls=None, **changes):
    values = {"target_modules": TARGETS, "modules_to_save": ["decode_head"], "lora_alpha": 12}
    return (cls or peft.LoraConfig)(**{**values, **({} if cls else {"r": 3}), **changes})


def adapted(name="default", **changes):
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny.build("segformer"), config(**changes), adapter_name=name)
    torch.manual_seed(2)  # B is zero at the start, which would hide a lost adapter
    for each, parameter in model.named_parameters():
        if ".lora_B." in each:
            nn.init.normal_(parameter, std=0.05)
    return model


def trainer(folder, model, **changes):
    args = arguments(folder, **{"method": "joint", "average": "none", "max_steps": 4, **changes})
    return DeFTTrainer(model, args, train_dataset=Drawn(8), eval_dataset={"near": Drawn(3, seed=1)})


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=tiny.batch(seed=7)["pixel_values"]).logits


@pytest.mark.parametrize("method, name", [("joint", "default"), ("lp_ft", "other")])
def test_adapters_and_modules_to_save_are_trained_and_merged(tmp_path, method, name):
    given = adapted(name)
    start, expected = dict(tiny.build("segformer").named_parameters()), logits(given)
    run = trainer(tmp_path, given, method=method, decoder_warmup_steps=2, save_strategy="steps", save_steps=4)
    torch.testing.assert_close(logits(run.generalized_model), expected, rtol=1e-4, atol=1e-5)
    before = {name: p.detach().clone() for name, p in run.pathways.usual.named_parameters()}
    run.train()
    after = dict(run.pathways.usual.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    head = {name for name in start if name.startswith("decode_head.")}
    assert moved == head | {each for each in after if ".lora_" in each}
    assert any(f".lora_B.{name}." in each for each in moved)

    plain = run.generalized_model
    assert type(plain) is type(tiny.build("segformer")) and plain.state_dict().keys() == tiny_keys()
    torch.testing.assert_close(logits(plain), logits(run.pathways.usual), rtol=1e-4, atol=1e-5)
    run.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / f"checkpoint-{run.state.global_step}"):
        reloaded = AutoModelForSemanticSegmentation.from_pretrained(folder)
        assert torch.equal(logits(reloaded), logits(plain))
        assert not list(folder.glob("adapter_*"))


def tiny_keys():
    return tiny.build("segformer").state_dict().keys()


def test_resumed_equals_unbroken_bit_for_bit(tmp_path):
    settings = {"method": "lp_ft", "decoder_warmup_steps": 2, "save_strategy": "steps", "save_steps": 3}
    settings["load_best_model_at_end"] = False
    unbroken = trainer(tmp_path / "a", adapted(lora_dropout=0.2), **settings)
    unbroken.train()
    resumed = trainer(tmp_path / "b", adapted(lora_dropout=0.2), **settings)
    for parameter in resumed.pathways.usual.parameters():  # all of it comes from the checkpoint
        nn.init.zeros_(parameter)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    expected, found = unbroken.pathways.state_dict(), resumed.pathways.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert expected.keys() == found.keys()
    assert any("lora_A" in name for name in load_file(tmp_path / "a" / "checkpoint-3" / "usual.safetensors"))
    kept = json.loads((tmp_path / "a" / "checkpoint-3" / "deft_state.json").read_text())["adapters"]
    assert re.fullmatch(r"4 x q\w+ r=3 alpha=12 scale=4; 4 x v\w+ r=3 alpha=12 scale=4, and decode_head whole", kept)
    rank_8 = {"r": 8, "lora_alpha": 32}  # of the same scale
    others = (
        {"lora_alpha": 6},
        {"use_rslora": True},
        rank_8,
        {"target_modules": TARGETS[::2]},
        {"modules_to_save": None},
    )
    for changes in others:
        other = trainer(tmp_path / "c", adapted(**changes), **{**settings, "method": "joint"})
        with pytest.raises(UserError, match=r"made with the adapters \(4 x q.*this run has \(.*") as error:
            other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"), resume_anyway=True)
        assert "pass a PeftModel of the same LoraConfig" in str(error.value) and "\n" not in str(error.value)
    other = trainer(tmp_path / "d", tiny.build("segformer"), **settings)
    with pytest.raises(UserError, match=r"made with the adapters .* this run has \(none\)"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))


@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION), reason=f"add_adapter asks for peft>={MIN_PEFT_VERSION}"
)
def test_adapters_that_transformers_put_in(tmp_path):
    model = tiny.build("segformer")
    model.add_adapter(config(modules_to_save=None))
    run = trainer(tmp_path, model, max_steps=1)
    run.train()
    run.save_model(str(tmp_path / "final"))
    reloaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "final")
    assert torch.equal(logits(reloaded), logits(run.generalized_model))
    assert reloaded.state_dict().keys() == tiny_keys()


def test_dilated_convolutions_are_merged_as_they_are_trained():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="reflect")
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.encoder(images).movedim(1, -1)).movedim(-1, 1)

    torch.manual_seed(0)
    given = peft.get_peft_model(Plain(), peft.LoraConfig(r=2, target_modules=["encoder", "head"]))
    for each, parameter in given.named_parameters():
        if ".lora_B." in each:
            nn.init.normal_(parameter)
    model, images = unwrapped(given), torch.randn(1, 3, 9, 9)
    plain = GivenAdapters(arguments("out")).plain(model, SegmentationFamily("encoder"))
    torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-5)


def test_what_does_not_go_with_adapters(tmp_path):
    with pytest.raises(UserError, match="a model of peft goes with method joint or lp_ft and average: none"):
        trainer(tmp_path, adapted(), method="deft", average=None)
    with pytest.raises(UserError, match="a model of peft keeps the encoder's weights"):
        trainer(tmp_path, adapted(), distance_weight=0.1)
    with pytest.raises(UserError, match="found a model of peft and lora_rank"):
        trainer(tmp_path, adapted(), lora_rank=2)
    composition = compose_for(arguments(tmp_path, method="joint", average="none"), unwrapped(adapted()))
    assert not composition.refusals(Launcher())
    assert any("a model of peft needs whole" in reason for reason in composition.refusals(Launcher(True)))


def test_adapters_that_cannot_be_merged(tmp_path):
    merged = adapted()
    merged.merge_adapter()
    ia3 = peft.get_peft_model(tiny.build("segformer"), peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]))
    for model, found in (
        (ia3, "ia3.layer.Linear"),
        (merged, "lora.layer.Linear"),
        (nn.DataParallel(adapted()), "Model"),
    ):
        with pytest.raises(UserError, match=rf"cannot be trained here and merged \(.*{found}\).*merge_and_unload"):
            trainer(tmp_path, model)


def test_what_is_frozen_is_said(tmp_path, caplog):
    trainer(tmp_path, adapted(modules_to_save=None))
    assert "modules_to_save=['decode_head']" in caplog.text
    with pytest.raises(UserError, match="The decoder warm-up has nothing to train"):
        trainer(tmp_path, adapted(modules_to_save=None), method="lp_ft")
    with pytest.raises(UserError, match="is_trainable=True"):
        trainer(tmp_path, adapted().requires_grad_(False))
