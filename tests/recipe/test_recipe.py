from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from transformers import SchedulerType, TrainingArguments

from deft_hf.data.streets import STREETS
from deft_hf.data.unreadable import POLICIES
from deft_hf.methods import METHODS
from deft_hf.models.heads import HEADS
from deft_hf.recipe import DataSection, MethodSection, ModelSection, PublishSection, Recipe, TrainingSection
from deft_hf.recipe.domains import KINDS, FolderEntry, HubEntry, StreetsEntry
from deft_hf.recipe.reference import reference
from deft_hf.recipe.training import PLAIN, is_by_the_entry
from deft_hf.recipe.values import convert
from deft_hf.runs.data import load_domains
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.loss import LossArguments
from deft_hf.utils.errors import UserError

RECIPE = """
model: {checkpoint: embedded}
method: {name: deft, baselines: [joint], decoder_warmup_steps: 100}
data:
  root: ROOT
  labels: streets
  source: [{folder: town, split: train}]
  validation: [{folder: town, split: val}]
  unseen: [{folder: coast}, {streets: night, count: 50}, {hub: user/hills, split: test}]
  image_size: [192, 256]
  crop_size: [160, 208]
training: {output_dir: outputs/town, max_steps: 800, learning_rate: 6e-5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recipe that is right, whose folders exist."""
    for folder in ("town", "coast", "new coast"):
        for kind in ("images/a", "masks", "rgb", "day_images", "night_images"):
            (tmp_path / "data" / folder / kind).mkdir(parents=True)
        splits = {name: [name] for name in ("train", "val", "test", "more")}
        (tmp_path / "data" / folder / "split.json").write_text(json.dumps(splits))
    path = tmp_path / "town.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path / "data")))
    return path


def refusal(path: Path, *overrides: str) -> str:
    """What the user reads, without the file's name at the start of every line."""
    with pytest.raises(UserError) as caught:
        Recipe.load(path, overrides)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


# ---- what a good recipe becomes


def test_a_good_recipe(path: Path):
    recipe = Recipe.load(path)
    assert recipe.method.name == "deft" and recipe.method.baselines == ["joint"]
    assert recipe.data.crop_size == (160, 208) and recipe.data.scale == (0.5, 2.0)
    assert [type(entry) for entry in recipe.data.unseen] == [FolderEntry, StreetsEntry, HubEntry]
    assert [entry.name for entry in recipe.data.unseen] == ["coast", "night", "hills"]
    assert recipe.data.label_space() == STREETS
    assert recipe.publish.private and not recipe.publish.push_to_hub


def test_sections_have_every_field_of_the_arguments_once():
    arguments = {field.name for field in dataclasses.fields(DeFTTrainingArguments)}
    training, method = set(TrainingSection.keys()), set(MethodSection.keys())
    by_itself = {name for name in arguments if is_by_the_entry(name)}
    expected = {field.name for kind in (TrainingArguments, LossArguments) for field in dataclasses.fields(kind)}
    assert training - set(PLAIN) == expected - by_itself | {"metrics"}
    assert method - {"name", "baselines"} | {"method", "method_settings"} == arguments - training - by_itself


def test_declared_defaults_are_those_of_the_arguments():
    defaults = {field.name: field.default for field in dataclasses.fields(DeFTTrainingArguments)}
    for section in (TrainingSection, MethodSection):
        for name, field in section.model_fields.items():
            if name not in ("output_dir", "name", "baselines", *PLAIN):
                assert field.default == defaults[name] and type(field.default) is type(defaults[name]), name


def test_every_key_says_what_it_is():
    for section in (Recipe, ModelSection, MethodSection, DataSection, PublishSection, *KINDS.values()):
        for name, field in section.keys().items():
            assert field.description and field.description.endswith("."), f"{section.__name__}.{name}"


def test_training_arguments(path: Path):
    arguments = Recipe.load(path, ["training.use_cpu=true", "method.ema_decay=0.99"]).training_arguments()
    assert isinstance(arguments, DeFTTrainingArguments)
    assert (arguments.method, arguments.ema_decay, arguments.decoder_warmup_steps) == ("deft", 0.99, 100)
    assert (arguments.max_steps, arguments.learning_rate, arguments.use_cpu) == (800, 6e-5, True)


def test_training_arguments_of_a_baseline(path: Path):
    arguments = Recipe.load(path).training_arguments(method="joint", output_dir="elsewhere")
    assert (arguments.method, arguments.output_dir, arguments.max_steps) == ("joint", "elsewhere", 800)


def test_arguments_that_the_dataclass_refuses_are_the_users_mistake(path: Path):
    recipe = Recipe.load(path, ["method.ema_decay=2"])
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*ema_decay is 2.*expected 0 to 1"):
        recipe.training_arguments()


