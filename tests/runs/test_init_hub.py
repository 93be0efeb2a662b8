"""A data set of the Hub's kind becomes a recipe that trains as it is written."""

import datasets
import numpy as np
import pytest
from PIL import Image

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.init import init
from deft_hf.runs.init.hub import find_in_hub
from deft_hf.runs.train import train
from deft_hf.utils.errors import UserError

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


@pytest.mark.usefixtures("unverified")
def test_a_saved_split_is_cut_and_trains(tmp_path):
    names = datasets.Sequence(datasets.ClassLabel(names=["soil", "crop", "weed"]))
    rows(10, "pixel_values", "label", there=([[0, 1, 2]] * 10, names)).save_to_disk("field")
    found = init("field", model="embedded", progress=False)
    recipe = Recipe.load(
        found.recipe,
        ["training.max_steps=2", "training.dataloader_num_workers=0", "method.decoder_warmup_steps=1"],
    )
    assert recipe.data.labels == {"names": ["soil", "crop", "weed"]}
    domains = load_domains(recipe.data)
    assert (recipe.data.source[0].split, recipe.data.validation[0].split) == ("train[:80%]", "train[80%:]")
    assert (len(domains.source[0]), len(domains.validation[0])) == (8, 2)
    assert (train(recipe) / "model.safetensors").is_file()


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


def test_a_split_without_masks_is_left_out():
    blank = rows(2).remove_columns("mask").add_column("mask", [None, None], feature=datasets.Image())
    datasets.DatasetDict({"train": rows(6), "test": blank}).save_to_disk("field")
    found = find_in_hub("field")
    assert [part.entry["split"] for part in found.parts] == ["train"]
    assert found.notes == ["field: 2 of 2 rows of the split test have no mask, it is left out"]


def test_columns_that_cannot_be_told_are_named():
    rows(4, "before", "after", site=(["a"] * 4, datasets.Value("string"))).save_to_disk("field")
    with pytest.raises(UserError) as caught:
        init("field", model="embedded", progress=False)
    told = str(caught.value)
    assert "found before (Image), after (Image), site (string); expected" in told and "pixel_values" in told
    assert "source: [{hub: field, split: train, image_column: COLUMN, mask_column: COLUMN}]" in told


def test_a_name_that_is_nowhere():
    with pytest.raises(UserError, match="nobody/nothing: found no such folder, and no data set of that name"):
        init("nobody/nothing", model="embedded", progress=False)
