"""Plain PyTorch models: trained, scored, saved and gone on with as Hub models are."""

import json

import pytest
import torch
from safetensors.torch import load_model
from torch import nn
from torch.nn import functional as F

from deft_hf.data.domains import Domain
from deft_hf.data.sampling import EvaluationSet
from deft_hf.data.streets import STREETS
from deft_hf.data.transforms import EvalTransform
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments, everything


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x):
        stem = self.stem(x)
        return [stem, self.body(stem)]


class Net(nn.Module):
    """Shaped as those of segmentation_models_pytorch, with logits at the images' size."""

    config = {"encoder_name": "tiny"}  # theirs is a mapping too, no `transformers` config

    def __init__(self, classes=tiny.NUM_LABELS, auxiliary=False):
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Conv2d(24, 8, 3, padding=1)
        self.segmentation_head = nn.Conv2d(8, classes, 1)
        self.auxiliary = auxiliary

    def forward(self, x):
        stem, body = self.encoder(x)
        both = torch.cat([stem, F.interpolate(body, size=stem.shape[-2:])], 1)
        masks = F.interpolate(self.segmentation_head(self.decoder(both).relu()), size=x.shape[-2:], mode="bilinear")
        return (masks, masks.mean((2, 3))) if self.auxiliary else masks


def trainer(folder, model=None, **overrides):
    torch.manual_seed(0)
    return DeFTTrainer(
        Net() if model is None else model,
        arguments(folder, **overrides),
        train_dataset=Drawn(8),
        eval_dataset={"near": Drawn(3, seed=1)},
        encoder="encoder",
    )


def test_a_plain_model_trains_and_its_folder_says_what_it_is(tmp_path):
    run = trainer(tmp_path / "run")
    assert run.train().global_step == 10
    assert 0 <= run.evaluate()["eval_near_mean_iou"] <= 1
    assert run.class_names == [f"LABEL_{index}" for index in range(tiny.NUM_LABELS)]
    run.save_model(str(tmp_path / "final"))
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert {"model.safetensors", "config.json", "README.md"} <= names
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["class"].endswith("test_plain.Net") and config["encoder"] == "encoder"
    assert config["num_labels"] == tiny.NUM_LABELS and "model_type" not in config
    assert "no `transformers` model" in (tmp_path / "final" / "README.md").read_text()
    again = Net()
    load_model(again, tmp_path / "final" / "model.safetensors")
    images = tiny.batch()["pixel_values"]
    assert type(run.generalized_model) is Net
    assert torch.equal(again.eval()(images), run.generalized_model.eval()(images))
    assert not torch.equal(again(images), run.pathways.usual.eval()(images))


@pytest.mark.parametrize("stop", [3, 7])
def test_a_plain_model_resumes_bit_for_bit(tmp_path, stop):
    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=stop, dataloader_num_workers=0)
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    found, expected = everything(again), everything(whole)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    load_model(Net(), tmp_path / "whole" / f"checkpoint-{stop}" / "model.safetensors")


def test_classes_have_the_names_of_the_label_space(tmp_path):
    domain = Domain.from_streets("clear", count=2, size=(48, 64))
    prepared = EvaluationSet(domain, EvalTransform(size=None))
    run = DeFTTrainer(Net(STREETS.num_labels), arguments(tmp_path), eval_dataset=prepared, encoder="encoder")
    assert run.class_names == list(STREETS.names)
    with pytest.raises(UserError, match="domain clear has . classes, but the model has 3"):
        DeFTTrainer(Net(3), arguments(tmp_path), eval_dataset=prepared, encoder="encoder")


def test_what_a_plain_model_must_give(tmp_path):
    with pytest.raises(UserError, match="'Net' is unknown: name its encoder.*decoder"):
        DeFTTrainer(Net(), arguments(tmp_path), train_dataset=Drawn(2))
    with pytest.raises(UserError, match="Net returns tuple for one image.*without an auxiliary output"):
        trainer(tmp_path, Net(auxiliary=True))
    with pytest.raises(UserError, match=r"Flat returns a torch.float32 tensor of shape \(1, 7\)"):
        trainer(tmp_path, Flat())
    with pytest.raises(UserError, match="does not say how many classes it has"):
        DeFTTrainer(Net(), arguments(tmp_path), encoder="encoder")
    with pytest.raises(UserError, match="gradient_checkpointing.: Net does not support it"):
        trainer(tmp_path, gradient_checkpointing=True)


class Flat(Net):
    def forward(self, x):
        return super().forward(x).mean((2, 3))