def test_to_yaml_is_loaded_again_as_the_same_recipe(path: Path):
    overrides = ["training.lr_scheduler_type=polynomial", "training.lr_scheduler_kwargs={power: 9e-1}"]
    text = Recipe.load(path, [*overrides, "data.labels={names: [a, b], ids: {7: 0, 8: 1}}"]).to_yaml()
    path.write_text(text)
    assert Recipe.load(path).to_yaml() == text
    sections = yaml.safe_load(text)
    assert list(sections) == ["model", "method", "data", "training", "publish"]
    assert list(sections["training"]) == [
        "output_dir",
        "max_steps",
        "learning_rate",
        *[o[9:].split("=")[0] for o in overrides],
    ]
    assert sections["training"]["lr_scheduler_kwargs"] == {"power": 0.9}
    assert sections["data"]["labels"] == {"names": ["a", "b"], "ids": {7: 0, 8: 1}}
    assert sections["method"]["ema_decay"] == 0.9999 and sections["publish"]["private"] is True


def test_folders_start_at_the_root(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    town, *_ = Recipe.load(path).data.source
    assert town.resolved_folder("data") == Path("data/town")
    assert FolderEntry(folder="/else/where").resolved_folder("data") == Path("/else/where")
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Recipe.load(path, ["data.root=null"]).data.root is None
    assert Recipe.load(path, ["data.root=~/data"]).data.root == "~/data"
    assert Recipe.load(path, ["training.output_dir=~/out"]).training.output_dir == str(tmp_path / "out")


def test_crops_are_whole_images_by_default(path: Path):
    assert Recipe.load(path, ["data.crop_size=null"]).data.crop_size == (192, 256)


def test_checkpoints(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert Path(Recipe.load(path).model.resolved_checkpoint()).parts[-3:] == ("deft_hf", "assets", "tiny-segformer")
    for hub_name in ("nvidia/mit-b0", "gpt2"):
        assert Recipe.load(path, [f"model.checkpoint={hub_name}"]).model.resolved_checkpoint() == hub_name
    monkeypatch.setenv("HOME", str(tmp_path))
    model = Recipe.load(path, ["model.checkpoint=~/data"]).model
    assert model.resolved_checkpoint() == str(tmp_path / "data")


# ---- overrides


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("training.max_steps=10", lambda recipe: recipe.training.max_steps == 10),
        ("publish.license=mit", lambda recipe: recipe.publish.license == "mit"),
        ("publish={push_to_hub: true, repo_id: me/it}", lambda recipe: recipe.publish.repo_id == "me/it"),
        ("data.unseen.0.name=sea", lambda recipe: recipe.data.unseen[0].name == "sea"),
        ("data.unseen=[{folder: coast}]", lambda recipe: len(recipe.data.unseen) == 1),
        ("data.crop_size.0=96", lambda recipe: recipe.data.crop_size == (96, 208)),
        ("training.run_name=a=b", lambda recipe: recipe.training.run_name == "a=b"),
        ("model.encoder=", lambda recipe: recipe.model.encoder is None),
        (
            "training.lr_scheduler_kwargs.power=0.9",
            lambda recipe: recipe.training.lr_scheduler_kwargs == {"power": 0.9},
        ),
    ],
)
def test_overrides(path: Path, override: str, found):
    assert found(Recipe.load(path, [override]))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.max_steps", "override training.max_steps: found no '=', expected KEY=VALUE"),
        ("training.max_step=3", "training.max_step: unknown key; did you mean max_steps?"),
        ("trainig.max_steps=3", "trainig: unknown key; did you mean training?"),
        ("data.unseen.3.name=x", "data.unseen.3.name: found '3', expected the number of one of 3 items, from 0"),
        ("data.unseen.sea.name=x", "data.unseen.sea.name: found 'sea', expected the number of one of 3 items"),
        ("training.max_steps.x=3", "training.max_steps.x: found 800 before '.x', expected a mapping or a list"),
        ("training.max_steps=[", "override training.max_steps=[, line 1: invalid YAML"),
    ],
)
def test_overrides_that_do_not_fit(path: Path, override: str, text: str):
    assert text in refusal(path, override)


# ---- numbers and types


@pytest.mark.parametrize(
    ("written", "value"), [("6e-5", 6e-5), ("'6e-5'", 6e-5), ("1e-4", 1e-4), ("1", 1.0), (".5", 0.5), ("6.0e-5", 6e-5)]
)
def test_numbers(path: Path, written: str, value: float):
    for key in ("training.learning_rate", "method.encoder_learning_rate"):
        section, name = key.split(".")
        found = getattr(getattr(Recipe.load(path, [f"{key}={written}"]), section), name)
        assert found == value and type(found) is float


@pytest.mark.parametrize(("written", "value"), [("1e2", 100), ("'100'", 100), ("100.0", 100), ("-1", -1)])
def test_whole_numbers(path: Path, written: str, value: int):
    found = Recipe.load(path, [f"training.max_steps={written}"]).training.max_steps
    assert found == value and type(found) is int


def test_text_stays_text(path: Path):
    recipe = Recipe.load(path, ["model.revision=12e45", "training.run_name='1e-4'", "publish.license='no'"])
    assert (recipe.model.revision, recipe.training.run_name, recipe.publish.license) == ("12e45", "1e-4", "no")


def test_words_of_yaml(path: Path):
    training = Recipe.load(
        path, ["training.bf16=yes", "training.eval_strategy=no", "training.report_to=none"]
    ).training
    assert (training.bf16, training.eval_strategy, training.report_to) == (True, "no", "none")


