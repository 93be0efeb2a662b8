"""Images of more than 8 bits from the recipe to `predict`: the same pixels everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from deft_hf.recipe import Recipe
from deft_hf.runs.data import load_domains
from deft_hf.runs.predict import predict
from deft_hf.runs.start import open_start
from deft_hf.utils.errors import UserError

RECIPE = """
model: {checkpoint: embedded}
method: {name: joint}
data:
  labels: {names: [field, forest]}
  source: [{folder: SITE}]
  unseen: [{streets: clear, count: 1, size: [48, 64]}]
  crop_size: [32, 32]
training: {output_dir: out, max_steps: 1}
"""
GREY = np.linspace(0, 4095, 48 * 64).astype(np.uint16).reshape(48, 64)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for folder, values in (("images", GREY), ("masks", (GREY > 2000).astype(np.uint8))):
        (tmp_path / "site" / folder).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "site" / folder / "a.png")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("SITE", str(tmp_path / "site")))
    return path


@pytest.mark.parametrize("wrong", ["[0]", "[5, 5]", "[9, 1]", "wide"])
def test_a_wrong_range_is_refused_by_its_key(recipe: Path, wrong: str):
    with pytest.raises(UserError, match=r"data\.value_range: .*expected \[low, high\], two numbers with low < high"):
        Recipe.load(recipe, [f"data.value_range={wrong}"])


def test_without_a_range_the_check_names_the_key(recipe: Path):
    with pytest.raises(
        UserError, match=r"a\.png: holds values of 16 bits, 0\.\.4095, .*data\.value_range.*\[0, 4095\]"
    ):
        load_domains(Recipe.load(recipe).data)


def test_the_range_reaches_domain_processor_and_predict(recipe: Path, tmp_path: Path):
    settings = Recipe.load(recipe, ["data.value_range=[0, 4095]", "data.check=false"])
    image, _ = load_domains(settings.data).source[0].load(0)
    expected = np.rint(GREY / 4095 * 255)
    assert np.abs(np.asarray(image)[..., 0] - expected).max() == 0

    start = open_start(settings.model, settings.data, settings.data.label_space(), seed=0, announce=False)
    with torch.no_grad():
        for parameter in start.model.decode_head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    start.model.save_pretrained(tmp_path / "export")
    start.processor.save_pretrained(tmp_path / "export")
    assert AutoImageProcessor.from_pretrained(tmp_path / "export").value_range == [0, 4095]

    image.save(tmp_path / "eight.png")
    deep = predict(tmp_path / "export", tmp_path / "site" / "images", tmp_path / "deep", device="cpu")
    eight = predict(tmp_path / "export", tmp_path / "eight.png", tmp_path / "eight", device="cpu")
    ids = [np.asarray(Image.open(found.images[0]["classes"])) for found in (deep, eight)]
    np.testing.assert_array_equal(*ids)

    processor = tmp_path / "export" / "preprocessor_config.json"
    content = json.loads(processor.read_text())
    processor.write_text(json.dumps({key: value for key, value in content.items() if key != "value_range"}))
    without = predict(tmp_path / "export", tmp_path / "site" / "images", tmp_path / "without", device="cpu")
    assert not without.images and "holds values of 16 bits, 0..4095" in without.unreadable[0]
    given = predict(
        tmp_path / "export", tmp_path / "site" / "images", tmp_path / "given", device="cpu", value_range=(0, 4095)
    )
    np.testing.assert_array_equal(np.asarray(Image.open(given.images[0]["classes"])), ids[0])
