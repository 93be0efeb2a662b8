"""DeepLabV3+: against a network written out, and as a folder that opens with deft_hf, and without."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, ResNetBackbone, ResNetConfig

from deft_hf.data.labels import LabelSpace
from deft_hf.models.backbones import under_head
from deft_hf.models.families import resolve_family
from deft_hf.models.opening import open_model
from deft_hf.models.own import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from deft_hf.models.pretrained import open_pretrained
from deft_hf.models.processor import segmentation_processor
from deft_hf.models.torchvision_resnets import ARCHITECTURES, _torchvision_name
from deft_hf.publish.export import export_generalized
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.models.test_backbones import pretrained

LABELS = LabelSpace([f"class {index}" for index in range(tiny.NUM_LABELS)])
HEAD = {"hidden_size": 16, "low_level_size": 8}


def varied(**overrides):
    """A tiny model in which every tensor matters, BatchNorm's too."""
    model = tiny.build("deeplabv3plus", **overrides).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "normalization.weight", "1.weight")) and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.normal_(std=0.2, generator=generator)
    return model


def written_out(model, images, dilations, strides):
    """The logits of a ResNet with bottlenecks of V1.5 and DeepLabV3+, as functions of the tensors alone."""
    tensors = dict(model.state_dict())

    def conv(name, inputs, stride=1, dilation=1):
        weight = tensors[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(inputs, weight, tensors.get(f"{name}.bias"), stride, padding, dilation)

    def norm(name, inputs):
        own = [tensors[f"{name}.{each}"] for each in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(inputs, *own)

    def layer(name, inputs, stride=1, dilation=1):
        return norm(f"{name}.normalization", conv(f"{name}.convolution", inputs, stride, dilation))

    def block(name, inputs, stride, dilation):
        hidden = layer(f"{name}.layer.0", inputs).relu()
        hidden = layer(f"{name}.layer.1", hidden, stride, dilation).relu()
        short = (
            layer(f"{name}.shortcut", inputs, stride) if f"{name}.shortcut.convolution.weight" in tensors else inputs
        )
        return (layer(f"{name}.layer.2", hidden) + short).relu()

    def head(name, inputs, dilation=1):
        return norm(f"decode_head.{name}.1", conv(f"decode_head.{name}.0", inputs, dilation=dilation)).relu()

    def larger(inputs, size):
        return F.interpolate(inputs, size=size, mode="bilinear", align_corners=True)

    features = F.max_pool2d(layer("backbone.embedder.embedder", images, 2).relu(), 3, 2, 1)
    maps = []
    for stage, (depth, stride, dilation) in enumerate(zip((1, 1, 2, 2), strides, dilations, strict=True)):
        for index in range(depth):
            name = f"backbone.encoder.stages.{stage}.layers.{index}"
            features = block(name, features, stride if index == 0 else 1, dilation)
        maps.append(features)
    low, high = maps[0], maps[-1]
    rates = (1, 12, 24, 36) if dilations[-1] == 4 else (1, 6, 12, 18)
    levels = [head(f"pyramid.levels.{index}", high, rate) for index, rate in enumerate(rates)]
    image = head("pyramid.image_level", high.mean((2, 3), keepdim=True))
    pyramid = head("pyramid.projection", torch.cat([*levels, image.expand_as(levels[0])], 1))
    joined = torch.cat([larger(pyramid, low.shape[2:]), head("low_level", low)], 1)
    logits = conv("decode_head.classifier", head("fusion.1", head("fusion.0", joined)))
    return larger(logits, images.shape[2:])


@pytest.mark.parametrize(
    "output_stride, dilations, strides", [(16, (1, 1, 1, 2), (1, 2, 2, 1)), (8, (1, 1, 2, 4), (1, 2, 1, 1))]
)
def test_it_is_the_network_written_out(output_stride, dilations, strides):
    model = varied(output_stride=output_stride).double()
    images = torch.randn(2, 3, 70, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        outputs = model(images, output_hidden_states=True)
        expected = written_out(model, images, dilations, strides)
    assert outputs.logits.shape == (2, tiny.NUM_LABELS, 70, 97) and outputs.logits.std() > 0.1
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-10)
    sides = {4: 25, 8: 13, 16: 7}
    assert outputs.hidden_states[-1].shape[-1] == sides[output_stride]


def test_wherever_the_stride_stands_it_is_taken_out():
    """In V1 bottlenecks it stands in the first 1x1, in basic blocks in the first 3x3."""
    for changes in ({"downsample_in_bottleneck": True}, {"layer_type": "basic"}):
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
        backbone = ResNetConfig(**sizes, **changes, out_features=["stage1", "stage4"])
        model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone, **HEAD)).eval()
        last = model.backbone.encoder.stages[3]
        assert {layer.stride for layer in last.modules() if isinstance(layer, nn.Conv2d)} == {(1, 1)}
        assert model.backbone(torch.randn(1, 3, 64, 64)).feature_maps[-1].shape[-1] == 4


def test_the_loss_is_of_labelled_pixels_and_the_output_a_tuple_on_demand():
    model, batch = varied(), tiny.batch()
    loss, logits = model(**batch, return_dict=False)
    valid = batch["labels"] != 255
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[valid], batch["labels"][valid])
    torch.testing.assert_close(loss, expected)
    assert (model.config.num_labels, resolve_family(model).encoder) == (tiny.NUM_LABELS, "backbone")


def test_a_config_that_makes_no_network_is_refused():
    with pytest.raises(ValueError, match="output_stride is 32: expected 8 or 16"):
        DeepLabV3PlusConfig(output_stride=32)
    with pytest.raises(ValueError, match="of type swin: expected a resnet"):
        DeepLabV3PlusConfig(tiny.backbone("swin"))
    assert DeepLabV3PlusConfig().backbone_config.depths == (3, 4, 6, 3)