def test_numbers_in_free_mappings(path: Path):
    overrides = ["training.lr_scheduler_kwargs={lr_end: 1e-7, power: .9, steps: [1e3], mode: 7e}"]
    training = Recipe.load(path, overrides).training
    assert training.lr_scheduler_kwargs == {"lr_end": 1e-7, "power": 0.9, "steps": [1000.0], "mode": "7e"}


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.max_steps=abc", 'training.max_steps: found "abc", expected a whole number'),
        ("training.max_steps=true", "training.max_steps: found true, expected a whole number"),
        ("training.max_steps=1.5", "training.max_steps: found 1.5, expected a whole number"),
        ("training.max_steps=null", "training.max_steps: found null, expected a whole number"),
        ("training.learning_rate=yes", "training.learning_rate: found true, expected a number"),
        ("training.learning_rate=.nan", "training.learning_rate: found NaN, expected a number"),
        ("training.bf16=1", "training.bf16: found 1, expected true or false"),
        ("training.bf16='yes'", 'training.bf16: found "yes", expected true or false'),
        (
            "training.run_name=2024-01-05",
            'training.run_name: found "2024-01-05", expected text, or null; put it in quotes',
        ),
        (
            "training.lr_scheduler_kwargs=3",
            "training.lr_scheduler_kwargs: found 3, expected a mapping, or text, or null",
        ),
        ("training.lr_scheduler_type=polynomal", "inverse_sqrt, reduce_lr_on_plateau"),
        ("training.lr_scheduler_type=polynomal", "; did you mean polynomial?"),
        ("training.eval_strategy=epochs", "expected one of no, steps, epoch; did you mean epoch?"),
        ("training.optim=adam", "; did you mean adamw_torch?"),
        ("training.report_to=[1]", "training.report_to: found [1], expected"),
        ("training.log_level=loud", 'training.log_level: found "loud", expected one of'),
        ("method.decoder_warmup_steps=x", 'method.decoder_warmup_steps: found "x", expected a whole number, or null'),
        ("method.batchnorm=reestimated", "expected one of reestimate, reference; did you mean reestimate?"),
        (
            "method.name=deff",
            'method.name: found "deff", expected one of deft, joint, frozen, lp_ft, ldt; did you mean deft?',
        ),
        ("method.baselines=[jont]", "did you mean joint?"),
        ("method.baselines=joint", 'method.baselines: found "joint", expected a list, each item one of deft'),
        ("model.checkpoint=5", "model.checkpoint: found 5, expected text: a Hub name, a folder, or embedded"),
        ("model=5", "model: found 5, expected a mapping with the keys checkpoint, backbone, head"),
        (
            "model={backbone: a/b, head: upnet}",
            "expected one of upernet, dpt, mask2former, deeplabv3plus, or null; did you mean upe",
        ),
        ("publish=", "publish: found null, expected a mapping with the keys push_to_hub"),
        ("publish.private=null", "publish.private: found null, expected true or false"),
        (
            "data.crop_size=[160, -2]",
            "data.crop_size: found [160, -2], expected [height, width], two whole numbers above 0",
        ),
        ("data.crop_size=160", "data.crop_size: found 160, expected [height, width]"),
        ("data.scale=[2, 1]", "data.scale: found [2, 1], expected [low, high], two numbers with 0 < low <= high"),
        ("data.scale=[0, 1]", "data.scale: found [0, 1], expected [low, high]"),
        ("data.blur=[-1, 1]", "data.blur: found [-1, 1], expected [low, high], two numbers with 0 <= low"),
        ("data.flip=1.5", "data.flip: found 1.5, expected a probability, from 0 to 1"),
        ("data.vertical_flip=-1", "data.vertical_flip: found -1, expected a probability, from 0 to 1"),
        ("data.turns=90", "data.turns: found 90, expected true or false"),
        ("data.rotation=270", "data.rotation: found 270, expected an angle in degrees, from 0 to 180"),
        ("data.augment=airial", 'data.augment: found "airial", expected one of street, aerial, microscopy, handheld'),
        ("data.augment=airial", "; did you mean aerial?"),
        ("data.transform=mine", 'data.transform: found "mine", expected package.module:callable'),
        ("data.max_class_share=0", "data.max_class_share: found 0, expected a share, above 0"),
        (
            "data.color_jitter=[1, 1, 1]",
            "data.color_jitter: found [1, 1, 1], expected [brightness, contrast, saturation, hue]",
        ),
        ("data.color_jitter=[1, 1, 1, 0.6]", "the last at most 0.5"),
        ("data.labels=street", 'data.labels: found "street", expected one of streets, cityscapes, '),
        ("data.source=[]", "data.source: found [], expected a list of at least one domain"),
        ("data.source=coast", 'data.source: found "coast", expected a list'),
    ],
)
def test_wrong_values(path: Path, override: str, text: str):
    message = refusal(path, override)
    assert text in message and message.count("\n") == 0


