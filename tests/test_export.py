"""The export command, and the components that a checkpoint holds."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

import deft_hf.export as export
from deft_hf import train
from deft_hf.data.domains import Domain
from deft_hf.data.roles import without_labels
from deft_hf.methods.core.batchnorm import batchnorm_modules
from deft_hf.methods.lora import merged
from deft_hf.models.families import FAMILIES
from deft_hf.models.opening import auto_class
from deft_hf.models.own import OWN
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs import export as runs
from deft_hf.runs.segmenter import Segmenter
from deft_hf.trainer.components import load_component, model_folder
from deft_hf.utils import integrity
from deft_hf.utils.errors import UserError, run_command
from deft_hf.utils.files import MARKER
from tests import tiny
from tests.trainer.test_hub import RECIPE
from tests.trainer.test_trainer import Drawn, trainer

PLAIN = {"config.json", "model.safetensors", "preprocessor_config.json"}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    assert one.keys() == two.keys()
    return [name for name, value in one.items() if not torch.equal(value, two[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"component": "usual"},
        {"method": "joint"},
        {"method": "lp_ft", "lora_rank": 2, "lora_alpha": 4.0},
    ],
    ids=["deft", "usual", "joint", "lora"],
)
def test_a_checkpoint_holds_both_components_and_the_line_between(tmp_path, settings):
    run = trainer(tmp_path, ema_decay=0.9, ema_decay_steps=None, save_strategy="steps", save_steps=100, **settings)
    run.train()
    folder = max(tmp_path.glob("checkpoint-*"))
    pathways = run.pathways
    usual, generalized = (state(merged(model)) for model in (pathways.usual, pathways.generalized))
    assert same(usual, generalized) == (not pathways.averages)
    assert same(state(load_component(folder)), state(run.generalized_model))
    assert same(state(load_component(folder, "generalized")), generalized)
    assert same(state(load_component(folder, "usual")), usual)
    assert same(state(load_component(folder, "interpolated", 1.0)), usual)
    found = load_component(folder, "interpolated", 0.25)
    assert type(found) is type(tiny.build("segformer"))
    with torch.no_grad():
        for name, parameter in pathways.usual.named_parameters():
            if name in pathways.initial:
                parameter.mul_(0.25).add_(pathways.initial[name], alpha=0.75)
    expected = state(merged(pathways.usual))
    for name, value in state(found).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_what_a_folder_does_not_hold_is_said(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    checkpoint = tmp_path / "checkpoint-5"
    for which, alpha in (("interpolated", None), ("usual", 0.5), ("interpolated", 1.5)):
        with pytest.raises(UserError, match=f"alpha: found {alpha}, expected a number from 0 to 1 with"):
            load_component(checkpoint, which, alpha)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(UserError, match="components are in checkpoints. It has: checkpoint-10, "):
        load_component(tmp_path, "usual")
    with pytest.raises(UserError, match="holds no model"):
        model_folder(tmp_path.parent)
    (checkpoint / "usual.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="checkpoint-5 is damaged: usual.safetensors is not the"):
        load_component(checkpoint)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A small run with a checkpoint in its first epoch and one in its second; its model has BatchNorm."""
    folder = tmp_path_factory.mktemp("run")
    text = RECIPE.format(publish="").replace("output_dir: out", f"output_dir: {folder}/out")
    (folder / "recipe.yaml").write_text(text)
    train.main([str(folder / "recipe.yaml")])
    return folder / "out"


def test_bfloat16_in_shards_opens_in_a_fresh_process(run_folder, tmp_path, capsys):
    arguments = ["--dtype", "bfloat16", "--max-shard-size", "300KB", "--which", "usual", "--json"]
    export.main([str(run_folder / "checkpoint-2"), str(tmp_path / "small"), *arguments])
    facts = json.loads(capsys.readouterr().out)
    assert facts["max_difference"] == 0 and facts["which"] == "usual" and facts["dtype"] == "bfloat16"
    names = {path.name for path in (tmp_path / "small").iterdir()} - {MARKER}
    assert names == set(facts["files"]) and "model.safetensors" not in names
    assert {path.rpartition(".")[2] for path in names} == {"json", "safetensors"} and len(names) > 4
    found = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "small", dtype="auto")
    assert found.dtype == torch.bfloat16
    expected = load_component(run_folder / "checkpoint-2", "usual").bfloat16()
    assert same(state(expected), state(found))
    assert {path.name for path in tmp_path.iterdir()} == {"small"}


