import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig, SegformerConfig

from deft_hf.data.transforms import EvalTransform
from deft_hf.models.families import resolve_family
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.card import CardFacts, DataUse, render_card, shareable_tree
from deft_hf.publish.export import export_generalized
from deft_hf.publish.facts import RunFacts
from deft_hf.publish.terms import Terms
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.inference import predict
from deft_hf.scoring.report import class_table, domain_table
from tests import tiny

LABELS = ("road", "sky", "boat")
RECIPE = """\
model: {checkpoint: nvidia/mit-b0}
method: {name: deft, baselines: [joint], decoder_warmup_steps: 30}
data: {root: data/towns, labels: streets, source: [{folder: town}]}
training: {output_dir: outputs/town, max_steps: 300, learning_rate: 6.0e-05}
"""


def scores(seed: int, classes: int = 3) -> dict:
    """Of random predictions; only the first `classes` occur at all."""
    rng = np.random.default_rng(seed)
    matrix = ConfusionMatrix(3)
    matrix.update(*(torch.from_numpy(rng.integers(0, classes, 1000)) for _ in range(2)))
    return matrix.compute(LABELS).to_dict()


RUN = RunFacts(
    method="deft",
    component="generalized",
    average="ema",
    seed=3,
    stages=[{"stage": "warmup", "steps": 30}, {"stage": "decoupled", "steps": 300}],
    batch_size=8,
    learning_rates={"encoder": 6e-5, "decoder": 6e-5},
    weight_decays={"encoder": 0.01, "decoder": 0.01},
    decays={"encoder": 0.97368, "decoder": 0.9},
    initial_share={"encoder": 3.35e-4, "decoder": 0.368},
    distance={"encoder": 1.25, "decoder": 2.5},
    batchnorm="reference",
    train_seconds=4000.3,
    resumed=False,
    processes=1,
    hardware="1 NVIDIA H100",
    versions={"deft_hf": "0.1.0", "torch": "2.13.0"},
    git={"deft_hf": {"commit": "abc", "dirty": False}, "recipe": None},
    labels=list(LABELS),
    scores={"town": scores(0), "coast": scores(1, classes=2), "night": scores(2)},
)
FACTS = CardFacts(
    run=RUN,
    model_name="town-segformer",
    config=SegformerConfig(),
    base_model="nvidia/mit-b0",
    settings={"decoder_warmup_steps": 30, "ema_decay_steps": None, "batchnorm": "reference"},
    source=["town"],
    unseen=["coast", "night"],
    results={
        "deft": RUN.scores,
        "joint": {"town": scores(3), "coast": scores(4, classes=2), "night": scores(5)},
    },
    recipe=RECIPE,
    command="accelerate launch -m deft_hf.train recipes/town.yaml",
    figures={"figures/domain_bars.png": "Bars by domain"},
    data=[
        DataUse("town", "training", 80, hub="ana/towns", terms=Terms("CC0", "https://example.org/cc0", False)),
        DataUse("town", "validation", 20, hub="ana/towns"),
        DataUse("coast", "unseen", 30, hub="ana/coasts", terms=Terms("mine")),
    ],
    license="apache-2.0",
    repo_id="ana/town-segformer",
)


def of_run(**changes):
    """`FACTS` with another run."""
    return replace(FACTS, run=replace(RUN, **changes))


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def block(card: str, language: str) -> str:
    """The one code block of `language`."""
    (code,) = re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)
    return code


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(render_card(FACTS)).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert data.tags == ["deft", "domain-generalization", "semantic-segmentation"]
    assert (data.base_model, data.license) == ("nvidia/mit-b0", "apache-2.0")
    assert data.datasets == ["ana/towns"]  # what it was trained on
    assert data.model_name == "town-segformer"
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    own = FACTS.results["deft"]
    titles = {"town (source, validation)": "town", "coast (unseen)": "coast", "night (unseen)": "night"}
    metrics = {"mean_iou": "mean_iou", "mean_accuracy": "mean_accuracy", "accuracy": "pixel_accuracy"}
    assert found == {(t, m): own[domain][key] for t, domain in titles.items() for m, key in metrics.items()}


def test_model_index_has_one_entry_a_domain_and_plain_numbers():
    single = {"mean_iou": np.float64(0.25), "pixel_accuracy": np.float32(0.5), "mean_accuracy": math.nan}
    results = {"deft": {**FACTS.results["deft"], "night": {**scores(2), **single}}}
    card = render_card(replace(FACTS, results=results))
    ((name, entries),) = (index.values() for index in metadata(card)["model-index"])
    assert name == "town-segformer"
    assert [entry["dataset"]["type"] for entry in entries] == ["town", "coast", "night"]
    assert [(m["type"], m["value"]) for m in entries[2]["metrics"]] == [("mean_iou", 0.25), ("accuracy", 0.5)]
    assert "nan" not in card.split("---\n")[1].lower()