# ---- keys


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("modle={}", "modle: unknown key; did you mean model?"),
        ("xyz=1", "xyz: unknown key, expected one of model, method, data, training, publish"),
        ("learning_rate=1", "learning_rate: unknown key; it belongs to training: training.learning_rate"),
        ("checkpoint=x", "checkpoint: unknown key; it belongs to model: model.checkpoint"),
        ("method.learning_rate=1", "unknown key; it belongs to training: training.learning_rate"),
        ("method.method=deft", "method.method: unknown key; did you mean name?"),
        ("training.ema_decay=1", "training.ema_decay: unknown key; it belongs to method: method.ema_decay"),
        ("training.method=deft", "training.method: unknown key; it belongs to method: method.name"),
        ("training.lr=1", "training.lr: unknown key; did you mean learning_rate?"),
        ("training.batch=1", "training.batch: unknown key; did you mean batch_size?"),
        ("training.num_epochs=1", "training.num_epochs: unknown key; did you mean epochs?"),
        ("training.patience=1", "training.patience: unknown key; did you mean early_stop?"),
        ("training.learnin_rate=1", "training.learnin_rate: unknown key; did you mean learning_rate?"),
        ("training.overwrite_output_dir=true", "unknown key; transformers 5 removed it; choose another"),
        ("training.warmup_ratio=.1", "a warmup_steps below 1 is a share of all steps"),
        ("training.evaluation_strategy=no", "unknown key; transformers 5 calls it eval_strategy"),
        ("training.no_cuda=true", "training.no_cuda: unknown key; transformers 5 calls it use_cpu"),
        ("data.unseen.0.fold=1", "data.unseen.0.fold: unknown key; did you mean folder?"),
        ("data.unseen.1.image_column=x", "data.unseen.1.image_column: unknown key"),
        ("data.unseen.0.hub=a/b", "data.unseen.0: found folder and hub of the keys folder, hub, streets"),
        ("data.unseen=[{}]", "data.unseen.0: found none of the keys folder, hub, streets, expected exactly one"),
        ("data.unseen=[{foldr: a}]", "expected exactly one; did you mean folder?"),
        ("data.unseen=[coast]", 'data.unseen.0: found "coast", expected a mapping with one of the keys'),
        ("data.unseen=[{streets: nigth, count: 3}]", "did you mean night?"),
        ("data.unseen=[{streets: night}]", "data.unseen.0.count: missing, expected a whole number above 0"),
    ],
)
def test_wrong_keys(path: Path, override: str, text: str):
    message = refusal(path, override)
    assert text in message and message.count("\n") == 0


def test_hints_name_keys_that_exist():
    known = set(TrainingSection.keys())
    for gone in ("evaluation_strategy", "no_cuda", "per_gpu_train_batch_size", "per_gpu_eval_batch_size"):
        assert TrainingSection.advice[gone].split()[-1] in known
    for gone, hint in TrainingSection.advice.items():
        assert gone not in known, hint
        if hint.startswith("did you mean "):
            assert hint.removeprefix("did you mean ").rstrip("?") in known
    assert {"warmup_steps", "optim", "train_sampling_strategy"} <= known


def test_every_mistake_is_named_on_a_line_of_its_own(path: Path):
    message = refusal(
        path, "modle=1", "training.max_steps=x", "training.seed=y", "data.unseen.0.fold=1", "method.name=z"
    )
    keys = {line.split(": ")[0] for line in message.split("\n")}
    assert keys == {"modle", "training.max_steps", "training.seed", "data.unseen.0.fold", "method.name"}


@pytest.mark.parametrize("key", ["model.checkpoint", "training.output_dir", "data.labels", "data.source", "training"])
def test_missing_keys(path: Path, key: str):
    recipe = yaml.safe_load(path.read_text())
    *section, name = key.split(".")
    del (recipe[section[0]] if section else recipe)[name]
    path.write_text(yaml.safe_dump(recipe))
    assert refusal(path).startswith(f"{key}: missing, expected ")


# ---- the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": the file is empty, expected the sections model, method, data, training and publish"),
        ("# nothing yet\n", ": the file is empty"),
        ("- model\n", ': found ["model"], expected the sections'),
        ("model:\n\tcheckpoint: x\n", ", line 2: invalid YAML: found character"),
        ("model: {}\ndata: [\n", ", line 3: invalid YAML: "),
        ("model: *base\n", ", line 1: invalid YAML: found undefined alias"),
        ("a: {[b]: 1}\n", ", line 1: invalid YAML: found unhashable key"),
        ("a: \x01\n", ": invalid YAML: unacceptable character"),
        (
            "training:\n  seed: 1\n  max_steps: 2\n  seed: 3\n",
            ": training.seed: is there twice, on lines 2 and 4; keep one",
        ),
        ("data:\n  unseen:\n  - {folder: a}\n  - {folder: a, folder: b}\n", ": data.unseen.1.folder: is there twice"),
    ],
)
def test_files_that_are_no_recipe(path: Path, text: str, message: str):
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_files_that_cannot_be_read(tmp_path: Path):
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, why in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory"), (binary, "UTF-8")):
        assert "cannot read the recipe" in refusal(path) and why in refusal(path)


