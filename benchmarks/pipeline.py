"""The training pipeline beside albumentations and the transformers example, and the metric beside others.

    pip install albumentations torchmetrics evaluate
    python benchmarks/pipeline.py --out benchmarks/results/pipeline.json

Twelve drawn streets with the noise of a camera, as PNGs of 1024 x 2048 and as JPEGs of 1280 x 720, are read from the
disk, augmented to a crop of 512 x 512 and made tensors: by `TrainTransform` with the defaults of a recipe; by
albumentations with the same kinds of augmentation, once in its usual order and once with the crop before everything;
and, with a crop and a flip alone, by `TrainTransform` and as the transformers example
(`examples/pytorch/semantic-segmentation/run_semantic_segmentation.py`) does. The metric counts one map of 1024 x 2048
pixels and 19 classes: `ConfusionMatrix`, torchmetrics, and the computation that `evaluate`'s `mean_iou` publishes,
alone and as a metric of `evaluate`, which keeps the maps in an Arrow file until then. Without albumentations,
torchmetrics or `evaluate` the rest is measured, and `missing` names them.

One thread; everything in turn in one process, so that a busy machine slows all alike; CPU time, median of the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import torch
from PIL import Image

from deft_hf.data import Domain, TrainTransform
from deft_hf.data.streets import STREETS
from deft_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from deft_hf.runs.provenance import hardware
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.most_likely import most_likely

IMAGES = 12
CROP = (512, 512)
FORMATS = {"png": (1024, 2048), "jpg": (720, 1280)}
CLASSES = 19


def installed(name: str) -> Any:
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


PEERS = {name: installed(name) for name in ("albumentations", "torchmetrics", "evaluate")}


def draw(folder: Path, suffix: str, size: tuple[int, int]) -> Path:
    """Writes the pairs of a format."""
    streets = Domain.from_streets("clear", count=IMAGES, size=size)
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / suffix / name).mkdir(parents=True)
    for index in range(IMAGES):
        image, mask = streets.load(index)
        noisy = np.asarray(image).astype(np.int16) + rng.integers(-4, 5, (*size, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / suffix / "images" / f"{index}.{suffix}")
        Image.fromarray(mask).save(folder / suffix / "masks" / f"{index}.png")
    return folder / suffix


def pipelines(folder: Path, suffix: str) -> dict[str, Callable[[int], Any]]:
    """By name, what makes item `index` of a folder."""
    domain = Domain.from_folder(folder, STREETS)
    ours = TrainTransform(CROP)
    plain = TrainTransform(CROP, scale=(1.0, 1.0), jitter=None, blur=None, max_class_share=1.0)

    def own(transform: TrainTransform, index: int) -> Any:
        return transform(*domain.load(index), np.random.default_rng(index))

    def by_pillow(transform: Any, index: int) -> Any:
        image = np.array(Image.open(folder / "images" / f"{index}.{suffix}").convert("RGB"))
        return transform(image=image, mask=np.array(Image.open(folder / "masks" / f"{index}.png")))

    rows: dict[str, Callable[[int], Any]] = {"deft_hf, defaults": lambda index: own(ours, index)}
    rows["deft_hf, crop and flip"] = lambda index: own(plain, index)
    if PEERS["albumentations"]:
        import cv2

        cv2.setNumThreads(1)
        usual, crop_first, example = by_albumentations(FORMATS[suffix][0])

        def by_opencv(transform: Any, index: int) -> Any:
            image = cv2.cvtColor(cv2.imread(str(folder / "images" / f"{index}.{suffix}")), cv2.COLOR_BGR2RGB)
            mask = cv2.imread(str(folder / "masks" / f"{index}.png"), cv2.IMREAD_UNCHANGED)
            return transform(image=image, mask=mask)

        rows["albumentations"] = lambda index: by_opencv(usual, index)
        rows["albumentations, crop first"] = lambda index: by_opencv(crop_first, index)
        rows["transformers example"] = lambda index: by_pillow(example, index)
    return rows | {"decoding alone (Pillow)": lambda index: by_pillow(dict, index)}


def by_albumentations(tallest: int) -> tuple[Any, Any, Any]:
    """A recipe's augmentations in the usual order, with the crop first, and those of the transformers example."""
    import albumentations
    from albumentations.pytorch import ToTensorV2

    height, width = CROP
    fit = albumentations.PadIfNeeded(height, width, border_mode=0, fill=0, fill_mask=255)
    last = [albumentations.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()]
    colors = [
        albumentations.HorizontalFlip(p=0.5),
        albumentations.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.5),
        albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.15, 1.3), p=1.0),
        *last,
    ]
    crop = albumentations.RandomCrop(height, width)
    cut_first = albumentations.RandomSizedCrop((height // 2, min(2 * height, tallest)), CROP, p=1.0)
    return (
        albumentations.Compose([albumentations.RandomScale((-0.5, 1.0), p=1.0), fit, crop, *colors]),
        albumentations.Compose([cut_first, *colors]),
        albumentations.Compose([fit, crop, albumentations.HorizontalFlip(p=0.5), *last]),
    )


def mean_iou(predicted: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """What `evaluate`'s `mean_iou` computes of an image: intersections, unions, predicted and true areas."""
    valid = labels != 255
    predicted, labels = predicted[valid], labels[valid]
    areas = (predicted[predicted == labels], predicted, labels)
    inter, found, true = (np.histogram(ids, bins=CLASSES, range=(0, CLASSES - 1))[0] for ids in areas)
    return [inter, found + true - inter, found, true]


def mean_iou_of_evaluate() -> Any:
    """`mean_iou` as a metric of `evaluate`, with the columns of the published one."""
    import evaluate

    class MeanIou(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
            features = datasets.Features({"predictions": maps, "references": maps})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
            maps = zip(predictions, references, strict=True)
            return {"areas": [mean_iou(np.array(predicted), np.array(labels)) for predicted, labels in maps]}

    return MeanIou


def metrics() -> dict[str, Callable[[int], Any]]:
    """By name, what counts a map, or takes it from logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, CLASSES, 1024, 2048, generator=generator)
    predicted, labels = logits.argmax(1), torch.randint(0, CLASSES, (1, 1024, 2048), generator=generator)
    labels[:, :64] = 255
    arrays = predicted.numpy(), labels.numpy()
    matrix = ConfusionMatrix(CLASSES)
    rows: dict[str, Callable[[int], Any]] = {"deft_hf's confusion matrix": lambda _: matrix.update(predicted, labels)}
    if PEERS["torchmetrics"]:
        from torchmetrics.classification import MulticlassConfusionMatrix

        torchs = MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False)
        rows["torchmetrics"] = lambda _: torchs.update(predicted, labels)
    rows["evaluate's computation"] = lambda _: mean_iou(*arrays)
    if PEERS["evaluate"]:
        metric = mean_iou_of_evaluate()

        def by_evaluate(_: int) -> Any:
            counted = metric()
            counted.add_batch(predictions=arrays[0], references=arrays[1])
            return counted.compute()

        rows["evaluate"] = by_evaluate
    return rows | {"deft_hf's argmax": lambda _: most_likely(logits), "torch's argmax": lambda _: logits.argmax(1)}


def in_turn(rows: dict[str, Callable[[int], Any]], rounds: int, items: int) -> dict[str, float]:
    """Milliseconds of CPU time that each takes for an item, median of the rounds."""
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, call in rows.items():
            start = time.process_time()
            for index in range(items):
                call(index)
            found[name].append((time.process_time() - start) / items * 1000)
    return {name: round(statistics.median(times[1:]), 2) for name, times in found.items()}  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pipeline.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    libraries = [library for library in (*PEERS.values(), np, PIL, torch) if library]
    versions = {library.__name__: library.__version__ for library in libraries}
    missing = [name for name, library in PEERS.items() if library is None]
    found: dict[str, Any] = {"device": hardware(), "versions": versions, "missing": missing}
    with tempfile.TemporaryDirectory() as folder:
        for suffix, size in FORMATS.items():
            rows = pipelines(draw(Path(folder), suffix, size), suffix)
            found[f"ms an item, {suffix} of {size[0]} x {size[1]}"] = in_turn(rows, options.rounds, IMAGES)
    found["ms a map of 1024 x 2048, 19 classes"] = in_turn(metrics(), options.rounds, 1)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