def test_a_resnet_of_the_hub_gets_the_head(tmp_path):
    folder, tensors = pretrained(tmp_path / "resnet", "resnet")
    model, new = under_head(folder, "deeplabv3plus", LABELS, head_changes={**HEAD, "output_stride": 8})
    state = model.state_dict()
    assert model.backbone.encoder.stages[3].layers[0].layer[1].convolution.dilation == (4, 4)
    assert set(new) == {name for name in state if not name.startswith("backbone.")}
    assert all(torch.equal(state[f"backbone.{name}"], tensor) for name, tensor in tensors.items())
    swin, _ = pretrained(tmp_path / "swin", "swin")
    with pytest.raises(UserError, match="deeplabv3plus takes backbones of type resnet alone, found swin"):
        under_head(swin, "deeplabv3plus", LABELS)
    with pytest.raises(UserError, match=r"model.head_config: output_stride is 4: expected 8 or 16"):
        under_head(folder, "deeplabv3plus", LABELS, head_changes={"output_stride": 4})
    with pytest.raises(
        UserError, match="out_indices: found .4., but the head deeplabv3plus reads 2 to 4 feature maps"
    ):
        under_head(folder, "deeplabv3plus", LABELS, changes={"out_indices": [4]})


@pytest.fixture
def exported(tmp_path):
    model = varied()
    export_generalized(model, tmp_path / "export", segmentation_processor(None, (64, 64), "deeplabv3plus"))
    return model, tmp_path / "export"


def test_the_code_travels_and_is_not_run_here(exported):
    model, folder = exported
    code = "modeling_deeplabv3plus.py"
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_deeplabv3plus.DeepLabV3PlusConfig",
        "AutoModelForSemanticSegmentation": "modeling_deeplabv3plus.DeepLabV3PlusForSemanticSegmentation",
    }
    (folder / code).write_text("raise RuntimeError('this was run')")
    images = tiny.batch()["pixel_values"]
    for opened in (AutoModelForSemanticSegmentation.from_pretrained(folder), open_model(folder)):
        assert type(opened) is type(model)
        torch.testing.assert_close(opened.eval()(images).logits, model(images).logits)
    again, _, new = open_pretrained(str(folder), LABELS, crop_size=(64, 64))
    assert type(again) is type(model) and all("classifier" in name for name in new)
    again.save_pretrained(folder)
    assert "class DeepLabV3PlusConfig" in (folder / code).read_text()  # of this package


WITHOUT = """
import sys
sys.modules["deft_hf"] = None
import torch
from transformers import AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
torch.set_num_threads(1)
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
torch.save(model.eval()(images).logits.detach(), sys.argv[2])
model.save_pretrained(sys.argv[3])

del sys.modules["deft_hf"]
import deft_hf

model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1])
assert type(model).__module__ == "deft_hf.models.modeling_deeplabv3plus", type(model).__module__
"""


def test_it_opens_where_deft_hf_cannot_be_imported_and_where_it_is(exported, tmp_path, monkeypatch):
    model, folder = exported
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    out, again = tmp_path / "logits.pt", tmp_path / "again"
    subprocess.run([sys.executable, "-c", WITHOUT, str(folder), str(out), str(again)], check=True, cwd=tmp_path)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.load(out), model(images).logits, rtol=1e-5, atol=1e-5)
    # What they save is a folder of the same kind, which opens here.
    assert type(open_model(again)) is type(model)


def test_weights_of_torchvision_as_timm_keeps_them(tmp_path, monkeypatch):
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 2, 1]}
    monkeypatch.setitem(ARCHITECTURES, "resnet_tiny", sizes)
    source = ResNetBackbone(ResNetConfig(**sizes))
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.fill_(3)
    block = source.encoder.stages[2].layers[1].layer
    expected = {
        "conv1.weight": source.embedder.embedder.convolution.weight,
        "bn1.running_var": source.embedder.embedder.normalization.running_var,
        "layer3.1.conv2.weight": block[1].convolution.weight,
        "layer3.1.bn3.bias": block[2].normalization.bias,
        "layer4.0.downsample.0.weight": source.encoder.stages[3].layers[0].shortcut.convolution.weight,
        "layer1.0.downsample.1.weight": source.encoder.stages[0].layers[0].shortcut.normalization.weight,
    }
    stored = {_torchvision_name(name): value for name, value in source.state_dict().items()}
    assert len(stored) == len(source.state_dict())
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    save_file(stored | {"fc.weight": torch.zeros(10, 32)}, tmp_path / "model.safetensors")
    facts = {"architecture": "resnet_tiny", "num_classes": 10, "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    model, processor, new = open_pretrained(
        str(tmp_path), LABELS, head="deeplabv3plus", head_config=HEAD, crop_size=(64, 64)
    )
    assert set(new) == {name for name in model.state_dict() if not name.startswith("backbone.")}
    found = {name: value for name, value in model.backbone.state_dict().items() if "num_batches" not in name}
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in found.items())
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1] * 3, [0.2] * 3)
    del stored["layer3.1.conv2.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lacks encoder.stages.2.layers.1.layer.1.convolution.* of its ResNet"):
        under_head(str(tmp_path), "deeplabv3plus", LABELS)
    (tmp_path / "config.json").write_text(json.dumps(facts | {"architecture": "resnet50d"}))
    with pytest.raises(UserError, match="architecture 'resnet50d'; of timm's, this head takes resnet18, "):
        under_head(str(tmp_path), "deeplabv3plus", LABELS)
