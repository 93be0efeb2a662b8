"""The first hour of four newcomers: each starts with data as they have them and types a few commands.

    python benchmarks/newcomers.py --folder FOLDER --out FILE.json [--jobs photos,cells,trees,trainer]

Data are drawn. Every command is run as it would be typed, in a process of its own, without an edit in between; the
log of each stays in the folder, seconds and scores go to the file.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.io import savemat

FIELDS = ("field", "forest", "water")
KEPT = ("method", "stages", "learning_rates", "train_seconds", "versions", "hardware")
HEIGHT, WIDTH = 240, 320


def draw_photos(folder: Path) -> None:
    """Sixty drone photos of fields, forest and water as a COCO export, and twenty of a client's darker camera."""
    images, annotations = [], []
    (folder / "photos" / "images").mkdir(parents=True)
    for number in range(60):
        picture, polygons, _ = scene(np.random.default_rng(number))
        name = f"DJI_{number:04d}.jpg"
        picture.save(folder / "photos" / "images" / name, quality=92)
        images.append({"id": number, "file_name": f"images/{name}", "height": HEIGHT, "width": WIDTH})
        for category, polygon in enumerate(polygons):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": category + 1,
                    "segmentation": [[float(value) for point in polygon for value in point]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(FIELDS)]
    export = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "photos" / "annotations.json").write_text(json.dumps(export))
    (folder / "client").mkdir()
    truth = truth_of(folder)
    truth.mkdir(exist_ok=True)
    for number in range(20):
        picture, _, mask = scene(np.random.default_rng(1000 + number), light=-25)
        picture.save(folder / "client" / f"cam_{number:03d}.jpg", quality=92)
        Image.fromarray(mask).save(truth / f"cam_{number:03d}.png")


def truth_of(folder: Path) -> Path:
    """Where the client's masks are kept: not where a newcomer, or `init`, could find them."""
    return folder.with_name(f"{folder.name}_truth")


