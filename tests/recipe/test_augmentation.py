"""`data.augment` sets what a kind of pictures asks for; what a recipe states stays."""

from pathlib import Path

import pytest
import yaml

from deft_hf.comparison.plan import address
from deft_hf.data.augmentations import AUGMENTATIONS
from deft_hf.data.transforms import TrainTransform
from deft_hf.recipe import DataSection, Recipe

RECIPE = """
model: {checkpoint: embedded}
data:
  labels: streets
  source: [{streets: clear, count: 4}]
  validation: [{streets: clear, count: 2, seed: 1}]
  crop_size: [64, 64]
training: {output_dir: out, max_steps: 1}
"""
KEYS = ("flip", "vertical_flip", "turns", "rotation", "scale", "color_jitter", "blur")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def values(path: Path, *overrides: str) -> dict:
    data = Recipe.load(path, overrides).data
    return {key: getattr(data, key) for key in KEYS}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_preset_is_filled_in_and_loaded_again(path: Path, name: str):
    recipe = Recipe.load(path, [f"data.augment={name}"])
    wanted = AUGMENTATIONS[name]
    assert {key.replace("color_", ""): getattr(recipe.data, key) for key in KEYS} == wanted
    TrainTransform((8, 8), **wanted)  # every value is one that the transform takes
    path.write_text(recipe.to_yaml())
    assert yaml.safe_load(recipe.to_yaml())["data"]["augment"] == name
    assert Recipe.load(path).to_yaml() == recipe.to_yaml()


def test_what_stands_beside_it_wins_where_it_is_a_default_too(path: Path):
    overrides = ("data.augment=microscopy", "data.rotation=0", "data.color_jitter=null", "data.blur=[0.15, 1.3]")
    preset = AUGMENTATIONS["microscopy"]
    found = values(path, *overrides)
    assert (found["rotation"], found["color_jitter"], found["blur"]) == (0, None, (0.15, 1.3))
    assert (found["turns"], found["scale"], found["vertical_flip"]) == (True, preset["scale"], 0.5)


def test_street_is_the_default(path: Path):
    assert values(path) == values(path, "data.augment=street")
    field = {key: DataSection.model_fields[key].default for key in KEYS}
    assert field == values(path)
    wanted = TrainTransform((8, 8))
    assert all(getattr(wanted, key) == value for key, value in AUGMENTATIONS["street"].items())


def test_a_run_has_one_address_however_its_augmentation_is_written(path: Path):
    stated = [f"data.{key}={value if value is not None else 'null'}" for key, value in {
        "vertical_flip": 0.5, "turns": "true", "color_jitter": "[0.4, 0.4, 0.3, 0.05]", "blur": "[0, 1]",
    }.items()]  # fmt: skip
    written, named = Recipe.load(path, stated), Recipe.load(path, ["data.augment=aerial"])
    assert address(written) == address(named) != address(Recipe.load(path))
    assert address(Recipe.load(path, ["data.augment=street"])) == address(Recipe.load(path))