def test_card_without_any_score_has_no_model_index():
    data = metadata(render_card(replace(FACTS, results={"deft": {}}, unseen=[], license=None, data=[])))
    assert data.keys() == {"base_model", "library_name", "pipeline_tag", "tags"}


def test_body_has_the_tables_of_the_report():
    card = render_card(FACTS)
    assert domain_table(FACTS.results, ["town"], ["coast", "night"]) in card
    for domain in ("town", "coast", "night"):
        assert class_table(FACTS.results, domain, LABELS) in card
    assert card.count("Without a pixel in this domain: boat.") == 1
    assert "![Bars by domain](figures/domain_bars.png)" in card
    assert "| `decoder_warmup_steps` | `30` |\n| `ema_decay_steps` | `null` |\n| `batchnorm` | `reference` |" in card
    assert "| encoder | 0.97368 | 0.0335 % | 1.25 |\n| decoder | 0.9 | 36.8 % | 2.5 |" in card
    assert "| warmup | 30 |\n| decoupled | 300 |" in card
    assert "Trained in 1:06:40 (h:mm:ss) on 1 NVIDIA H100, with seed 3." in card
    assert "| deft_hf | 0.1.0 |\n| torch | 2.13.0 |" in card


def test_tables_stand_apart():
    """Markdown takes a table for text where no empty line is before it."""
    lines = render_card(FACTS).splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("| ---")]
    assert len(starts) == 9
    assert all(lines[index - 2] == "" for index in starts)


def test_card_of_a_baseline():
    """No moving average, nothing unseen, all settings default."""
    joint = replace(
        of_run(method="joint", decays=None, initial_share={"encoder": 0.0, "decoder": 0.0}), settings={}, unseen=[]
    )
    card = render_card(joint)
    assert "by the method `joint`" in card and "generalized component" not in card
    assert "All settings of `joint` are the defaults." in card
    assert "| encoder | - | 0 % | 1.25 |" in card
    assert "It was evaluated on no unseen domain" in card


@pytest.mark.parametrize(
    "component, average, words",
    [
        ("generalized", "ema", "moving averages of encoder and decoder that stay biased toward"),
        ("generalized", "debiased_ema", "moving averages of encoder and decoder, corrected for where they started"),
        ("generalized", "swa", "the means of encoder and decoder over the late steps"),
        ("usual", "ema", "the usual component of that training: encoder and decoder as the gradients left them"),
    ],
)  # fmt: skip
def test_card_says_which_model_of_the_training_it_is(component, average, words):
    card = render_card(of_run(component=component, average=average))
    assert words in card and card.count("component of that training") == 1


def test_data_stand_with_their_terms():
    card = render_card(FACTS)
    assert (
        "| [town](https://huggingface.co/datasets/ana/towns) | training | 80 | [CC0](https://example.org/cc0) |"
        in card
    )
    assert "| validation | 20 | not stated |\n" in card
    assert "| unseen | 30 | mine |\n" in card


@pytest.mark.parametrize(
    ("base", "model_type", "said", "warned"),
    [
        ("nvidia/mit-b0", "segformer", None, True),
        ("nvidia/segformer-b5-finetuned-cityscapes-1024-1024", "segformer", None, True),
        (".", "segformer", None, True),  # weights in a folder: most probably NVIDIA's
        ("ana/mit-again", "segformer", None, False),
        ("embedded", "segformer", None, False),
        ("nvidia/mit-b0", "segformer", "bought", False),
        ("facebook/dinov2-small", "upernet", None, False),
    ],
)
def test_weights_that_are_not_for_commercial_use_are_warned_of(base, model_type, said, warned):
    facts = replace(FACTS, base_model=base, config=AutoConfig.for_model(model_type), base_license=said)
    card = render_card(facts)
    assert ("> **Non-commercial.**" in card) == warned
    assert ("[NVIDIA Source Code License for SegFormer](https://github.com/NVlabs/SegFormer" in card) == warned
    assert said is None or f"({said})" in card
    assert ("base_model" in metadata(card)) == (base not in (".", "embedded"))


@pytest.mark.parametrize(
    ("name", "found"),
    [("MIT", {"license": "mit"}), ("Our own (2026)", {"license": "other", "license_name": "our-own-2026"})],
)
def test_a_licence_is_one_that_the_hub_knows_or_other_by_name(name, found):
    data = metadata(render_card(replace(FACTS, license=name)))
    assert {key: value for key, value in data.items() if key.startswith("license")} == found