def scene(rng: np.random.Generator, light: float = 0.0) -> tuple[Image.Image, list[list[tuple[int, int]]], np.ndarray]:
    """A picture, its three polygons and its mask: a striped field beside a rough forest above smooth water."""
    top, middle, bottom = rng.integers(90, 230, 3)
    shore = int(rng.integers(80, 170))
    polygons = [
        [(0, 0), (top, 0), (middle, shore), (bottom, HEIGHT), (0, HEIGHT)],
        [(top, 0), (WIDTH, 0), (WIDTH, shore), (middle, shore)],
        [(middle, shore), (WIDTH, shore), (WIDTH, HEIGHT), (bottom, HEIGHT)],
    ]
    canvas = Image.new("L", (WIDTH, HEIGHT), 255)
    for category, polygon in enumerate(polygons):
        ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon], fill=category)
    mask = np.asarray(canvas)
    stripes = 12 * np.sin(np.arange(WIDTH) / 3)[None, :] + rng.normal(0, 6, (HEIGHT, WIDTH))
    crowns = np.kron(rng.normal(0, 25, (HEIGHT // 5, WIDTH // 5)), np.ones((5, 5)))
    waves = rng.normal(0, 5, (HEIGHT, WIDTH))
    colours = np.array([[150, 140, 80], [60, 95, 50], [70, 95, 115]], dtype=float)
    texture = np.choose(np.minimum(mask, 2), [stripes, crowns, waves])
    pixels = colours[np.minimum(mask, 2)] + texture[..., None] + light
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), polygons, mask


def draw_cells(folder: Path) -> None:
    """Forty 12-bit TIFFs of cells with masks of 0 and 255, and four darker ones without."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:200, :240]
    for part in ("cells/images", "cells/masks", "new"):
        (folder / part).mkdir(parents=True)
    for number in range(44):
        grey, mask = rng.normal(300, 40, rows.shape), np.zeros(rows.shape, dtype=bool)
        for _ in range(rng.integers(6, 14)):
            y, x, radius = rng.uniform(0, 200), rng.uniform(0, 240), rng.uniform(8, 20)
            cell = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            grey[cell] += (2200 if number < 40 else 1500) * rng.uniform(0.6, 1)
            mask |= cell
        picture = Image.fromarray(grey.clip(0, 4095).astype(np.uint16))
        if number < 40:
            picture.save(folder / f"cells/images/img_{number:03d}.tif")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"cells/masks/img_{number:03d}.tif")
        else:
            picture.save(folder / f"new/img_{number:03d}.tif")


def draw_trees(folder: Path) -> None:
    """GTA5's and Cityscapes' official trees with a few drawn pictures: road below, sky above, a car between."""
    from deft_hf.data.spaces import CITYSCAPES

    colours = np.array(CITYSCAPES.palette, dtype=np.uint8)
    road, sky, car = 0, 10, 13
    ids = {road: 7, sky: 23, car: 26}  # as labelIds
    rng = np.random.default_rng(0)
    gtav, town = folder / "data" / "gtav", "val/town"
    for part in (gtav / "images", gtav / "labels"):
        part.mkdir(parents=True)
    trees = [folder / "data" / "cityscapes" / part / town for part in ("leftImg8bit", "gtFine")]
    for tree in trees:
        tree.mkdir(parents=True)
    for number in range(1, 9):
        mask = np.full((128, 256), road, dtype=np.uint8)
        mask[: rng.integers(40, 70)] = sky
        x = rng.integers(20, 200)
        mask[70:100, x : x + 40] = car
        pixels = (colours[mask] * 0.7 + rng.normal(40, 10, (*mask.shape, 3))).clip(0, 255).astype(np.uint8)
        if number <= 6:
            Image.fromarray(pixels).save(gtav / "images" / f"{number:05d}.png")
            Image.fromarray(colours[mask]).save(gtav / "labels" / f"{number:05d}.png")
        else:
            name = f"town_{number:06d}_000019"
            Image.fromarray(pixels).save(trees[0] / f"{name}_leftImg8bit.png")
            raw = np.vectorize(ids.get)(mask).astype(np.uint8)
            Image.fromarray(raw).save(trees[1] / f"{name}_gtFine_labelIds.png")
    split = {"trainIds": [[1], [2], [3], [4]], "valIds": [[5], [6]], "testIds": [[6]]}
    savemat(gtav / "split.mat", {key: np.array(value, dtype=np.uint16) for key, value in split.items()})


SCRIPT = """import torch
from torch.utils.data import Dataset
from transformers import AutoModelForSemanticSegmentation as AutoModel
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainerCallback

from deft_hf import DeFTTrainer, DeFTTrainingArguments


class Squares(Dataset):
    def __init__(self, count, shift=0.0):
        self.count, self.shift = count, shift

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        labels = torch.zeros(64, 64, dtype=torch.long)
        labels[8 * (index % 4) + 8 : 8 * (index % 4) + 30, 10:50] = 1
        noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": 0.3 * noise + labels + self.shift, "labels": labels}


class Print(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        print(state.global_step, {key: value for key, value in metrics.items() if "dice" in key})


def dice(scores, confusion):
    hits = confusion.diag().double()
    return {"dice": float((2 * hits / (confusion.sum(0) + confusion.sum(1))).mean())}


def trainer():
    torch.manual_seed(0)
    config = SegformerConfig(num_labels=2, depths=[1] * 4, hidden_sizes=[16, 32, 64, 64], decoder_hidden_size=32)
    args = DeFTTrainingArguments(
        "out", max_steps=40, per_device_train_batch_size=4, learning_rate=1e-3, eval_strategy="steps", eval_steps=20,
        save_strategy="steps", save_steps=20, logging_steps=20, report_to=[], disable_tqdm=True,
    )
    sets = {"source": Squares(8), "shifted": Squares(8, 1.0)}
    model = SegformerForSemanticSegmentation(config)
    return DeFTTrainer(
        model, args, train_dataset=Squares(32), eval_dataset=sets, compute_metrics=dice, callbacks=[Print()]
    )


trainer().train()
again = trainer()
again.train(resume_from_checkpoint="out/checkpoint-20")
again.save_model("final")
print(type(AutoModel.from_pretrained("final")).__name__)
"""


def draw_trainer(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)


JOBS: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
    "photos": (
        draw_photos,
        [
            "deft-hf init . --out recipe.yaml",
            "deft-hf train recipe.yaml",
            "deft-hf predict outputs/photos client --out predicted",
            "deft-hf export outputs/photos exported",
        ],
    ),
    "cells": (
        draw_cells,
        [
            "deft-hf init cells --out recipe.yaml",
            "deft-hf train recipe.yaml",
            "deft-hf predict outputs/cells new --out predicted",
        ],
    ),
    "trees": (
        draw_trees,
        [
            "deft-hf init data/gtav --out recipe.yaml",
            "deft-hf compare recipe.yaml --methods joint,lp_ft,deft --seeds 2 --no-costs training.max_steps=5 "
            "'data.unseen=[{folder: data/cityscapes, layout: cityscapes, split: val}]'",
        ],
    ),
    "trainer": (draw_trainer, ["python script.py"]),
}


def do(name: str, folder: Path) -> dict[str, Any]:
    """Draws the data of a newcomer and runs the commands; what each took, and what came of it."""
    draw, commands = JOBS[name]
    folder.mkdir(parents=True)
    draw(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    took = []
    for number, command in enumerate(commands):
        print(f"{name}: {command}", flush=True)
        start = time.perf_counter()
        with (folder / f"{number}.log").open("w") as log:
            subprocess.run(
                shlex.split(command), cwd=folder, env={**os.environ, "PATH": path}, stdout=log, stderr=log, check=True
            )
        took.append({"command": command, "seconds": round(time.perf_counter() - start, 1)})
        print(f"  {took[-1]['seconds']} s", flush=True)
    result: dict[str, Any] = {"commands": took}
    for path_of_scores in sorted(folder.glob("outputs/*/results/metrics.json")):
        found = json.loads(path_of_scores.read_text())
        result["metrics"] = {key: found[key] for key in KEPT}
        result["metrics"]["mean_iou"] = {domain: scores["mean_iou"] for domain, scores in found["scores"].items()}
    if name == "photos":
        result["client"] = score_of_client(folder)
    return result


def score_of_client(folder: Path) -> dict[str, float]:
    """Mean IoU of the predictions at the client's, and the best that a model of a single class could reach."""
    from deft_hf.scoring.confusion import ConfusionMatrix

    found, *each = (ConfusionMatrix(len(FIELDS)) for _ in range(1 + len(FIELDS)))
    for path in sorted(truth_of(folder).glob("*.png")):
        truth = torch.from_numpy(np.array(Image.open(path))).long()
        predicted = torch.from_numpy(np.array(Image.open(folder / "predicted" / "classes" / path.name))).long()
        found.update(predicted, truth)
        for category, confusion in enumerate(each):
            confusion.update(torch.full_like(truth, category), truth)
    single = max(confusion.compute().mean_iou for confusion in each)
    return {"mean_iou": found.compute().mean_iou, "mean_iou_of_a_single_class": single}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", default=",".join(JOBS))
    asked = parser.parse_args()
    results = {name: do(name, (asked.folder / name).resolve()) for name in asked.jobs.split(",")}
    asked.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
