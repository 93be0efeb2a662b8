"""What a checkpoint may lack as a start for other classes, and how it is said."""

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation

from deft_hf.models.families import resolve_family
from deft_hf.models.loading import load_model
from deft_hf.models.new_tensors import draw_classifier, newly_made, summary
from deft_hf.recipe import Recipe
from deft_hf.utils.errors import UserError
from tests import tiny

CLASSES = 19


@pytest.fixture
def load(tmp_path):
    """Loads a checkpoint for 19 classes as a recipe has it."""

    def loaded(checkpoint=None, **section):
        recipe = {
            "model": {**({"checkpoint": str(checkpoint)} if checkpoint else {}), **section},
            "data": {
                "labels": {"names": [f"class {index}" for index in range(CLASSES)]},
                "source": [{"streets": "clear", "count": 1}],
                "unseen": [{"streets": "night", "count": 1}],
                "crop_size": [64, 64],
            },
            "training": {"output_dir": str(tmp_path / "out"), "max_steps": 1, "use_cpu": True},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        recipe = Recipe.load(tmp_path / "recipe.yaml")
        return load_model(recipe, recipe.data.label_space())[0]

    return loaded


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


def test_the_report_names_what_is_new(load, tmp_path, capsys):
    before = tiny.build("segformer")
    before.save_pretrained(tmp_path / "seven")
    model = load(tmp_path / "seven")
    assert "Newly made: decode_head.classifier.* (2)\n" in capsys.readouterr().out
    assert model.config.num_labels == CLASSES and model.config.id2label[18] == "class 18"
    # The same number of classes: the classifier that was trained is gone on with.
    model.save_pretrained(tmp_path / "nineteen")
    again = load(tmp_path / "nineteen")
    assert "Newly made: nothing\n" in capsys.readouterr().out
    assert torch.equal(again.decode_head.classifier.weight, model.decode_head.classifier.weight)
    model.config.id2label = {index: f"LABEL_{index}" for index in range(CLASSES)}  # nobody gave them names
    model.save_pretrained(tmp_path / "nineteen")
    load(tmp_path / "nineteen")
    assert "Newly made: nothing\n" in capsys.readouterr().out
    # As many others: it is replaced, by the same draw each time.
    model.config.id2label = {index: f"thing {index}" for index in range(CLASSES)}
    model.save_pretrained(tmp_path / "nineteen")
    again, once_more = load(tmp_path / "nineteen"), load(tmp_path / "nineteen")
    assert "Newly made: decode_head.classifier.* (2)\n" in capsys.readouterr().out
    kept, drawn = model.state_dict(), again.state_dict()
    changed = [name for name, value in kept.items() if not torch.equal(value, drawn[name])]
    assert changed == ["decode_head.classifier.weight"]  # the bias starts at 0
    assert again.config.id2label[18] == "class 18"
    assert torch.equal(drawn[changed[0]], once_more.decode_head.classifier.weight)
    before.segformer.save_pretrained(tmp_path / "encoder")
    load(tmp_path / "encoder")
    assert "Newly made: decode_head.* (16)\n" in capsys.readouterr().out


def test_anything_else_is_refused_in_one_message(load, tmp_path):
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


def test_a_backbone_under_a_head_is_one_key_of_the_recipe(load, tmp_path, capsys):
    tiny.build("upernet").backbone.save_pretrained(tmp_path / "backbone")
    head = {"backbone": str(tmp_path / "backbone"), "head": "upernet"}
    model = load(**head, head_config={"hidden_size": 16}, config={"drop_path_rate": 0.1})
    said = capsys.readouterr().out
    assert "backbone: UperNetForSemanticSegmentation, " in said and "Newly made: decode_head.* (" in said
    assert model.config.hidden_size == 16 and model.config.backbone_config.drop_path_rate == 0.1
    model.save_pretrained(tmp_path / "again")
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "again").config.num_labels == CLASSES
    with pytest.raises(
        UserError, match="model.backbone: someone/nothing cannot be read .*Hub name that can be reached"
    ):
        load(**head | {"backbone": "someone/nothing"})
