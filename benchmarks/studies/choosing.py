"""Which of several trained models would be chosen without labels of the unseen domains, and what does that cost?

    python benchmarks/studies/choosing.py --data DATA/street7 --runs OUT/runs --out FILE.json

`OUT/runs` are the runs of `compare --curve training.learning_rate=...` on CamVid's day. Each model is read once and
what was found is kept beside it; start again to go on. Selectors are described on the page.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn import functional

from deft_hf.comparison.statistics import t_interval
from deft_hf.data.corruptions import CORRUPTIONS, corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.estimates import Calibration

sys.path.insert(0, str(Path(__file__).parents[1]))
from estimates import SETS, Small, spread  # noqa: E402

SIZE, SEVERITY, BATCH = (144, 192), 3, 16
CALIBRATION, PLACE = 16, 30  # images: of source validation, of each unseen domain
KEPT = "choosing.npz"
Stream = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Model:
    """A trained model, what selectors say of it, and its unseen mean."""

    folder: Path
    method: str
    rate: float
    seed: int
    unseen: float
    selectors: dict[str, float]
    predictions: np.ndarray  # uint8 (images, H, W), of the unseen domains


def images(data: Path) -> tuple[dict[str, Small], list[Small]]:
    """Source validation, clean and corrupted by kind, and the unseen domains."""
    facts = SETS["street7"]
    labels = LabelSpace.from_mapping(facts["labels"])
    validation = Domain.from_folder(data / facts["source"], labels, split="val")
    clean = Small(validation.select(spread(0, len(validation), CALIBRATION)), SIZE)
    source = {"clean": clean} | {kind: Small(corrupted(clean, kind, SEVERITY), SIZE) for kind in CORRUPTIONS}
    unseen = [Domain.from_folder(data / place, labels) for place in facts["unseen"]]
    return source, [Small(domain.select(spread(0, len(domain), PLACE)), SIZE) for domain in unseen]


def probabilities(model: Segmenter, domain: Small) -> Stream:
    """Of each image, float32 (C, H, W), and its labels."""
    for start in range(0, len(domain), BATCH):
        pairs = [domain.load(index) for index in range(start, min(start + BATCH, len(domain)))]
        values = model.processor(images=[image for image, _ in pairs], return_tensors="pt", do_resize=False)
        with torch.no_grad():
            logits = model.family.semantic_logits(model.model, values["pixel_values"])
            found = functional.interpolate(logits, SIZE, mode="bilinear").softmax(1)
        for each, (_, mask) in zip(found, pairs, strict=True):
            yield each, torch.from_numpy(np.array(mask)).long()


def read(folder: Path, source: dict[str, Small], unseen: list[Small]) -> None:
    """Passes all images through a model and keeps what selectors need."""
    model = Segmenter.open(str(folder), device="cpu")
    classes = model.model.config.num_labels
    scores = []

    def counted(domain: Small) -> Stream:
        confusion = ConfusionMatrix(classes)
        for found, labels in probabilities(model, domain):
            confusion.update(found.argmax(0), labels)
            yield found, labels
        scores.append(confusion.compute().mean_iou)

    kinds = [kind for kind in source if kind != "clean"]
    calibration = Calibration.fit(classes, counted(source["clean"]), [(kind, counted(source[kind])) for kind in kinds])
    estimates, confidences, predictions = [], [], []
    for domain in unseen:
        place = calibration.counts()
        for found, _ in probabilities(model, domain):
            place.update(found)
            confidences.append(float(found.amax(0).mean()))
            predictions.append(found.argmax(0).to(torch.uint8).numpy())
        estimates.append(calibration.estimate(place).mean_iou)
    np.savez_compressed(
        folder / KEPT,
        corrupted=np.mean(scores[1:]),
        estimate=np.mean(estimates),
        confidence=np.mean(confidences),
        predictions=np.stack(predictions),
    )


def models(runs: Path) -> list[Model]:
    found = []
    for path in sorted(runs.glob(f"*/{KEPT}")):
        recipe = yaml.safe_load((path.parent / "recipe.yaml").read_text())
        method = recipe["method"]["name"] + ("_split" if recipe["method"]["pathways"] == "split" else "")
        scores = json.loads((path.parent / "results" / "metrics.json").read_text())["scores"]
        mean = [np.mean([scores[domain]["mean_iou"] for domain in side]) for side in _domains()]
        with np.load(path) as kept:
            selectors = {"source": float(mean[0])}
            selectors |= {name: float(kept[name]) for name in ("corrupted", "estimate", "confidence")}
            found.append(
                Model(
                    path.parent,
                    method,
                    recipe["training"]["learning_rate"],
                    recipe["training"]["seed"],
                    float(mean[1]),
                    selectors,
                    kept["predictions"],
                )
            )
    read = Counter(model.seed for model in found)
    found = [model for model in found if read[model.seed] == max(read.values())]  # seeds that were read to their end
    for model in found:
        members = [m for m in found if (m.method, m.rate) == (model.method, model.rate) and m is not model]
        model.selectors["agreement"] = float(np.mean([_agreement(model, m) for m in members])) if members else math.nan
    return found


def _domains() -> tuple[list[str], list[str]]:
    return [SETS["street7"]["source"]], list(SETS["street7"]["unseen"])


def _agreement(one: Model, other: Model) -> float:
    confusion = ConfusionMatrix(len(SETS["street7"]["labels"]["names"]))
    confusion.update(torch.from_numpy(one.predictions), torch.from_numpy(other.predictions).long())
    return confusion.compute().mean_iou


def regrets(found: list[Model], groups: Callable[[Model], Any]) -> dict[str, list[float]]:
    """By selector, for each group of models: unseen mean of the chosen one, less that of the best; in points."""
    result: dict[str, list[float]] = {name: [] for name in found[0].selectors}
    for key in sorted({groups(model) for model in found}):
        group = [model for model in found if groups(model) == key]
        best = max(model.unseen for model in group)
        for name, losses in result.items():
            chosen = max(
                group, key=lambda model: -math.inf if math.isnan(model.selectors[name]) else model.selectors[name]
            )
            losses.append(100 * (chosen.unseen - best))
    return result


def table(found: list[Model]) -> dict[str, Any]:
    """Prints regret by selector, and what it is less `source`'s; returns all of it with the rows."""
    summary = {}
    for title, groups in {
        "the rate, by method and seed": lambda model: (model.method, model.seed),
        "method and rate, by seed": lambda model: model.seed,
    }.items():
        losses = regrets(found, groups)
        summary[title] = losses
        print(f"\nChoosing {title}:\n\n| selector | regret | worst | less that of `source` |\n|---|---:|---:|---:|")
        for name, values in losses.items():
            less = t_interval([value - usual for value, usual in zip(values, losses["source"], strict=True)])
            beside = "" if name == "source" else f"{less.mean:+.1f} [{less.low:+.1f}, {less.high:+.1f}]"
            print(f"| `{name}` | {np.mean(values):.1f} | {min(values):.1f} | {beside} |")
    rows = [
        {"method": m.method, "rate": m.rate, "seed": m.seed, "unseen": m.unseen, **m.selectors}
        for m in sorted(found, key=lambda m: (m.method, m.rate, m.seed))
    ]
    return {"regret": summary, "models": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [path.parents[1] for path in sorted(options.runs.glob("*/results/metrics.json"))]
    if left := [folder for folder in done if not (folder / KEPT).exists()]:
        source, unseen = images(options.data)
        for number, folder in enumerate(left, 1):
            read(folder, source, unseen)
            print(f"{number} of {len(left)}: {folder.name}", flush=True)
    options.out.write_text(json.dumps(table(models(options.runs))) + "\n")


if __name__ == "__main__":
    main()