def test_merge_keys_are_no_repetition(path: Path):
    text = path.read_text().replace(
        "[{folder: coast}", "[&coast {folder: coast}, {<<: *coast, name: sea, images: rgb}"
    )
    path.write_text(text.replace("[&coast {folder: coast},", "[&coast {folder: new coast, name: bay},"))
    assert [entry.name for entry in Recipe.load(path).data.unseen[:2]] == ["bay", "sea"]


# ---- what contradicts what


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "model.checkpoint=./nowhere",
            "model.checkpoint: found './nowhere', which is neither a folder here nor a Hub name",
        ),
        ("model.checkpoint=/nowhere/at/all", "model.checkpoint: found '/nowhere/at/all'"),
        ("model.checkpoint=models/mine/last", "model.checkpoint: found 'models/mine/last'"),
        ("model={}", "model.checkpoint: missing, expected a Hub name, a folder, or embedded"),
        ("model.backbone=a/b", "model.backbone: found a/b beside model.checkpoint embedded; keep one of them"),
        (
            "model.head=upernet",
            "model.head: found beside a model.checkpoint, which has its head; name a model.backbone",
        ),
        (
            "model={backbone: a/b}",
            "model.head: missing, expected what to put on the backbone, one of upernet, dpt, mask2",
        ),
        (
            "model={backbone: ./nowhere, head: dpt}",
            "model.backbone: found './nowhere', which is neither a folder here",
        ),
        ("model={backbone: a/b, head: dpt, encoder: x}", "model.encoder: found x, but under a head the encoder is"),
        ("model={backbone: embedded, head: dpt}", "model.backbone: found embedded, which is a model.checkpoint"),
        ("method.baselines=[deft]", "method.baselines: found deft, which is already method.name"),
        ("method.baselines=[joint, joint]", "method.baselines: found joint twice"),
        ("data.labels={names: [a, b], ids: {0: 9}}", "data.labels.ids: "),
        ("data.root=nowhere", "data.root: found no folder nowhere"),
        ("data.unseen.0={folder: coast, masks: labels}", "coast/labels; name the one that has the masks"),
        ("data.unseen.0={folder: coast, images: photos}", "data.unseen.0.images: found no folder "),
        (
            "data.unseen.0={folder: coast, split: tset}",
            "split.json: has no split 'tset'; found train, val, test, more",
        ),
        ("data.root=nowhere", "override data.root=PATH"),
        ("data.unseen.0.folder=sea", "/data/sea; correct it, or override data.root=PATH"),
        ("data.unseen.2.hub=a/b/c", "data.unseen.2.hub: found 'a/b/c', expected a Hub name (owner/name) or a folder"),
        ("data.unseen.0.folder=new coast", "data.unseen.0.name: found 'new coast', expected a name for metric keys"),
        ("data.unseen.0.name=a/b", "data.unseen.0.name: found 'a/b'"),
        ("data.unseen.0.name=night", "data.unseen: found night as the name of several domains"),
        ("data.unseen.0.name=town", "data.unseen: found town as the name of several domains"),
        (
            "data.unseen.0.labels=mapillary",
            "data.unseen.0.labels: found mapillary, whose classes are not those of data.",
        ),
        ("data.unseen.0.weight=2", "data.unseen.0.weight: found 2.0, but only source domains are drawn by weight"),
        ("data.source=[{folder: town, split: train, weight: 2}, {folder: town, split: more}]", "no weight for town"),
        ("data.unseen.0={folder: town, name: sea}", "data.unseen.0: found images that town of source"),
        ("data.unseen.0={folder: ./town/../town, name: sea}", "data.unseen.0: found images that town of source"),
        ("data.unseen.0={folder: town, images: images/a, name: sea}", "data.unseen.0: found images that town of"),
        ("data.validation.0={folder: town, split: train}", "data.validation.0: found images that town of source has"),
        ("data.validation.0={folder: town}", "data.validation.0: found images that town of source has, on which no"),
        (
            "data.crop_size=[400, 100]",
            "found [400, 100], larger than images ever are (image_size x scale[1] = [384, 512])",
        ),
        ("data.stride=[32, 32]", "data.stride: found [32, 32] without data.window"),
        (
            "training.load_best_model_at_end=true",
            "metric_for_best_model: missing, expected one of town_mean_iou, town_mean_accuracy",
        ),
        ("training.lr_scheduler_type=reduce_lr_on_plateau", "metric_for_best_model: missing, expected one of town_"),
        ("training.metric_for_best_model=loss", "found loss, expected one of town_mean_iou"),
        ("training.metrics=[iou, dice]", "training.metrics: found dice, expected names among f_score, frequency_"),
        ("training.metric_for_best_model=eval_coast_mean_iou", "unseen domains are reported, never selected on"),
        ("publish.push_to_hub=true", "publish.repo_id: missing, expected owner/name"),
        (
            "publish.data_licenses={oslo: CC0}",
            "publish.data_licenses.oslo: found no domain of this name",
        ),
        ("publish.repo_id=a/b/c", "publish.repo_id: found 'a/b/c', expected owner/name"),
    ],
)
def test_contradictions(path: Path, override: str, text: str):
    message = refusal(path, override)
    assert text in message and message.count("\n") == 0


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("folder: coast, layout: mapillary", "data.unseen.0.split: found None, expected one of train, v"),
        ("folder: coast, layout: mapillary, split: val, masks: m", "data.unseen.0.masks: found beside layout, which"),
        ("folder: town, layout: gtav, name: sea", "data.unseen.0: found images that town of source"),
    ],
)
def test_contradictions_of_a_layout(path: Path, entry: str, text: str):
    message = refusal(path, "data.labels=cityscapes", f"data.unseen.0={{{entry}}}")
    assert text in message and message.count("\n") == 0


