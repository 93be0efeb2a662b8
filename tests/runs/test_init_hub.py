"""A data set in the Hub's format becomes a recipe that trains as it is written."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import close_session
from PIL import Image

from deft_hf.data.hub import load_split
from deft_hf.models.processor import segmentation_processor
from deft_hf.recipe import Recipe
from deft_hf.runs import places
from deft_hf.runs.arguments import check_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.evaluate import evaluate
from deft_hf.runs.init import init
from deft_hf.runs.init.hub import find_in_hub
from deft_hf.runs.train import train
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.hub import Repository

SHORT = ["training.max_steps=1", "training.dataloader_num_workers=0", "method.name=joint", "data.check=false"]
NAMES = datasets.Sequence(datasets.ClassLabel(names=["soil", "crop", "weed"]))
SIZE = (40, 56)


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(count, image="image", mask="mask", **more):
    """Pictures and masks with the ids 0, 1 and 2."""
    random = np.random.default_rng(0)
    masks = [np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // (7 + number) % 3 for number in range(count)]
    pictures = {
        image: [Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)) for _ in range(count)],
        mask: [Image.fromarray(drawn.astype(np.uint8)) for drawn in masks],
    }
    features = {image: datasets.Image(), mask: datasets.Image()}
    columns = {key: values for key, (values, _) in more.items()}
    features |= {key: feature for key, (_, feature) in more.items()}
    return datasets.Dataset.from_dict({**pictures, **columns}, datasets.Features(features))


def test_a_saved_split_is_cut(tmp_path):
    rows(10, "pixel_values", "label", there=([[0, 1, 2]] * 10, NAMES)).save_to_disk("field")
    found = init("field", model="embedded", progress=False)
    recipe = Recipe.load(found.recipe)
    check_arguments(recipe)
    assert recipe.data.labels == {"names": ["soil", "crop", "weed"]}
    domains = load_domains(recipe.data)
    assert (recipe.data.source[0].split, recipe.data.validation[0].split) == ("train[:80%]", "train[80%:]")
    assert (len(domains.source[0]), len(domains.validation[0])) == (8, 2)


def test_splits_of_parquet_files_are_kept(tmp_path):
    names = datasets.ClassLabel(names=["spring", "autumn"])  # of the whole image
    (tmp_path / "field" / "data").mkdir(parents=True)
    for split, count in (("train", 6), ("validation", 3), ("test", 2)):
        rows(count, season=([0] * count, names)).to_parquet(f"field/data/{split}-00000-of-00001.parquet")
    recipe = Recipe.load(init("field", model="embedded", progress=False).recipe)
    check_arguments(recipe)
    entries = [getattr(recipe.data, section)[0] for section in ("source", "validation", "unseen")]
    assert [entry.split for entry in entries] == ["train", "validation", "test"]
    assert recipe.data.labels == {"names": ["class_0", "class_1", "class_2"]}
    domains = load_domains(recipe.data)
    assert [len(each[0]) for each in (domains.source, domains.validation, domains.unseen)] == [6, 3, 2]


def without_masks(found, which):
    """The rows with no mask in some of them."""
    masks = [None if index in which else mask for index, mask in enumerate(found["mask"])]
    there = datasets.Dataset.from_dict({"mask": masks}, datasets.Features({"mask": datasets.Image()}))
    return datasets.concatenate_datasets([found.remove_columns("mask"), there], axis=1)


def test_a_split_with_some_masks_is_left_out():
    datasets.DatasetDict({"train": rows(6), "test": without_masks(rows(3), [1])}).save_to_disk("field")
    found = find_in_hub("field")
    assert [part.entry["split"] for part in found.parts] == ["train"]
    assert found.notes == ["field: 1 of 3 rows of the split test have no mask, it is left out"]


def test_columns_that_cannot_be_told_are_named():
    rows(4, "before", "after", site=(["a"] * 4, datasets.Value("string"))).save_to_disk("field")
    with pytest.raises(UserError) as caught:
        init("field", model="embedded", progress=False)
    told = str(caught.value)
    assert "found before (Image), after (Image), site (string); expected" in told and "pixel_values" in told
    assert "source: [{hub: field, split: train, image_column: COLUMN, mask_column: COLUMN}]" in told


# ---- from a server


def parquet(found):
    held = io.BytesIO()
    found.to_parquet(held)
    return held.getvalue()


@pytest.fixture
def serve(hub, tmp_path, monkeypatch):
    """Puts files into the data set lab/field of a Hub, of which nothing is in the cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(files, **options):
        hub.repositories["datasets/lab/field"] = Repository(False, branches={"main": files}, **options)

    return put


def seasons(default=None):
    """Two configurations of two splits, of which `wet` has names and a test split without masks."""
    files, card = {}, ["---", "configs:"]
    for config in ("dry", "wet"):
        splits = {"train": rows(4), "validation": rows(2)}
        if config == "wet":
            test = without_masks(rows(3), [0, 1, 2])
            splits = {
                key: found.add_column("classes", [[0, 1, 2]] * len(found), feature=NAMES)
                for key, found in {**splits, "test": test}.items()
            }
        files |= {f"{config}/{split}.parquet": parquet(found) for split, found in splits.items()}
        card += [f"- config_name: {config}", *(["  default: true"] if config == default else []), "  data_files:"]
        card += [f"  - {{split: {split}, path: {config}/{split}.parquet}}" for split in splits]
    return files | {"README.md": "\n".join([*card, "---", "# Field", ""]).encode()}


