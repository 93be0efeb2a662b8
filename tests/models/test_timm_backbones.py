"""timm's models as backbones: every tensor comes from the file, in each layout, or there is one message."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation
from transformers.utils import is_timm_available

from deft_hf.data.labels import LabelSpace
from deft_hf.models.backbones import under_head
from deft_hf.models.families import resolve_family, seen_multiple
from deft_hf.models.pretrained import open_pretrained
from deft_hf.models.timm_backbones import _not_stored, stored_tensors
from deft_hf.publish.export import export_generalized
from deft_hf.scoring.inference import semantic_logits
from deft_hf.utils.errors import UserError

with_timm = pytest.mark.skipif(not is_timm_available(), reason="timm, or the torchvision it needs, is not installed")
LABELS = LabelSpace(("land", "water", "sky"))
HEAD = {"hidden_size": 16, "pool_scales": [1, 2]}
MEAN, STD = [0.3, 0.4, 0.5], [0.1, 0.2, 0.3]


def drawn(module):
    """Random weights and statistics: ones and zeros are no proof."""
    generator = torch.Generator().manual_seed(1)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1 + 0.01)
    return {name: value.clone() for name, value in module.state_dict().items()}


def wrapped(folder, architecture):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    facts = {"mean": MEAN, "std": STD, "input_size": [3, 64, 64]}
    model = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture=architecture, num_labels=5, pretrained_cfg=facts)
    )
    tensors = drawn(model.timm_model)
    model.save_pretrained(folder)
    return tensors


def timms_own(folder, architecture):
    import timm
    from timm.models import save_for_hf

    model = timm.create_model(architecture, num_classes=5)
    tensors = drawn(model)
    save_for_hf(model, folder, safe_serialization=True)
    return tensors


def as_backbone(folder, architecture):
    import timm
    from transformers import TimmBackbone, TimmBackboneConfig

    stages = len(timm.create_model(architecture, features_only=True).feature_info.info)
    model = TimmBackbone(TimmBackboneConfig(backbone=architecture, out_indices=list(range(stages - 4, stages))))
    tensors = drawn(model._backbone)
    model.save_pretrained(folder)
    return tensors


@with_timm
@pytest.mark.parametrize("layout", [wrapped, timms_own, as_backbone])
@pytest.mark.parametrize("architecture", ["resnet10t", "convnext_atto"])
def test_every_tensor_comes_from_the_file(layout, architecture, tmp_path):
    tensors = layout(tmp_path, architecture)
    model, new = under_head(str(tmp_path), "upernet", LABELS, head_changes=HEAD)
    found = model.backbone._backbone.state_dict()
    plain = {name.replace(".", "_"): value for name, value in tensors.items()}  # timm flattens names of stages
    assert len(found) > 50
    for name, value in found.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, plain[name.replace(".", "_")]), name
    assert not [name for name in new if name.startswith("backbone.")]


@with_timm
def test_a_run_starts_from_a_timm_model_and_its_export_opens(tmp_path):
    wrapped(tmp_path / "resnet", "resnet10t")
    start = open_pretrained(str(tmp_path / "resnet"), LABELS, head="upernet", head_config=HEAD, image_size=(64, 64))
    assert start.processor.image_mean == pytest.approx(MEAN) and start.processor.image_std == pytest.approx(STD)
    export_generalized(start.model, tmp_path / "out", start.processor)
    again, keys = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(keys.values())
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in start.model.state_dict().items())
    assert again(torch.zeros(2, 3, 64, 64)).logits.shape[:2] == (2, 3)


@with_timm
@pytest.mark.parametrize("layout", [wrapped, timms_own, as_backbone])
def test_a_file_that_lacks_tensors_is_refused_and_the_first_are_named(layout, tmp_path):
    layout(tmp_path, "resnet10t")
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    lost = next(name for name in whole if name.endswith("layer2.0.conv1.weight"))
    save_file({name: value for name, value in whole.items() if name != lost}, file)
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors of timm's resnet10t: layer2.0.conv1.\* \(1\)"):
        under_head(str(tmp_path), "upernet", LABELS, head_changes=HEAD)
    save_file({f"student.{name}": value for name, value in whole.items()}, file)
    with pytest.raises(UserError, match=r"lacks \d+ of \d+ tensors .*The first tensors that it holds: student\."):
        under_head(str(tmp_path), "upernet", LABELS, head_changes=HEAD)


@with_timm
def test_weights_of_another_architecture_are_refused(tmp_path):
    wrapped(tmp_path, "resnet10t")
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("resnet10t", "resnet26"))
    with pytest.raises(UserError, match="timm's resnet26"):
        under_head(str(tmp_path), "upernet", LABELS, head_changes=HEAD)
    (tmp_path / "config.json").write_text(config.replace("resnet10t", "resnet_of_nobody"))
    with pytest.raises(UserError, match="architecture 'resnet_of_nobody', which gives no feature maps"):
        under_head(str(tmp_path), "upernet", LABELS, head_changes=HEAD)


@with_timm
@pytest.mark.parametrize("architecture, patch", [("test_vit", 16), ("test_convnext", 4), ("resnet10t", 1)])
def test_evaluation_shows_whole_patches(architecture, patch):
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    torch.manual_seed(0)
    backbone = TimmBackboneConfig(backbone=architecture, out_indices=[0, 1, 2, 3])
    model = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, num_labels=3, use_auxiliary_head=False, **HEAD)
    ).eval()
    if architecture == "test_vit":  # tied to 160 x 160 otherwise
        from timm.layers import Format

        vit = model.backbone._backbone.model
        vit.dynamic_img_size, vit.patch_embed.strict_img_size = True, False
        vit.patch_embed.flatten, vit.patch_embed.output_fmt = False, Format.NHWC
    family = resolve_family(model)
    assert seen_multiple(model, family.encoder) == patch
    images = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        logits = semantic_logits(model, family, images, (75, 101))
        padded = F.pad(images, (0, -101 % patch, 0, -75 % patch))
        whole = semantic_logits(model, family, padded, tuple(padded.shape[-2:]))
        assert torch.equal(logits, whole[..., :75, :101])
        images[..., -1, :] += 5
        assert not torch.equal(semantic_logits(model, family, images, (75, 101)), logits)


def test_tensors_are_compared_by_value_under_any_name_and_shape():
    generator = torch.Generator().manual_seed(0)
    stored = {"a.0.weight": torch.rand(4, 3, 1, 1, generator=generator), "b": torch.rand(5, generator=generator)}
    loaded = {"a_0.weight": stored["a.0.weight"].view(4, 3), "bias": stored["b"], "steps": torch.tensor(3)}
    assert _not_stored(loaded, stored) == []
    assert _not_stored({**loaded, "bias": stored["b"] + 1e-6, "c": torch.rand(7)}, stored) == ["bias", "c"]


def test_weights_are_read_whole_or_in_shards_and_none_is_one_message(tmp_path):
    tensors = {"a": torch.rand(3), "b": torch.rand(2)}
    with pytest.raises(UserError, match="has no model.safetensors"):
        stored_tensors(str(tmp_path), "main")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert sorted(stored_tensors(str(tmp_path), "main")) == ["a", "b"]
    for index, (name, value) in enumerate(tensors.items(), 1):
        save_file({name: value + 1}, tmp_path / f"model-{index:05}-of-00002.safetensors")
    places = '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": '
    (tmp_path / "model.safetensors.index.json").write_text(places + '"model-00002-of-00002.safetensors"}}')
    found = stored_tensors(str(tmp_path), "main")
    assert torch.equal(found["a"], tensors["a"] + 1) and torch.equal(found["b"], tensors["b"] + 1)