def test_both_citations_are_there():
    cited = block(render_card(FACTS), "bibtex")
    assert cited.count("{") == cited.count("}")
    assert "Pahk, Jaehyun" in cited
    assert "author  = {{The deft\\_hf authors}},\n  version = {0.1.0}\n}" in cited


def test_what_is_pushed_as_data_names_no_folder_and_no_token():
    tree = {"data": {"root": "/home/ana/data", "source": [{"folder": "town"}]}, "hub_token": "hf_abc", "steps": 1e-5}
    clean = {"data": {"root": "data", "source": [{"folder": "town"}]}, "hub_token": "(left out)", "steps": 1e-5}
    assert shareable_tree(tree) == clean


def test_recipe_and_command_can_be_used_again():
    card = render_card(FACTS)
    assert yaml.safe_load(block(card, "yaml")) == yaml.safe_load(RECIPE)
    assert block(card, "bash") == FACTS.command


def test_base_model_in_a_folder_is_shown_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "nets" / "my-net").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base in (str(tmp_path / "nets" / "my-net"), "nets/my-net", "nets/my-net/", "./nets/my-net"):
        card = render_card(replace(FACTS, base_model=base))
        assert "base_model" not in metadata(card)
        assert "`my-net`" in card and "nets" not in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("/home/ana/data/street7", "street7"),
        ("/home/ana/data/", "data"),
        ("~/data/street7", "street7"),
        ("~bob/street7", "street7"),
        (r"C:\Users\ana\street7", "street7"),
        ("data/street7", "data/street7"),
        ("../street7", "../street7"),
        ("./street7", "./street7"),
        ("nvidia/mit-b0", "nvidia/mit-b0"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_folders_of_the_machine_are_cut_to_their_name(written, shown):
    recipe = f"data: {{root: {written}, source: [{{folder: '{written}'}}]}}\nmodel:\n  checkpoint: {written}"
    command = f"python -m deft_hf.train {written} data.root={written} --config='{written}'"
    card = render_card(replace(FACTS, recipe=recipe, command=command, settings={"folder": written}))
    assert block(card, "yaml") == recipe.replace(written, shown)
    assert block(card, "bash") == command.replace(written, shown)
    assert f"| `folder` | `{shown}` |" in card


def test_tokens_are_left_out():
    recipe = "training: {hub_token: hf_abc, include_num_input_tokens_seen: all}\n"
    card = render_card(replace(FACTS, recipe=recipe, command="HF_TOKEN=hf_abc run training.hub_token='hf_abc' a=b"))
    assert "hf_abc" not in card
    assert yaml.safe_load(block(card, "yaml"))["training"]["include_num_input_tokens_seen"] == "all"
    assert block(card, "bash").endswith(" a=b")


@pytest.mark.parametrize("model_type", ["segformer", *tiny.MASKS])
def test_the_snippet_runs(model_type, tmp_path, monkeypatch, capsys):
    model = tiny.build(model_type).eval()
    card = render_card(replace(FACTS, config=model.config))
    family = resolve_family(model)
    size = (64, 96) if family.side is None else (getattr(model.config, family.side),) * 2
    export_generalized(model, tmp_path / "final", segmentation_processor(None, size, model_type), card)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    code, call = re.findall(r"```python\n(.*?)\n```", (tmp_path / "final" / "README.md").read_text(), re.DOTALL)
    assert code.count('"ana/town-segformer"') == call.count('"ana/town-segformer"') == 1
    found = {}
    exec(code.replace("ana/town-segformer", "final"), found)

    item = EvalTransform(size)(Image.fromarray(pixels), np.zeros((70, 110), np.uint8))
    expected = predict(model, family, item["pixel_values"][None], (70, 110))[0]
    assert torch.equal(found["classes"], expected)
    assert "LABEL_" in capsys.readouterr().out
    exec(call.replace("ana/town-segformer", "final"), found)
    assert {segment["mask"].size for segment in found["segments"]} == {(110, 70)}
    if model_type != "mask2former":  # whose post-processing moves borders
        names = {model.config.id2label[index] for index in expected.unique().tolist()}
        assert {segment["label"] for segment in found["segments"]} == names


def test_unreadable_images_are_counted_by_domain():
    card = render_card(of_run(unreadable={"town": ["1"], "coast": ["2", "3"]}))
    assert "could not be read while it ran: 1 of town, 2 of coast. In training" in card