@pytest.mark.usefixtures("unverified")
def test_a_configuration_is_named_and_trains(serve, monkeypatch):
    monkeypatch.setattr(places, "_SEVERITIES", (3,))
    serve(seasons())
    with pytest.raises(UserError, match="lab/field: has the configurations dry, wet; name one of them as config"):
        init("lab/field", model="embedded", progress=False)
    with pytest.raises(UserError, match="has the configurations dry, wet; name one of them as config"):
        load_split("lab/field", "train", None, None)
    with pytest.raises(UserError, match="config: found soggy, but lab/field has the configurations dry, wet"):
        init("lab/field", model="embedded", config="soggy", progress=False)
    found = init("lab/field", model="embedded", config="wet", progress=False)
    assert found.images == {"field": 6, "field_test": 3}
    recipe = Recipe.load(found.recipe, SHORT)
    assert recipe.data.labels == {"names": ["soil", "crop", "weed"]}
    (place,) = recipe.data.unseen
    assert (place.hub, place.config, place.split, place.labels) == ("lab/field", "wet", "test", "none")
    out = train(recipe)
    assert (out / "model.safetensors").is_file()
    assert json.loads((out / "results/places.json").read_text())["field_test"]["images"] == 3
    assert sorted((out / "to_label/field_test.txt").read_text().split()) == ["000000", "000001", "000002"]


def test_a_model_is_evaluated_on_a_place_of_the_hub(serve, monkeypatch):
    monkeypatch.setattr(places, "_SEVERITIES", (3,))
    serve(seasons())
    monkeypatch.setattr(tiny, "NUM_LABELS", 3)
    tiny.segformer().save_pretrained("model")
    segmentation_processor(None, SIZE).save_pretrained("model")
    recipe = Recipe.load(init("lab/field", model="embedded", config="wet", progress=False).recipe, SHORT)
    found = evaluate("model", recipe, "scores", progress=False)
    assert list(found.scores) == found.validation and found.unseen == []
    (place,) = found.places
    assert place.place == "field_test" and sum(place.shares["model"]) == pytest.approx(1)
    assert json.loads(Path("scores/results/places.json").read_text())["field_test"]["images"] == 3
    assert sorted(Path("scores/to_label/field_test.txt").read_text().split()) == ["000000", "000001", "000002"]


def test_the_default_configuration_is_taken_and_said(serve):
    serve(seasons(default="dry"))
    found = find_in_hub("lab/field")
    assert [part.entry["config"] for part in found.parts] == ["dry", "dry"]
    assert found.notes == ["lab/field: took its default configuration dry; to choose another (config): wet"]


def test_a_repository_of_image_files(serve):
    files = {"id2label.json": json.dumps({0: "soil", 1: "crop", 2: "weed"}).encode()}
    for split, count in (("train", 5), ("test", 2)):
        listed = []
        for index, row in enumerate(rows(count)):
            for kind, picture in row.items():
                held = io.BytesIO()
                picture.save(held, "PNG")
                files[f"{split}/{kind}s/{index}.png"] = held.getvalue()
            listed.append({"image_file_name": f"images/{index}.png", "mask_file_name": f"masks/{index}.png"})
        files[f"{split}/metadata.jsonl"] = "\n".join(map(json.dumps, listed)).encode()
    serve(files)
    recipe = Recipe.load(init("lab/field", model="embedded", progress=False).recipe)
    assert recipe.data.labels == {"names": ["soil", "crop", "weed"]}
    assert [entry.split for entry in recipe.data.source + recipe.data.validation] == ["train[:80%]", "train[80%:]"]
    domains = load_domains(recipe.data)
    assert [len(domain) for domain in (*domains.source, *domains.validation, *domains.unseen)] == [4, 1, 2]


def test_what_the_hub_does_not_give_is_one_message(serve, hub, monkeypatch):
    def told(name="lab/field"):
        with pytest.raises(UserError) as caught:
            init(name, model="embedded", progress=False)
        with pytest.raises(UserError) as again:  # what a recipe names
            load_split(name, "train", None, None)
        reason = str(caught.value).removeprefix(f"{name}: found no such folder, and on the Hub: ")
        assert str(again.value) == f"{name}: split 'train' cannot be loaded: {reason}" and "\n" not in reason
        return reason

    serve({"README.md": b"# Empty"})
    assert "doesn't contain any data files" in told()
    hub.repositories.clear()
    assert told().startswith("there is no data set of that name, or it is private: correct it, or log in")
    serve(seasons(), gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert told().startswith("it is gated: accept its terms at https://huggingface.co/datasets/lab/field, then log in")
    hub.close()
    close_session()  # and its connections
    assert told("lab/other").startswith("Couldn't reach 'lab/other' on the Hub")
    for place in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(place, True)
    assert told() == "the Hub is off (HF_HUB_OFFLINE), and it is not in the cache"


def test_a_name_that_is_nowhere():
    with pytest.raises(UserError, match="nobody/nothing: found no such folder, and on the Hub: the Hub is off"):
        init("nobody/nothing", model="embedded", progress=False)
