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
from deft_hf.methods import compose
from deft_hf.recipe import Recipe
from deft_hf.train import main
from deft_hf.trainer.optimizer import schedule_shape
from tests import tiny
from tests.models.test_backbones import SMALL, pretrained

pytestmark = pytest.mark.usefixtures("unverified")
FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
SIDE = 48
# By recipe, a tiny model of its family in the place of the pretrained one.
TINY = {
    "authors_cityscapes_r50.yaml": ("resnet", SMALL["deeplabv3plus"]),
    "authors_gtav_r101.yaml": ("resnet", SMALL["deeplabv3plus"]),
    "authors_gtav_r50.yaml": ("resnet", SMALL["deeplabv3plus"]),
    "gtav_daformer_segformer_b5.yaml": "segformer",
    "gtav_deeplabv3plus_mobilenetv2.yaml": "mobilenet_v2",
    "gtav_mask2former_swin_large.yaml": ("swin", SMALL["mask2former"]),
    "gtav_mask2former_swin_tiny.yaml": ("swin", SMALL["mask2former"]),
    "gtav_rein_mask2former_dinov2_large.yaml": ("dinov2", SMALL["mask2former"]),
    "gtav_rein_mask2former_dinov3_large.yaml": ("dinov3_vit", SMALL["mask2former"]),
    "gtav_rein_upernet_convnext_large.yaml": ("convnext", SMALL["upernet"]),
    "gtav_segformer_b0.yaml": "segformer",
    "gtav_segformer_b5.yaml": "segformer",
    "gtav_upernet_convnext.yaml": ("convnext", SMALL["upernet"]),
    "gtav_upernet_dinov2.yaml": ("dinov2", SMALL["upernet"]),
    "nuclei2_mobilenetv2.yaml": "mobilenet_v2",
    "quickstart.yaml": "segformer",
    "street7_mobilenetv2.yaml": "mobilenet_v2",
}


def test_all_recipes_are_looked_at():
    assert len(RECIPES) == 17
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
    if name.startswith("gtav_"):  # one method shows it; eleven recipes with three would take minutes
        recipe["method"]["baselines"] = []
        overrides.append("method.baselines=[]")
    if "protocol" in recipe["data"]:
        scored = range(len(recipe["data"]["unseen"]))
        overrides += ["data.eval_size=own", *(f"data.unseen.{index}.eval_size=[{SIDE}, {SIDE}]" for index in scored)]
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
    assert all(
        f"| {method} |" in table for method in [*recipe["method"].get("baselines", []), recipe["method"]["name"]]
    )


AUTHORS = {
    "authors_gtav_r50.yaml": ((7740, 80_000), (1e-2, 1e-2, 1e-2), (5e-4, 5e-4, 5e-3), "gtav", 774, 50),
    "authors_gtav_r101.yaml": ((7740, 80_000), (1e-2, 1e-2, 1e-2), (5e-4, 5e-4, 5e-3), "gtav", 774, 101),
    "authors_cityscapes_r50.yaml": ((1855, 80_000), (2.5e-3, 2.5e-3, 1e-2), (1e-3, 1e-3, 1e-2), "cityscapes", 371, 50),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_recipes_have_their_figures(name, tmp_path):
    places = yaml.safe_load((FOLDER / name).read_text())["data"]
    for entry in (*places["source"], *places["validation"], *places["unseen"]):
        draw_tree(tmp_path / entry["folder"], entry["layout"], entry["split"])
    recipe = Recipe.load(FOLDER / name, [f"data.root={tmp_path}", "training.use_cpu=true"])
    args, data, model = recipe.training_arguments(), recipe.data, recipe.model
    steps, rates, decays, source, epoch, depth = AUTHORS[name]
    assert tuple(span.steps for span in args.spans(args.max_steps)) == steps
    assert tuple(args.learning_rates().values()) == rates and tuple(args.weight_decays().values()) == decays
    assert compose(args).rule(80_000).decays == pytest.approx({"encoder": 0.9999, "decoder": 0.9999})
    schedule = schedule_shape(args, 80_000).lr_lambdas[0]
    assert schedule(epoch) == pytest.approx((1 - epoch / 80_000) ** 0.9)
    said = (args.method, args.averages, args.batchnorm, args.decay_norm_and_bias, args.max_grad_norm, args.seed)
    assert said == ("deft", "ema", "reference", True, 0.0, 304)
    assert (args.optim, args.optim_args, args.bf16, args.fp16) == ("sgd", "momentum=0.9", False, False)
    assert (args.metric_for_best_model, args.eval_steps, args.load_best_model_at_end) == (
        f"{source}_mean_iou", epoch, True
    )  # fmt: skip
    assert (model.backbone, model.head) == (f"timm/resnet{depth}.tv_in1k", "deeplabv3plus")
    assert model.head_config == {"output_stride": 16}
    assert (data.crop_size, data.scale, data.flip, data.recolor) == ((768, 768), (0.5, 2.0), 0.5, True)
    assert (data.color_jitter, data.color_jitter_probability) == ((0.4, 0.4, 0.4, 0.1), 0.5)
    assert (data.blur, data.max_class_share) == ((0.15, 1.3), 1.0)
    assert (data.eval_size, data.window, data.test_scales, data.test_flip) == ("own", None, [1.0], False)
    squares = {entry.name: (entry.crop_or_pad, entry.pad_label) for entry in data.unseen if entry.crop_or_pad}
    assert squares == {"mapillary": (1536, 0)} and args.per_device_eval_batch_size == 1
    assert (args.per_device_train_batch_size, args.dataloader_drop_last) == (4, True)
    assert (data.sampling, data.class_uniform_share, data.class_uniform_tile) == ("class_uniform", 0.5, 1024)


def test_the_authors_run_is_chosen_on_its_source(tmp_path, monkeypatch):
    """Twenty steps of it on all of its trees, with evaluations, end in an export that knows the best of them."""
    name = "authors_gtav_r50.yaml"
    draw_tree(tmp_path / "gtav", "gtav", "train")
    for layout in ("gtav", "cityscapes", "bdd100k", "mapillary"):
        draw_tree(tmp_path / layout, layout, "val")
    pretrained(tmp_path / "backbone", "resnet")
    monkeypatch.chdir(tmp_path)
    steps = {"max_steps": 20, "eval_steps": 10, "save_steps": 10, "per_device_train_batch_size": 2}
    main(
        [
            str(FOLDER / name),
            "data.root=.",
            f"data.unseen.2.crop_or_pad={SIDE + 8}",
            "model.backbone=backbone",
            f"model.head_config={json.dumps(SMALL['deeplabv3plus'])}",
            "method.decoder_warmup_steps=10",
            f"data.crop_size=[{SIDE}, {SIDE}]",
            *(f"training.{key}={value}" for key, value in steps.items()),
            "training.dataloader_num_workers=0",
            "training.dataloader_persistent_workers=false",
            "training.use_cpu=true",
        ]
    )
    out = tmp_path / "outputs" / "authors_gtav_r50"
    facts = json.loads((out / "results" / "metrics.json").read_text())
    assert facts["best_checkpoint"] in (20, 30)
    assert {*facts["scores"]} == {"gtav", "cityscapes", "bdd100k", "mapillary"}
    assert all(0 <= score["mean_iou"] < 1 for score in facts["scores"].values())
    assert (out / "modeling_deeplabv3plus.py").is_file()
    assert "trust_remote_code=True" in (out / "README.md").read_text()


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
