"""Pretrained backbones under fresh heads: whose weights they have, what is new, what is refused."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation
from transformers.utils import is_timm_available

from deft_hf.data.labels import LabelSpace
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.backbones import under_head
from deft_hf.models.families import SegmentationFamily, resolve_family, untouched_parameters
from deft_hf.utils.errors import UserError
from tests import tiny

LABELS = LabelSpace([f"class {index}" for index in range(tiny.NUM_LABELS)])
VIT = {"image_size": 64, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
BACKBONES = {
    "beit": {**VIT, "intermediate_size": 32, "use_relative_position_bias": True, "use_mask_token": True},
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 1},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "dinov2": VIT,
    "dinov2_with_registers": {**VIT, "num_register_tokens": 2},
    "dinov3_convnext": STAGES,
    "dinov3_vit": {**VIT, "intermediate_size": 32, "num_register_tokens": 2},
    "hiera": {"image_size": [64, 64], "embed_dim": 8, "num_heads": [1] * 4, "depths": [1] * 4, "mlp_ratio": 1.0},
    "pvt_v2": {**STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "resnet": {**STAGES, "embedding_size": 8},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "vitdet": VIT,
}
SMALL = {
    "upernet": {"hidden_size": 16, "pool_scales": [1, 2]},
    "deeplabv3plus": {"hidden_size": 16, "low_level_size": 8},
    "dpt": {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16},
    "mask2former": {
        "hidden_dim": 32,
        "feature_size": 32,
        "mask_feature_size": 32,
        "num_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 5,
    },
}


def pretrained(folder, model_type, kind=AutoModel, **changes):
    """The folder of a tiny random model of a type, and its tensors."""
    torch.manual_seed(1)
    model = kind.from_config(CONFIG_MAPPING[model_type](**{**BACKBONES[model_type], **changes}))
    for parameter in model.parameters():  # ones and zeros are no proof
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return str(folder), model.state_dict()


@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_every_backbone_under_upernet(model_type, tmp_path):
    folder, tensors = pretrained(tmp_path / "backbone", model_type)
    model, new = under_head(folder, "upernet", LABELS, head_changes=SMALL["upernet"])
    family = resolve_family(model)
    state = model.state_dict()
    # Every tensor of the plain model that the backbone class has, with or without its prefix, came over; nothing else.
    prefix = f"backbone.{model.backbone.base_model_prefix}."
    own = {name: name.removeprefix("backbone.") for name in state if name not in new}
    own = {name: plain if plain in tensors else name.removeprefix(prefix) for name, plain in own.items()}
    assert len(own) > 10 and all(torch.equal(state[name], tensors[plain]) for name, plain in own.items())
    assert {plain for plain in tensors if plain not in own.values()} <= {
        n for n in tensors if n.startswith(("layernorm.", "norm.", "pooler.", "layer_norm.", "ln_"))
    }
    added = {name.split(".")[1] for name in new if family.part_of(name) == "encoder"}
    assert added <= {"hidden_states_norms", "fpn", "norm", "layernorm", "layer_norms"}
    assert {name for name in state if family.part_of(name) == "decoder"} <= set(new)
    # What no gradient reaches is listed, so that DDP needs no search for it.
    model.train()
    listed = {name for name, _ in model.named_parameters() if not family.is_trained(name)}
    assert set(untouched_parameters(model, family, tiny.batch())) == listed
    assert model.config.num_labels == LABELS.num_labels and len(model.backbone.channels) == 4


def test_vits_are_read_at_each_quarter_and_hierarchies_at_their_last_four_stages(tmp_path):
    vit, _ = pretrained(tmp_path / "vit", "dinov2")
    model, _ = under_head(vit, "upernet", LABELS, head_changes=SMALL["upernet"])
    assert model.config.backbone_config.out_indices == [2, 4, 6, 8]
    features = model.backbone(torch.zeros(1, 3, 48, 64)).feature_maps
    assert [tuple(f.shape[-2:]) for f in features] == [(6, 8)] * 4
    model, _ = under_head(
        vit, "upernet", LABELS, changes={"num_hidden_layers": 3, "out_indices": [1, 3]}, head_changes=SMALL["upernet"]
    )
    assert model.config.backbone_config.out_indices == [1, 3] and len(model.backbone.channels) == 2
    swin, _ = pretrained(tmp_path / "swin", "swin")
    model, _ = under_head(swin, "upernet", LABELS, head_changes=SMALL["upernet"])
    assert model.config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers"])
def test_dpt_makes_a_pyramid_of_a_vit(model_type, tmp_path):
    folder, _ = pretrained(tmp_path / "backbone", model_type)
    model, _ = under_head(folder, "dpt", LABELS, head_changes=SMALL["dpt"])
    family = resolve_family(model.train())
    assert model(torch.zeros(1, 3, 48, 64)).logits.shape[-2:] == (48, 64)  # 8 times the patches' resolution
    listed = {name for name, _ in model.named_parameters() if not family.is_trained(name)}
    assert set(untouched_parameters(model, family, tiny.batch())) == listed
    model.eval().save_pretrained(tmp_path / "out")
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    images = tiny.batch()["pixel_values"]
    torch.testing.assert_close(again(images).logits, model(images).logits)


@pytest.mark.parametrize(
    "model_type, stride", [("swin", 4), ("resnet", 4), ("convnext", 4), ("dinov2", 8), ("beit", 2)]
)
def test_mask2former_reads_every_map_of_the_backbone(model_type, stride, tmp_path):
    folder, tensors = pretrained(tmp_path / "backbone", model_type)
    model, new = under_head(folder, "mask2former", LABELS, head_changes=SMALL["mask2former"])
    path = "model.pixel_level_module.encoder"
    assert sum(name.startswith(path) and name not in new for name in model.state_dict()) > 10
    outputs = model.train()(torch.randn(2, 3, 64, 64))
    assert outputs.masks_queries_logits.shape[-2:] == (64 // stride, 64 // stride)
    (outputs.masks_queries_logits.sum() + outputs.class_queries_logits.sum()).backward()
    gradients = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    untouched = {
        n for n, _ in model.model.pixel_level_module.encoder.named_parameters() if f"{path}.{n}" not in gradients
    }
    assert all(name.endswith("mask_token") or "layernorm" in name for name in untouched)


def test_a_classifier_is_a_backbone_too_and_the_head_hangs_on_the_seed_alone(tmp_path):
    folder, tensors = pretrained(tmp_path / "classifier", "convnext", AutoModelForImageClassification)
    torch.manual_seed(3)
    first, new = under_head(folder, "upernet", LABELS, head_changes=SMALL["upernet"])
    weight = "encoder.stages.2.layers.0.pwconv1.weight"
    assert torch.equal(first.backbone.state_dict()[weight], tensors[f"convnext.{weight}"])
    torch.manual_seed(3)
    second, _ = under_head(folder, "upernet", LABELS, head_changes=SMALL["upernet"])
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    torch.manual_seed(4)
    third, _ = under_head(folder, "upernet", LABELS, head_changes=SMALL["upernet"])
    assert not torch.equal(first.decode_head.classifier.weight, third.decode_head.classifier.weight)
    assert torch.equal(first.backbone.state_dict()[weight], third.backbone.state_dict()[weight])


def test_what_is_refused(tmp_path):
    vit, _ = pretrained(tmp_path / "vit", "dinov2")
    swin, _ = pretrained(tmp_path / "swin", "swin")

    def refused(name, head, match, changes=None, head_changes=None):
        with pytest.raises(UserError, match=match):
            under_head(name, head, LABELS, changes=changes, head_changes=head_changes)

    refused(swin, "dpt", "model.head: dpt is for backbones of one resolution.*swin has several; take upernet")
    for other in ("vitdet", "dinov3_vit"):
        folder, _ = pretrained(tmp_path / other, other)
        refused(folder, "dpt", f"reads the class token, which the backbone of type {other} does not hand out")
    refused(vit, "dpt", r"out_indices: found \[2, 8\], but the head dpt reads 4", {"out_indices": [2, 8]})
    refused(vit, "upernet", "would never be trained: name the last stage too", {"out_indices": [1, 2, 3, 4]})
    refused(vit, "upernet", "model.config: .*valid indices", {"out_indices": [1, 2, 3, 40]})
    refused(vit, "upernet", "model.config.layers: a dinov2 config has no such field", {"layers": 3})
    refused(vit, "upernet", "model.head_config.width: a upernet config has no such field", None, {"width": 3})
    refused(vit, "upernet", "head_config.id2label: it follows from data.labels", None, {"id2label": {}})
    refused(vit, "upernet", r"lacks .*encoder.\* \(144\).*, or has other sizes", {"hidden_size": 32})
    refused(vit, "upernet", r"lacks encoder.layer.8.\* \(\d+\) of a Dinov2Backbone", {"num_hidden_layers": 9})
    segformer = tiny.build("segformer")
    segformer.save_pretrained(tmp_path / "segformer")
    refused(str(tmp_path / "segformer"), "upernet", "of type segformer.*no backbone class.*convnext.*model.checkpoint")


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_timm_models_say_what_they_need(tmp_path):
    facts = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"tag": "a1_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="is a model of timm, which is not installed: pip install timm"):
        under_head(str(tmp_path), "upernet", LABELS)


def test_pathways_split_a_backbone_from_its_head(tmp_path):
    folder, _ = pretrained(tmp_path / "backbone", "swin")
    model, _ = under_head(folder, "upernet", LABELS, head_changes=SMALL["upernet"])
    both = DualPathway(model, resolve_family(model))
    both.enter("decoupled")
    both.train()(**tiny.batch())["loss"].backward()
    family: SegmentationFamily = both.family
    for name, parameter in both.usual.named_parameters():
        assert (parameter.grad is not None) == family.is_trained(name), name
    assert all(parameter.grad is None for parameter in both.generalized.parameters())