def test_batchnorm_is_taken_anew_on_images_without_labels(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "verify_export", lambda *arguments: {})
    (tmp_path / "client").mkdir()
    place = without_labels(Domain.from_streets("night", count=3, size=(64, 96)))
    for index in range(3):
        place.load(index).save(tmp_path / "client" / f"{index}.png")
    export.main([str(run_folder), str(tmp_path / "there"), "--bn-images", str(tmp_path / "client"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    segmenter = Segmenter.open(str(run_folder))
    before, after = (load_file(folder / "model.safetensors") for folder in (run_folder, tmp_path / "there"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.endswith(("running_mean", "running_var")) for name in changed)
    # The first BatchNorm in the model's order sees what it saw before, whose statistics are known.
    pixels = torch.cat([segmenter.pixels(place.load(index)) for index in range(3)])
    seen = []
    module = segmenter.model.get_submodule(next(iter(batchnorm_modules(segmenter.model))))
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    segmenter.model(pixels)
    name = next(iter(batchnorm_modules(segmenter.model)))
    torch.testing.assert_close(after[f"{name}.running_mean"], seen[0].mean((0, 2, 3)))
    there = Segmenter.open(str(tmp_path / "there"))
    share = np.mean([(there.classes(place.load(i)) != segmenter.classes(place.load(i))).mean() for i in range(3)])
    assert facts["batchnorm_changed"] == pytest.approx(share)
    with pytest.raises(UserError, match="no such folder"):
        export.main([str(run_folder), str(tmp_path / "nowhere"), "--bn-images", str(tmp_path / "missing")])


def test_batchnorm_is_taken_anew_as_in_training(run_folder, tmp_path, monkeypatch, capsys, caplog):
    """In the first epoch on the same crops, so that every bit is the same; in the second on others."""
    monkeypatch.setattr(runs, "verify_export", lambda *arguments: {})
    first, second = run_folder / "checkpoint-1", run_folder / "checkpoint-2"
    monkeypatch.setattr(integrity, "_lacks_statistics", lambda folder: True)
    export.main([str(first), str(tmp_path / "first"), "--bn", "reestimate", "--quiet"])
    assert same(load_file(first / "model.safetensors"), load_file(tmp_path / "first" / "model.safetensors"))
    export.main([str(second), str(tmp_path / "second"), "--bn", "reestimate", "--quiet"])
    before, after = (load_file(folder / "model.safetensors") for folder in (second, tmp_path / "second"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.endswith(("running_mean", "running_var")) for name in changed)
    assert "saved at SIGTERM" not in caplog.text  # the remedy is under way
    export.main([str(second), str(tmp_path / "third"), "--which", "interpolated", "--alpha", "0.5", "--quiet"])
    assert "The BatchNorm statistics are those of the usual component" in caplog.text
    assert caplog.text.count("saved at SIGTERM") == 1

    alone = tmp_path / "elsewhere" / "a" / "b" / "checkpoint-2"
    alone.parent.mkdir(parents=True)
    second.rename(alone)
    try:
        with pytest.raises(UserError, match="takes source images, and no recipe.yaml lies in .*; name a recipe"):
            export.main([str(alone), str(tmp_path / "fourth"), "--bn", "reestimate"])
        recipe = ["--recipe", str(run_folder / "recipe.yaml"), "--json"]
        capsys.readouterr()
        export.main([str(alone), str(tmp_path / "fourth"), "--bn", "reestimate", *recipe])
        assert json.loads(capsys.readouterr().out)["batchnorm_batches"] == 1
    finally:
        alone.rename(second)


def test_the_recipe_of_the_run_says_where_the_encoder_is_and_what_the_model_is_shown(
    run_folder, tmp_path, monkeypatch, capsys
):
    """Of a model that deft_hf does not know; the run's data need not be there any more."""
    sections = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    sections["model"]["encoder"], sections["data"]["window"] = "segformer", [32, 64]
    sections["data"]["root"] = "/gone"
    monkeypatch.delitem(FAMILIES, "segformer")
    shutil.copytree(run_folder / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    arguments = [str(tmp_path / "run" / "checkpoint-2"), str(tmp_path / "out"), "--which", "usual", "--json"]
    with pytest.raises(UserError, match="'segformer' is unknown: name its encoder"):
        export.main(arguments)
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(sections))
    export.main(arguments)
    assert json.loads(capsys.readouterr().out)["logits_shape"][-2:] == [8, 16]


def test_nothing_is_left_of_an_export_that_fails(run_folder, tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("other logits")

    monkeypatch.setattr(runs, "verify_export", broken)
    with pytest.raises(RuntimeError, match="other logits"):
        export.main([str(run_folder), str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already; nothing was touched"):
        export.main([str(run_folder), str(tmp_path / "out")])
    for wrong in (["--max-shard-size", "lots"], ["--onnx", "12"], ["--dtype", "int8"], []):
        with pytest.raises(SystemExit, match="2"):
            run_command(lambda wrong=wrong: export.main(["only-one", *wrong]), "")
    assert "usage: python -m deft_hf.export" in capsys.readouterr().err


def test_a_type_too_small_for_the_weights_is_refused(tmp_path):
    model = tiny.build("segformer")
    with torch.no_grad():
        model.decode_head.classifier.bias[0] = 1e6
    with pytest.raises(UserError, match="classifier.bias has values that torch.float16 cannot hold"):
        export_generalized(model, tmp_path, segmentation_processor(None, None), dtype=torch.float16)


def test_onnx_gives_the_same_logits_or_says_what_is_missing(tmp_path, run_folder, monkeypatch):
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
        with pytest.raises(UserError, match=r"ONNX needs .*pip install 'deft-hf\[onnx\]'"):
            export.main([str(run_folder), str(tmp_path / "out"), "--onnx"])
        return
    monkeypatch.setattr(runs, "verify_export", lambda *arguments: {})
    export.main([str(run_folder), str(tmp_path / "out"), "--onnx"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == PLAIN | {"model.onnx", MARKER}
    from deft_hf.publish.onnx import export_onnx

    with pytest.raises(UserError, match="cannot export beit to ONNX"):
        export_onnx(tiny.build("beit").eval(), tmp_path, (64, 64))


@pytest.mark.parametrize("family", tiny.BUILDERS)
def test_every_family_is_exported_in_shards_and_half_the_bits(family, tmp_path):
    model = tiny.build(family).eval()
    processor = segmentation_processor(None, (64, 64))
    export_generalized(model, tmp_path, processor)
    export_generalized(model, tmp_path, processor, dtype=torch.bfloat16, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    pixels = Drawn(1)[0]["pixel_values"][None]
    rounded = {n: v.bfloat16().float() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    reference = tiny.build(family).eval()
    reference.load_state_dict(rounded)
    found = auto_class(model.config).from_pretrained(tmp_path, dtype=torch.float32).eval()
    family = FAMILIES[model.config.model_type]
    with torch.no_grad():
        assert torch.equal(family.semantic_logits(found, pixels), family.semantic_logits(reference, pixels))
    export_generalized(model, tmp_path, processor)
    tokenizer = set() if family.tokenizer is None else {"tokenizer.json", "tokenizer_config.json"}
    code = {"modeling_deeplabv3plus.py"} if type(model) in OWN else set()
    assert {path.name for path in tmp_path.iterdir()} == PLAIN | tokenizer | code