def test_an_absolute_path_is_the_same_place(path: Path, tmp_path: Path):
    town = tmp_path / "data" / "town"
    assert "data.unseen.0: found images" in refusal(path, f"data.unseen.0={{folder: {town}, split: train, name: sea}}")


def test_lists_with_an_image_in_common_are_not_two_splits(path: Path, tmp_path: Path):
    lists = tmp_path / "data" / "town" / "split.json"
    splits = json.loads(lists.read_text())
    assert not {*splits["train"]} & {*splits["val"]}
    lists.write_text(json.dumps(splits | {"val": [*splits["val"], splits["train"][0]]}))
    assert "data.validation.0: found images that town of source has" in refusal(path)


@pytest.mark.parametrize(
    ("source", "scored", "shared"),
    [
        ("train", "validation", False),
        ("train[:80%]", "train[80%:]", False),
        ("train[:900]", "train[900:]", False),
        ("train", "train[:10%]", True),
        ("train[:80%]", "train[-30%:]", True),
        ("train[:900]", "train[899:]", True),
        ("train+validation", "validation", True),
        ("train[:80%]", "train[900:]", False),  # the number of rows would tell
        ("train[", "train[:5]", False),
    ],
)
def test_splits_of_the_hub_with_rows_in_common_are_not_two(path: Path, source, scored, shared):
    hubs = [f"{{hub: user/hills, split: {json.dumps(split)}, name: x}}" for split in (source, scored)]
    settings = [f"data.source=[{hubs[0]}]", f"data.validation=[{hubs[1]}]", "data.unseen=[{folder: coast}]"]
    if shared:
        assert "data.validation.0: found images that x of source has" in refusal(path, *settings)
    else:
        Recipe.load(path, settings)


SHARE = "data.validation.0={folder: town, split: 0.2}"


def test_a_share_is_held_out_and_source_takes_the_rest(path: Path):
    recipe = Recipe.load(path, ["data.source.0={folder: town}", SHARE, "data.unseen=[{folder: coast, split: 0.5}]"])
    assert (recipe.data.source[0].split, recipe.data.source[0].portion) == (0.8, 0.8)
    assert (recipe.data.validation[0].split, recipe.data.validation[0].portion) == (0.2, -0.2)
    assert recipe.data.unseen[0].portion == -0.5
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe
    Recipe.load(path, ["data.source.0={folder: town, split: 0.5}", SHARE])
    Recipe.load(
        path, ["data.source.0={folder: town}", SHARE, "data.unseen=[{folder: town, split: 0.1, corruption: fog}]"]
    )


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.source.0={folder: town, split: 0.9}", SHARE], "data.validation.0: found images that town of source"),
        (
            ["data.source.0={folder: town, split: 0.8, images: images/a}", SHARE],
            "data.validation.0: found images that",
        ),
        (["data.source.0={folder: town, split: train}", SHARE], "data.validation.0: found images that town of source"),
        (["data.source.0={folder: town}", SHARE, "data.unseen=[{folder: town, split: 0.1}]"], "data.unseen.0: found"),
        (
            ["data.source.0.split=1.0"],
            "data.source.0.split: found 1.0, expected text: the name of a split; or a share",
        ),
        (
            ["data.source.0={folder: town, layout: cityscapes, split: 0.8}"],
            "split: found 0.8, expected one of train, val",
        ),
    ],
)
def test_shares_that_overlap_are_refused(path: Path, overrides: list[str], message: str):
    assert message in refusal(path, *overrides)


def test_other_images_of_one_place_are_no_leak(path: Path):
    folders = [f"{{folder: town, images: {time}_images, name: {time}}}" for time in ("day", "night")]
    hubs = [f"{{hub: user/hills, split: train, image_column: {time}, name: {time}}}" for time in ("day", "night")]
    for seen, other in (folders, hubs):
        Recipe.load(path, [f"data.source=[{seen}]", f"data.unseen=[{other}]"])
    streets = (f"{{streets: clear, count: 3, seed: {seed}, name: s{seed}}}" for seed in range(3))
    Recipe.load(path, [f"data.{key}=[{next(streets)}]" for key in ("source", "validation", "unseen")])


