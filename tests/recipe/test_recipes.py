"""Every shipped recipe loads, and runs for two steps on a tiny model of its family and drawn data."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from deft_hf.data.layouts import LAYOUTS
from deft_hf.data.presets import PRESETS
from deft_hf.recipe import Recipe
from deft_hf.train import main
from tests import tiny
from tests.models.test_backbones import SMALL, pretrained

pytestmark = pytest.mark.usefixtures("unverified")
FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
SIDE = 48
# By recipe, a tiny model of its family in the place of the pretrained one.
TINY = {
    "gtav_deeplabv3plus_mobilenetv2.yaml": "mobilenet_v2",
    "gtav_mask2former_swin_large.yaml": ("swin", SMALL["mask2former"]),
    "gtav_mask2former_swin_tiny.yaml": ("swin", SMALL["mask2former"]),
    "gtav_segformer_b0.yaml": "segformer",
    "gtav_segformer_b5.yaml": "segformer",
    "gtav_upernet_convnext.yaml": ("convnext", SMALL["upernet"]),
    "gtav_upernet_dinov2.yaml": ("dinov2", SMALL["upernet"]),
    "nuclei2_mobilenetv2.yaml": "mobilenet_v2",
    "quickstart.yaml": "segformer",
    "street7_mobilenetv2.yaml": "mobilenet_v2",
}


def test_all_recipes_are_looked_at():
    assert len(RECIPES) == 10
    assert sorted(TINY) == RECIPES
    rows = (FOLDER / "README.md").read_text()
    assert all(f"]({name})" in rows for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, tmp_path, monkeypatch):
    recipe = yaml.safe_load((FOLDER / name).read_text())
    root, overrides = tmp_path / "data", []
    for section in ("source", "validation", "unseen"):
        for index, entry in enumerate(recipe["data"][section]):
            if "streets" in entry:
                overrides += [f"data.{section}.{index}.count=2", f"data.{section}.{index}.size=[{SIDE}, {SIDE}]"]
            elif "layout" in entry:
                draw_tree(root / entry["folder"], entry["layout"], entry["split"])
            else:
                draw_folder(root / entry["folder"], classes=len(recipe["data"]["labels"]["names"]))
    if root.exists():
        overrides.append(f"data.root={root}")
    if isinstance(TINY[name], str):
        whole = tiny.build(TINY[name])
        whole.base_model.save_pretrained(tmp_path / "backbone")
        overrides.append(f"model.checkpoint={tmp_path / 'backbone'}")
    else:
        model_type, head = TINY[name]
        pretrained(tmp_path / "backbone", model_type)
        overrides += [f"model.backbone={tmp_path / 'backbone'}", f"model.head_config={json.dumps(head)}"]
    if name.startswith("gtav_"):  # one method shows it; seven recipes with three would take minutes
        recipe["method"]["baselines"] = []
        overrides.append("method.baselines=[]")
    # Each line of the header that starts with the command names this very file.
    assert f"recipes/{name}" in (FOLDER / name).read_text().split("\nmodel:")[0]
    monkeypatch.chdir(tmp_path)
    main(
        [
            str(FOLDER / name),
            *overrides,
            # Windows of half an image would leave Mask2Former's coarsest map a single pixel.
            *([f"data.window=[{SIDE}, {SIDE}]", "data.stride=[16, 16]"] if "window" in recipe["data"] else []),
            f"data.image_size=[{SIDE}, {SIDE + 16}]",
            f"data.crop_size=[{SIDE}, {SIDE}]",
            "training.max_steps=2",
            "method.decoder_warmup_steps=1",
            "method.batchnorm_batches=1",
            "training.per_device_train_batch_size=2",
            "training.gradient_accumulation_steps=1",
            "training.dataloader_num_workers=0",
            "training.dataloader_persistent_workers=false",
            "training.use_cpu=true",
            "training.bf16=false",
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


def draw_tree(folder, layout, split):
    """Two pairs of a split of an official tree, whose masks hold every raw id of two classes."""
    spec = LAYOUTS[layout]
    place, ids = spec.places[0], PRESETS[spec.labels].ids or {0: 0, 13: 13}
    raw = [key for key, train in ids.items() if train in (0, 13)]
    rng = np.random.default_rng(0)
    frames = {"train": (1, 2), "val": (3, 4)}
    for frame in frames[split]:
        mask = rng.choice(raw, (8, 8)).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1).astype(np.uint8)
        for part, suffix, picture in (
            (place.images, place.image_suffix, Image.fromarray(mask).convert("RGB")),
            (place.masks, place.mask_suffix, Image.fromarray(mask)),
        ):
            path = folder / part.format(split=spec.splits[split]) / f"{frame:05d}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    if spec.listed:
        savemat(folder / "split.mat", {f"{name}Ids": [[frame] for frame in found] for name, found in frames.items()})
