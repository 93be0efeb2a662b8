"""What a checkpoint may lack as a start for other classes, and how it is said."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, Dinov2Config, Dinov2Model

from deft_hf.data.labels import LabelSpace
from deft_hf.models.families import FAMILIES, resolve_family
from deft_hf.models.new_tensors import draw_classifier, newly_made, summary
from deft_hf.models.opening import auto_class
from deft_hf.models.pretrained import open_pretrained
from deft_hf.recipe import ModelSection
from deft_hf.recipe.data import DataSection
from deft_hf.runs.start import open_start
from deft_hf.utils.errors import UserError
from tests import tiny

CLASSES = 19


LABELS = LabelSpace.from_mapping({"names": [f"class {index}" for index in range(CLASSES)]})


def load(name, **options):
    return open_pretrained(str(name), LABELS, crop_size=(64, 64), **options)


def newly_named(start):
    return summary(start.new, start.model.state_dict())


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
def test_other_classes_make_the_classifier_new_and_nothing_else(model_type, tmp_path):
    before = tiny.build(model_type)
    before.save_pretrained(tmp_path)
    model, keys = type(before).from_pretrained(
        tmp_path, num_labels=CLASSES, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = newly_made(model, resolve_family(model), keys, tiny.NUM_LABELS, "model.checkpoint: x")
    old, now = before.state_dict(), model.state_dict()
    assert new == [name for name in now if old[name].shape != now[name].shape]
    assert new and all(now[name].shape[0] in (CLASSES, CLASSES + 1) for name in new)
    assert all(torch.equal(old[name], now[name]) for name in now if name not in new)


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
def test_as_many_other_classes_make_the_same_tensors_new(model_type):
    model = tiny.build(model_type)
    wider = type(model)(type(model.config).from_dict({**model.config.to_dict(), "num_labels": CLASSES})).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = draw_classifier(model, [])
    assert new == [name for name, value in before.items() if value.shape != wider[name].shape]
    now = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, now[name])]
    assert changed and set(changed) <= set(new)
    assert draw_classifier(model, new) == new and all(torch.equal(now[n], v) for n, v in model.state_dict().items())


def test_what_is_new_is_named(tmp_path):
    before = tiny.build("segformer")
    before.save_pretrained(tmp_path / "seven")
    start = load(tmp_path / "seven")
    assert newly_named(start) == "decode_head.classifier.* (2)"
    model = start.model
    assert model.config.num_labels == CLASSES and model.config.id2label[18] == "class 18"
    # The same number of classes: training continues with the classifier that is there.
    model.save_pretrained(tmp_path / "nineteen")
    again = load(tmp_path / "nineteen")
    assert newly_named(again) == "nothing"
    assert torch.equal(again.model.decode_head.classifier.weight, model.decode_head.classifier.weight)
    model.config.id2label = {index: f"LABEL_{index}" for index in range(CLASSES)}  # nobody gave them names
    model.save_pretrained(tmp_path / "nineteen")
    assert newly_named(load(tmp_path / "nineteen")) == "nothing"
    # As many others: it is replaced, by the same draw each time.
    model.config.id2label = {index: f"thing {index}" for index in range(CLASSES)}
    model.save_pretrained(tmp_path / "nineteen")
    again, once_more = load(tmp_path / "nineteen"), load(tmp_path / "nineteen")
    assert newly_named(again) == "decode_head.classifier.* (2)"
    kept, drawn = model.state_dict(), again.model.state_dict()
    changed = [name for name, value in kept.items() if not torch.equal(value, drawn[name])]
    assert changed == ["decode_head.classifier.weight"]  # the bias starts at 0
    assert again.model.config.id2label[18] == "class 18"
    assert torch.equal(drawn[changed[0]], once_more.model.decode_head.classifier.weight)
    other = load(tmp_path / "nineteen", seed=1).model.decode_head.classifier.weight
    assert not torch.equal(drawn[changed[0]], other)
    before.segformer.save_pretrained(tmp_path / "encoder")
    assert newly_named(load(tmp_path / "encoder")) == "decode_head.* (16)"


def test_anything_else_is_refused_in_one_message(tmp_path):
    tiny.build("segformer").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)

    def refused(match, change, **section):
        tensors = dict(whole)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=match) as caught:
            load(tmp_path, **section)
        assert str(caught.value).startswith(f"model.checkpoint: {tmp_path} ") and "\n" not in str(caught.value)

    refused(r"lacks decode_head.linear_fuse.\* \(1\)\. Only", lambda t: t.pop("decode_head.linear_fuse.weight"))
    refused("lacks decode_head.batch_norm.running_var. ", lambda t: t.pop("decode_head.batch_norm.running_var"))
    refused(
        r"lacks .*\(of size \(16,.*expected \(24,.*Only the classifier may be new",
        lambda t: None,
        config={"decoder_hidden_size": 24},
    )
    name = next(name for name in whole if name.startswith("segformer.") and name.endswith("weight"))
    refused(r"lacks 1 tensors of the encoder, segformer\.stages\.0\S* first", lambda t: t.pop(name))


def test_names_are_summed_up_by_whole_modules():
    everything = ["a.b.x", "a.b.y", "a.c.x", "d.x", "d.y"]
    assert summary([], everything) == "nothing"
    assert summary(["a.b.x", "a.b.y"], everything) == "a.b.* (2)"
    assert summary(["a.b.x", "a.b.y", "a.c.x", "d.y"], everything) == "a.* (3), d.y"


def test_a_backbone_gets_a_head(tmp_path):
    tiny.build("upernet").backbone.save_pretrained(tmp_path / "backbone")
    start = load(
        tmp_path / "backbone", head="upernet", head_config={"hidden_size": 16}, config={"drop_path_rate": 0.1}
    )
    assert newly_named(start).startswith("decode_head.* (")
    config = start.model.config
    assert config.hidden_size == 16 and config.backbone_config.drop_path_rate == 0.1
    start.model.save_pretrained(tmp_path / "again")
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "again").config.num_labels == CLASSES
    with pytest.raises(
        UserError, match="model.backbone: someone/nothing cannot be read .*Hub name that can be reached"
    ):
        load("someone/nothing", head="upernet")


def test_the_sections_of_a_recipe_name_the_start_and_it_says_what_is_new(tmp_path, capsys):
    tiny.build("upernet").backbone.save_pretrained(tmp_path / "backbone")
    data = DataSection(labels={"names": ["a", "b"]}, source=[{"streets": "clear", "count": 1}], crop_size=[64, 64])
    section = ModelSection(backbone=str(tmp_path / "backbone"), head="upernet", head_config={"hidden_size": 16})
    start = open_start(section, data, data.label_space(), seed=0)
    said = capsys.readouterr().out
    assert "backbone: UperNetForSemanticSegmentation, " in said and "Newly made: decode_head.* (" in said
    assert start.model.config.hidden_size == 16 and start.model.config.num_labels == 2
    assert start.processor.image_mean and not start.processor.do_resize
    open_start(section, data, data.label_space(), seed=0, announce=False)
    assert capsys.readouterr().out == ""


def test_a_model_of_one_size_refuses_test_sizes_of_domains(tmp_path):
    tiny.build("eomt").save_pretrained(tmp_path)
    side = [tiny.SIDE, tiny.SIDE]
    section = ModelSection(checkpoint=str(tmp_path))

    def start(size, **options):
        town = {"streets": "night", "name": "town", "count": 1} | ({} if size is None else {"eval_size": size})
        data = DataSection(
            labels={"names": ["a", "b"]},
            source=[{"streets": "clear", "count": 1}],
            unseen=[town],
            crop_size=side,
            **options,
        )
        return open_start(section, data, data.label_space(), seed=0, announce=False)

    for size in ("own", {"short": 64}, [64, 96]):
        with pytest.raises(UserError, match=rf"found eval_size .* of town, but {tmp_path} takes images of 64 x 64 al"):
            start(size, image_size=side)
        start(size, window=side)
    for size in (None, side):
        start(size, image_size=side)
    with pytest.raises(UserError, match="data.eval_size: found .*takes images of 64 x 64 alone"):
        start(None, image_size=side, eval_size={"short": 64})


@pytest.mark.parametrize(
    "size, window, seen",
    [
        ([28, 42], None, True),
        ([28, 40], None, False),
        ({"short": 28}, None, True),
        ({"short": 30, "long": 60}, None, False),
        ({"short": 30}, [42, 42], False),
        ({"short": 50}, [42, 42], True),
        ([20, 60], [42, 42], False),
        ("own", [42, 42], True),
        (None, None, True),
    ],
)
def test_test_sizes_of_domains_are_seen_whole_by_patches(tmp_path, size, window, seen):
    config = Dinov2Config(hidden_size=12, num_hidden_layers=4, num_attention_heads=2, image_size=42, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    town = {"streets": "night", "name": "town", "count": 1} | ({} if size is None else {"eval_size": size})
    data = DataSection(
        labels={"names": ["a", "b"]},
        source=[{"streets": "clear", "count": 1}],
        unseen=[town],
        image_size=[42, 42],
        window=window,
    )
    section = ModelSection(backbone=str(tmp_path), head="upernet", head_config={"hidden_size": 16, "pool_scales": [1]})
    with nullcontext() if seen else pytest.raises(UserError, match="eval_size .* of town, but .*patches of 14 x 14"):
        open_start(section, data, data.label_space(), seed=0, announce=False)


@pytest.mark.parametrize("model_type", sorted(tiny.BUILDERS))
def test_the_auto_class_of_a_family_is_that_of_its_objective(model_type):
    assert auto_class(tiny.build(model_type).config).__name__ == FAMILIES[model_type].objective.auto_class


def test_the_table_of_families_is_light():
    """Who uses it alone loads torch, and neither transformers nor datasets."""
    code = (
        "import sys, deft_hf.models.families, deft_hf.models.masks, deft_hf.models.objectives, deft_hf.models.views\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['torch']\n"


def test_a_model_of_other_bands_is_refused_at_the_start(tmp_path):
    tiny.build("segformer", num_channels=4).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes images of 4 bands, but images are read with three, RGB"):
        load(tmp_path)


def test_a_size_that_patches_do_not_divide_is_refused(tmp_path):
    tiny.build("data2vec-vision").save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match=r"data\.image_size: found \[70, 64\], .*patches of 16 x 16"):
        load(tmp_path / "vit", image_size=(70, 64))