def test_a_length_may_be_left_to_the_defaults(path: Path):
    path.write_text(path.read_text().replace("max_steps: 800, ", ""))
    assert Recipe.load(path).training.max_steps == -1
    assert Recipe.load(path, ["training.num_train_epochs=2"]).training.num_train_epochs == 2
    assert refusal(path, "training.max_steps=0").startswith("training.max_steps: found nothing to train")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["training.epochs=2"], "training.epochs: found 2.0 beside training.max_steps 800; keep one of them"),
        (
            ["training.batch_size=4", "training.gradient_accumulation_steps=2"],
            "training.batch_size: found 4 beside training.gradient_accumulation_steps 2; keep one of them",
        ),
        (["training.epochs=0"], "training.epochs: found 0, expected a number above 0"),
        (["training.early_stop=3", "data.validation=[]"], "training.early_stop: found 3 without data.validation"),
        (
            ["training.early_stop=3", "training.eval_strategy=steps"],
            "training.early_stop: found 3 without training.load_best_model_at_end",
        ),
    ],
)
def test_plain_words_stand_alone(path: Path, overrides: list[str], message: str):
    assert message in refusal(path, *overrides)


def test_something_to_score_is_required(path: Path):
    assert refusal(path, "data.validation=[]", "data.unseen=[]").startswith("data.validation: missing")


def test_a_stride_fits_the_window(path: Path):
    assert Recipe.load(path, ["data.window=[64, 64]"]).data.stride is None
    assert Recipe.load(path, ["data.window=[64, 64]", "data.stride=[64, 32]"]).data.stride == (64, 32)
    message = refusal(path, "data.window=[64, 64]", "data.stride=[65, 32]")
    assert message.startswith("data.stride: found [65, 32], expected at most data.window, [64, 64]")


def test_a_checkpoint_is_chosen_on_validation_alone(path: Path):
    for metric in ("town_mean_iou", "eval_town_mean_iou"):
        recipe = Recipe.load(path, [f"training.metric_for_best_model={metric}", "data.unseen.0.name=tow"])
        assert recipe.training.metric_for_best_model == metric
    asked = "training.metrics=[f_score, calibration_error]"
    Recipe.load(path, [asked, "training.metric_for_best_model=town_mean_f_score"])
    found = refusal(path, asked, "training.metric_for_best_model=town_dice")
    assert (
        "found town_dice, expected one of town_mean_iou, town_mean_accuracy, town_pixel_accuracy, town_mean_f" in found
    )
    # `town_mean_iou` begins with neither name alone: the longest name is the one that is meant.
    names = ["data.validation.0.name=town", "data.unseen.0.name=town_hall"]
    assert "never selected on" in refusal(path, *names, "training.metric_for_best_model=town_hall_mean_iou")
    assert refusal(path, "data.validation=[]", "training.load_best_model_at_end=true").startswith(
        "data.validation: missing"
    )


def test_all_sources_weighted_or_none(path: Path):
    source = "data.source=[{folder: town, split: train, weight: 2}, {folder: new coast, name: bay, weight: 1e-1}]"
    assert [entry.weight for entry in Recipe.load(path, [source]).data.source] == [2.0, 0.1]


# ---- corrupted copies


def test_corrupted_copies_of_validation_are_unseen_domains(path: Path):
    recipe = Recipe.load(
        path,
        [
            "data.unseen=[{folder: town, split: val, corruption: fog, severity: '3'}, "
            "{folder: town, split: val, corruption: fog}, {streets: night, count: 5, corruption: jpeg, severity: 5}, "
            "{hub: user/hills, split: test, corruption: snow, name: blizzard}, {folder: coast}]"
        ],
    )
    unseen = recipe.data.unseen
    assert [entry.name for entry in unseen] == ["town_fog_3", "town_fog", "night_jpeg_5", "blizzard", "coast"]
    assert [(entry.corruption, entry.severity) for entry in unseen] == [
        ("fog", 3),
        ("fog", None),
        ("jpeg", 5),
        ("snow", None),
        (None, None),
    ]
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path).data == recipe.data


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.unseen.0.corruption=frog", "expected one of gaussian_noise, shot_noise"),
        ("data.unseen.0.corruption=frog", "; did you mean fog?"),
        (
            "data.unseen.0.severity=6",
            "data.unseen.0.severity: found 6, expected a whole number from 1 to 5, or null for all five",
        ),
        ("data.unseen.0={folder: coast, corruption: fog, severity: all}", 'found "all", expected a whole number from'),
        ("data.unseen.0.severity=3", "data.unseen.0.severity: found 3 without a corruption; name one, or remove it"),
        (
            "data.validation.0.corruption=fog",
            "data.validation.0.corruption: found fog, but only unseen domains are corrupted",
        ),
        (
            "data.source.0={folder: town, split: train, corruption: fog, severity: 1}",
            "data.source.0.corruption: found",
        ),
        (
            "data.unseen.0={folder: town, split: train, corruption: fog}",
            "data.unseen.0: found images that town of source",
        ),
        ("data.unseen.0={folder: town, corruption: fog}", "data.unseen.0: found images that town of source"),
        ("data.unseen.0={folder: town, split: val, name: copy}", "data.unseen.0: found images that town of source"),
    ],
)
def test_wrong_corruptions(path: Path, override: str, text: str):
    message = refusal(path, override)
    assert text in message and message.count("\n") == 0


