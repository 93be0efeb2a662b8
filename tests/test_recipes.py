"""Every shipped recipe loads, and runs for two steps on a tiny model of its family and drawn data."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deft_hf.recipe import Recipe
from deft_hf.train import main
from tests import models

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
SIDE = 48


def test_all_recipes_are_looked_at():
    assert RECIPES == ["nuclei2_mobilenetv2.yaml", "quickstart.yaml", "street7_mobilenetv2.yaml"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, tmp_path, monkeypatch):
    recipe = yaml.safe_load((FOLDER / name).read_text())
    root, overrides = tmp_path / "data", []
    for section in ("source", "validation", "unseen"):
        for index, entry in enumerate(recipe["data"][section]):
            if "streets" in entry:
                overrides += [f"data.{section}.{index}.count=2", f"data.{section}.{index}.size=[{SIDE}, {SIDE}]"]
            else:
                draw_folder(root / entry["folder"], classes=len(recipe["data"]["labels"]["names"]))
    if recipe["model"]["checkpoint"] != "embedded":
        models.build("mobilenet_v2").mobilenet_v2.save_pretrained(tmp_path / "backbone")
        overrides += [f"data.root={root}", f"model.checkpoint={tmp_path / 'backbone'}"]
    else:
        models.build("segformer").segformer.save_pretrained(tmp_path / "backbone")
        overrides += [f"model.checkpoint={tmp_path / 'backbone'}"]
    # Each line of the header that starts with the command names this very file.
    assert f"recipes/{name}" in (FOLDER / name).read_text().split("\nmodel:")[0]
    monkeypatch.chdir(tmp_path)
    main(
        [
            str(FOLDER / name),
            *overrides,
            f"data.image_size=[{SIDE}, {SIDE}]",
            f"data.crop_size=[{SIDE}, {SIDE}]",
            "training.max_steps=2",
            "method.decoder_warmup_steps=1",
            "method.batchnorm_batches=1",
            "training.per_device_train_batch_size=2",
            "training.dataloader_num_workers=0",
            "training.dataloader_persistent_workers=false",
            "training.use_cpu=true",
        ]
    )
    out = tmp_path / recipe["training"]["output_dir"]
    assert (out / "README.md").is_file() and (out / "model.safetensors").is_file()
    table = (out / "results" / "table.md").read_text()
    assert all(f"| {method} |" in table for method in [*recipe["method"]["baselines"], recipe["method"]["name"]])


def test_the_resolved_recipe_loads_again(tmp_path):
    recipe = Recipe.load(FOLDER / "quickstart.yaml", ["training.seed=5"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml").to_yaml() == recipe.to_yaml()


def draw_folder(folder, classes):
    if folder.exists():
        return
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(4):
        mask = rng.integers(0, classes, (8, 8)).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1).astype(np.uint8)
        Image.fromarray(mask * 20).convert("RGB").save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "split.json").write_text(json.dumps({"train": ["0", "1"], "val": ["2", "3"]}))