def test_a_corrupted_entry_becomes_a_corrupted_domain(path: Path):
    streets = [
        f"data.{section}=[{{streets: clear, count: 2, seed: {seed}, size: [24, 32]}}]"
        for section, seed in (("source", 0), ("validation", 1))
    ]
    unseen = "data.unseen=[{streets: clear, count: 2, seed: 1, size: [24, 32], corruption: contrast, severity: 4}]"
    domains = load_domains(Recipe.load(path, [*streets, unseen, "data.check=false"]).data)
    (validation,), (found,) = domains.validation, domains.unseen
    assert (found.name, found.ids) == ("clear_contrast_4", ["000000_4", "000001_4"])
    (clean, mask), (image, same_mask) = validation.load(1), found.load(1)
    assert (mask == same_mask).all()
    assert np.std(image) == pytest.approx(0.1 * np.std(clean), rel=0.2)


def test_choices_are_those_of_what_they_choose():
    assert get_args(DataSection.model_fields["unreadable"].annotation) == POLICIES
    with pytest.raises(ValueError, match=f"expected one of {', '.join(HEADS)}, or null"):
        ModelSection(backbone="a/b", head="linear")


# ---- methods of other packages


class Nearness:
    """What `register_method` would add."""

    @dataclasses.dataclass
    class Settings:
        nearness_weight: float = dataclasses.field(default=0.0, metadata={"help": "Weight of the nearness."})
        nearness: str | None = dataclasses.field(
            default=None, metadata={"help": "How it is measured.", "choices": ["l1", "l2"]}
        )


def test_a_registered_method_brings_its_keys(path: Path, monkeypatch: pytest.MonkeyPatch):
    overrides = ["method.name=near", "method.nearness_weight=1e-3", "method.nearness=l1"]
    assert 'method.name: found "near", expected one of deft, joint' in refusal(path, *overrides)
    monkeypatch.setitem(METHODS, "near", Nearness)
    recipe = Recipe.load(path, overrides)
    assert recipe.method.settings_of("near") == {"nearness_weight": 0.001, "nearness": "l1"}
    assert recipe.method.settings_of("joint") == {}
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path).method == recipe.method
    assert "| `nearness_weight` | Weight of the nearness. | a number | `0.0` |" in reference()
    assert 'nearness: found "l3", expected one of l1, l2, or null' in refusal(path, "method.nearness=l3")
    assert "unknown key; did you mean nearness_weight?" in refusal(path, "method.nearness_weigth=1")


def test_a_registered_setting_at_its_default_makes_no_other_recipe(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "near", Nearness)
    assert Recipe.load(path, ["method.nearness_weight=0"]).method == Recipe.load(path).method


# ---- the reference of keys


def test_the_reference_has_every_key():
    text = reference()
    for section in (ModelSection, MethodSection, DataSection, TrainingSection, PublishSection, *KINDS.values()):
        for key in section.keys():
            assert f"`{key}`" in text
    assert "| `max_steps` |" in text and "| `crop_size` |" in text


# ---- sections in Python


def test_sections_are_built_in_python():
    training = TrainingSection(output_dir="out", max_steps=10, learning_rate=6e-5)
    assert training.model_dump(exclude_unset=True) == {"output_dir": "out", "max_steps": 10, "learning_rate": 6e-5}
    with pytest.raises(ValidationError, match="max_step\n.*unknown key; did you mean max_steps"):
        TrainingSection(output_dir="out", max_step=10)


@pytest.mark.parametrize(
    ("hint", "written", "value"),
    [
        (int, "1e2", 100),
        (int, 1.5, 1.5),
        (int, True, True),
        (float, "6e-5", 6e-5),
        (float | None, "6e-5", 6e-5),
        (str | None, "6e-5", "6e-5"),
        (str | bool, True, True),
        (bool, "yes", "yes"),
        (tuple[int, float], ["1", "2"], (1, 2.0)),
        (tuple[int, float], ["1"], ["1"]),
        (list[float], ["1e0", 2], [1.0, 2]),
        (dict, {"a": ["1e-7", "x"]}, {"a": [1e-7, "x"]}),
        (dict[str, Any] | str | None, {"a": {"b": "1e-7"}}, {"a": {"b": 1e-7}}),
        (dict[str, object], {"a": "1e-7"}, {"a": "1e-7"}),
        (dict[str, float], {"a": "1e-7"}, {"a": 1e-7}),
        (SchedulerType, "linear", SchedulerType.LINEAR),
        (SchedulerType, "lin", "lin"),
        (Literal["no", "steps"], False, "no"),
    ],
)
def test_convert(hint: Any, written: Any, value: Any):
    found = convert(hint, written)
    assert found == value and type(found) is type(value)


def test_recipes_load_no_torch_before_they_are_read():
    code = "import sys, deft_hf.recipe; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_whose_scores_would_share_a_key_are_refused(path: Path):
    scored = ("data.unseen=[{streets: night, count: 2, name: a}, {streets: fog, count: 2, name: a_usual}]",)
    assert "data: found the domains a and a_usual; eval_a_usual_mean_iou would be" in refusal(path, *scored)
