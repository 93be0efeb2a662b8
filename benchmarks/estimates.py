"""How far off is an estimate of mean IoU where there are no labels? Labelled unseen domains, as if they had none.

Five data sets, three methods, three seeds, short trainings of MobileNetV2. Estimators are calibrated on some images of
source validation and on corrupted copies of them; places are the unseen domains and, as the corruption suite, copies
of other validation images with a kind of corruption that the calibration has not seen.

    python benchmarks/estimates.py run --data DATA --weights WEIGHTS --out OUT [--seconds 200]
    python benchmarks/estimates.py table --out OUT --rows benchmarks/studies/results/estimates/rows.json.xz

`run` does what is not done yet, one training or one pass over the images at a time, until it is done or the seconds
are over; start it again. `table` prints the tables of the page from `OUT`, or from the rows where there is no `OUT`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn import functional

from deft_hf.data.corruptions import CORRUPTIONS, corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.streets import STREETS
from deft_hf.scoring.estimates import DEFAULT_METHOD, ESTIMATORS, Calibration, LabelledCounts, PlaceCounts

STREET7 = {"names": list(STREETS.names), "palette": [list(color) for color in STREETS.palette]}
TWO = [[0, 0, 0], [255, 255, 255]]
LOOKS = ("dusk", "night", "fog", "rain", "snow", "other_town")
SETS: dict[str, dict[str, Any]] = {
    "street7": {
        "labels": STREET7,
        "source": "camvid_day",
        "unseen": ("camvid_day2", "camvid_day3", "camvid_dusk"),
        "size": (144, 192),
    },
    "streets": {"labels": STREET7, "source": "clear", "unseen": LOOKS, "size": (144, 192)},
    "nuclei2": {
        "labels": {"names": ["background", "nucleus"], "palette": TWO},
        "source": "fluorescence",
        "unseen": ("histology", "brightfield"),
        "size": (160, 160),
    },
    "crack3": {
        "labels": {"names": ["background", "crack"], "palette": TWO},
        "source": "uav_cc0",
        "unseen": ("masonry", "uav75"),
        "size": (160, 160),
        "weight": 8.0,
    },
    "tile6": {
        "labels": {"names": ["background", "defect"], "palette": TWO},
        "source": "exp3",
        "unseen": ("exp1", "exp2", "exp4", "exp5", "exp6"),
        "size": (160, 160),
        "weight": 8.0,
    },
}
METHODS, SEEDS = ("joint", "deft", "lp_ft"), (0, 1, 2)
SEVERITIES, HELD_OUT = (1, 3, 5), 3
IMAGES, IMAGES_OF_TWO_CLASSES = (16, 8, 30), (12, 6, 20)  # for calibration, of the suite, of a place: at most
STEPS, STEPS_OF_TWO_CLASSES, WARMUP = 100, 150, 20  # with two classes it takes 100 steps to leave the background

NAMES = {
    "source": "naive guess: the score of source validation",
    "confidence": "plain confidence",
    "temperature": "soft confusion matrix, class-wise temperatures",
    "thresholded": "class-wise average thresholded confidence",
    "difference": "class-wise difference of confidences",
    "soft_dice": "soft Dice confidence",
    "agreement": "agreement of three members",
}
GROUPS = {
    "Unseen domains": "place",
    "Corruption suite: a kind of corruption that the calibration has not seen": "suite",
    "Other images of source validation": "held-out source",
}
HEAD = ("error", "without the line", "bias", "largest", "coverage", "width", "error per class", "coverage of classes")


def recipe(name: str, data: Path, weights: Path) -> dict[str, Any]:
    """The recipe of a data set."""
    facts = SETS[name]
    two = len(facts["labels"]["names"]) == 2
    if name == "streets":
        where: dict[str, Any] = {
            "source": [{"streets": "clear", "count": 160, "seed": 0}],
            "validation": [{"streets": "clear", "count": 8, "seed": 1}],
        }
    else:
        where = {
            "root": str(data / name),
            "source": [{"folder": facts["source"], "split": "train"}],
            "validation": [{"folder": facts["source"], "split": "val"}],
        }
    return {
        "model": {"checkpoint": str(weights), "config": {"output_stride": 8 if two else 16}, "channels_last": True},
        "method": {"decoder_warmup_steps": WARMUP, "batchnorm_batches": 8},
        "data": {
            "labels": facts["labels"],
            **where,
            "image_size": list(facts["size"]),
            "crop_size": [96, 96] if two else [96, 128],
            "scale": [0.75, 1.5],
            "max_class_share": 0.8 if two else 1.0,
            "check": False,
        },
        "training": {
            "max_steps": STEPS_OF_TWO_CLASSES if two else STEPS,
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 16,
            "optim": "adamw_torch",
            "learning_rate": 1e-3,
            "weight_decay": 1e-2,
            **(
                {"lr_scheduler_type": "constant"}
                if two
                else {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 0.9, "lr_end": 0.0}}
            ),
            "logging_steps": 20,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }


def train_run(name: str, method: str, seed: int, options: argparse.Namespace) -> None:
    from deft_hf import Recipe
    from deft_hf.runs.train import train

    path = options.out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe(name, options.data, options.weights)))
    folder = run_folder(options.out, name, method, seed)
    choices = Recipe.load(path, [f"method.name={method}", f"training.seed={seed}", f"training.output_dir={folder}"])
    with weighted_loss(SETS[name].get("weight")):
        train(choices)


@contextmanager
def weighted_loss(weight: float | None) -> Iterator[None]:
    """Lets a pixel of the second class count so many times: a rare class is learned in a short training at all."""
    plain = functional.cross_entropy

    def weighted(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        return plain(logits, labels, weight=logits.new_tensor([1.0, weight]), **options)

    functional.cross_entropy = weighted if weight else plain
    try:
        yield
    finally:
        functional.cross_entropy = plain


def run_folder(out: Path, name: str, method: str, seed: int) -> Path:
    return out / name / f"{method}-s{seed}"


def domains(name: str, data: Path) -> dict[str, Any]:
    """Images for calibration, others for the suite, and the places, as domains."""
    facts = SETS[name]
    labels = LabelSpace.from_mapping(facts["labels"])
    if name == "streets":
        size = facts["size"]
        validation = Domain.from_streets("clear", count=30, seed=1, size=size)
        places = {look: Domain.from_streets(look, count=30, seed=2, size=size) for look in facts["unseen"]}
    else:
        validation = Domain.from_folder(data / name / facts["source"], labels, split="val")
        places = {place: Domain.from_folder(data / name / place, labels) for place in facts["unseen"]}
    # The first two thirds and the last third, so that the suite shows no neighbours of what calibrates.
    first = len(validation) * 2 // 3
    calibration, suite, most = IMAGES_OF_TWO_CLASSES if labels.num_labels == 2 else IMAGES
    return {
        "calibration": validation.select(spread(0, first, calibration)),
        "suite": validation.select(spread(first, len(validation), suite)),
        "places": {key: place.select(spread(0, len(place), most)) for key, place in places.items()},
    }


def spread(start: int, stop: int, most: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(start, stop - 1, min(most, stop - start))})


def arrays(name: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Images and masks of all domains at the size that the model sees, drawn once: `KEY/images` and `KEY/masks`."""
    path = options.out / name / "images.npz"
    if not path.exists():
        found, size = domains(name, options.data), SETS[name]["size"]
        clean, suite = (Small(found[key], size) for key in ("calibration", "suite"))
        kinds = [(f"copy/{kind}/{step}", corrupted(clean, kind, step)) for kind in CORRUPTIONS for step in SEVERITIES]
        kinds += [(f"suite/{kind}", corrupted(suite, kind, HELD_OUT, seed=1)) for kind in CORRUPTIONS]
        places = [(f"place/{place}", Small(domain, size)) for place, domain in found["places"].items()]
        stored = {}
        for key, domain in [("source", clean), ("suite/none", suite), *kinds, *places]:
            pairs = [domain.load(index) for index in range(len(domain))]
            stored[f"{key}/images"] = np.stack([np.asarray(image) for image, _ in pairs])
            stored[f"{key}/masks"] = np.stack([mask for _, mask in pairs])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **stored)
    with np.load(path) as file:
        return {key: file[key] for key in file}


class Small(Domain):
    """A domain at another size, decoded once."""

    def __init__(self, domain: Domain, size: tuple[int, int]) -> None:
        self.__dict__.update(domain.__dict__)
        self.pairs = []
        for index in range(len(domain)):
            image, mask = domain.load(index)
            small = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
            self.pairs.append((image.resize(size[::-1], Image.Resampling.BILINEAR), np.asarray(small)))

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        return self.pairs[index]


def read(name: str, method: str, options: argparse.Namespace) -> None:
    """Passes every image through the models of all seeds and keeps the counts of each model, as far as time allows."""
    from deft_hf.runs.segmenter import Segmenter

    images = arrays(name, options)
    classes = len(SETS[name]["labels"]["names"])
    models = [Segmenter.open(str(run_folder(options.out, name, method, seed)), device="cpu") for seed in SEEDS]

    def predictions(key: str) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """For each image the probabilities of every model, and the labels."""
        pictures, masks = images[f"{key}/images"], torch.from_numpy(images[f"{key}/masks"]).long()
        for start in range(0, len(pictures), 16):
            batch = list(pictures[start : start + 16])
            values = models[0].processor(images=batch, return_tensors="pt", do_resize=False)["pixel_values"]
            with torch.no_grad():
                found = [
                    functional.interpolate(
                        model.family.semantic_logits(model.model, values), masks.shape[1:], mode="bilinear"
                    ).softmax(1)
                    for model in models
                ]
            for index in range(len(batch)):
                yield [probabilities[index] for probabilities in found], masks[start + index]

    def labelled(key: str, places: Sequence[PlaceCounts] = ()) -> list[LabelledCounts]:
        counts = [LabelledCounts(classes) for _ in SEEDS]
        for found, labels in predictions(key):
            ids = [probabilities.argmax(0) for probabilities in found]
            for which in range(len(SEEDS)):
                others = [member for other, member in enumerate(ids) if other != which]
                counts[which].update(found[which], labels, others)
                if places:
                    places[which].update(found[which], others)
        return counts

    part, target = (options.out / name / f"{method}.{end}" for end in ("part", "pt"))
    done = torch.load(part, weights_only=False) if part.exists() else {}
    for key in ["source", *keys(images, "copy/"), *keys(images, "place/"), *keys(images, "suite/")]:
        if key in done:
            continue
        if time.perf_counter() > options.deadline:
            torch.save(done, part)
            return
        place = []
        if not key.startswith(("source", "copy/")):
            place = [Calibration(counts).counts() for counts in done["source"][0]]  # its temperatures and thresholds
        done[key] = (labelled(key, place), place)
    torch.save(
        {
            "source": done["source"][0],
            "copies": {key: counts for key, (counts, _) in done.items() if key.startswith("copy/")},
            "places": {key: both for key, both in done.items() if key.startswith(("place/", "suite/"))},
        },
        part,
    )
    part.rename(target)


def keys(images: dict[str, np.ndarray], prefix: str) -> list[str]:
    return [key.removesuffix("/images") for key in images if key.startswith(prefix) and key.endswith("/images")]


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is left to do, in order: every set with the first method, then the sets of whole scenes before the rest."""
    order = [(name, METHODS[0]) for name in SETS]
    for sets in (list(SETS)[:2], list(SETS)[2:]):
        order += [(name, method) for method in METHODS[1:] for name in sets]
    for name, method in order:
        for seed in SEEDS:
            if not (run_folder(options.out, name, method, seed) / "results" / "metrics.json").exists():
                yield f"{name} {method} s{seed}: training", partial(train_run, name, method, seed, options)
        if not (options.out / name / f"{method}.pt").exists():
            yield f"{name} {method}: reading", partial(read, name, method, options)


def rows(out: Path) -> list[dict[str, Any]]:
    """A row for each place, model and estimator: truth, estimate and interval."""
    found = []
    for name in SETS:
        for method in METHODS:
            path = out / name / f"{method}.pt"
            if not path.exists():
                continue
            counts = torch.load(path, weights_only=False)
            for which, seed in enumerate(SEEDS):
                copies = [(key.split("/")[1], made[which]) for key, made in counts["copies"].items()]
                whole = Calibration(counts["source"][which], copies)
                for key, (truth, place) in counts["places"].items():
                    where, place_name = key.split("/")
                    if place_name == "none":
                        calibration, where = whole, "held-out source"
                    elif where == "suite":
                        calibration = Calibration(counts["source"][which], [c for c in copies if c[0] != place_name])
                    else:
                        calibration = whole
                    scores = truth[which].truth.compute()
                    evidence = place[which].evidence()
                    for estimator in NAMES:
                        estimate = calibration.estimate(place[which], estimator)
                        plain = estimate.mean_iou
                        if estimator != "source":
                            plain = float(ESTIMATORS[estimator](evidence, calibration.parameters)[0].nanmean())
                        found.append(
                            estimate.to_dict()
                            | {"set": name, "method": method, "seed": seed, "where": where, "place": place_name}
                            | {"estimator": estimator, "truth": scores.mean_iou, "truth_per_class": scores.iou}
                            | {"source_truth": calibration.scores.mean_iou, "without_line": plain}
                        )
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """Errors in points and coverage in per cent over some rows.

    `without the line` is the error of the estimator as it was published: no corrupted copy has a part in it.
    """
    errors = np.array([100 * (row["mean_iou"] - row["truth"]) for row in found])
    inside = [row["interval"][0] <= row["truth"] <= row["interval"][1] for row in found]
    widths = [100 * (row["interval"][1] - row["interval"][0]) for row in found]
    classes = [
        (100 * abs(guess - truth), low <= truth <= high)
        for row in found
        for guess, truth, (low, high) in zip(
            row["per_class"], row["truth_per_class"], row["class_intervals"], strict=True
        )
        if math.isfinite(guess) and math.isfinite(truth)
    ]
    return {
        "mean absolute error": float(np.abs(errors).mean()),
        "without the line": float(np.mean([100 * abs(row["without_line"] - row["truth"]) for row in found])),
        "bias": float(errors.mean()),
        "largest": float(np.abs(errors).max()),
        "coverage": 100 * float(np.mean(inside)),
        "width": float(np.mean(widths)),
        "classes": float(np.mean([error for error, _ in classes])),
        "coverage of classes": 100 * float(np.mean([held for _, held in classes])),
    }


def overall_table(found: list[dict[str, Any]]) -> str:
    """A line for each estimator."""
    lines = [["estimator", *HEAD], ["---", *["---:"] * len(HEAD)]]
    lines += [
        [NAMES[estimator], *_cells(summary([row for row in found if row["estimator"] == estimator]))]
        for estimator in NAMES
    ]
    return _markdown(lines)


def trusted_only(found: list[dict[str, Any]], estimator: str) -> list[dict[str, Any]]:
    """The rows of all estimators where one of them is trusted."""
    trusted = {_place(row) for row in found if row["estimator"] == estimator and row["trusted"]}
    return [row for row in found if _place(row) in trusted]


def _place(row: dict[str, Any]) -> tuple:
    return tuple(row[key] for key in ("set", "method", "seed", "where", "place"))


def set_table(found: list[dict[str, Any]]) -> str:
    """Mean absolute error and coverage of each estimator on each data set, or of each place where there is one set."""
    key = "set" if len({row["set"] for row in found}) > 1 else "place"
    groups = list(dict.fromkeys(row[key] for row in found))
    lines = [["estimator", *groups], ["---", *["---:"] * len(groups)]]
    for estimator in NAMES:
        line = [NAMES[estimator]]
        for group in groups:
            own = summary([row for row in found if row["estimator"] == estimator and row[key] == group])
            line.append(f"{own['mean absolute error']:.1f} ({own['coverage']:.0f} %)")
        lines.append(line)
    return _markdown(lines)


def place_table(found: list[dict[str, Any]], estimator: str) -> str:
    """Truth, naive guess and estimate of each place: means over methods and seeds."""
    head = ["place", "true mean IoU", "naive guess", "estimate", "error of the guess", "of the estimate", "trusted"]
    lines = [head, ["---", *["---:"] * 6]]
    for name, place in dict.fromkeys((row["set"], row["place"]) for row in found):
        own = [row for row in found if (row["set"], row["place"]) == (name, place)]
        guess, made = ([row for row in own if row["estimator"] == which] for which in ("source", estimator))
        means = [np.mean([row["truth"] for row in made]), np.mean([row["mean_iou"] for row in guess])]
        means.append(np.mean([row["mean_iou"] for row in made]))
        means += [np.mean([abs(row["mean_iou"] - row["truth"]) for row in which]) for which in (guess, made)]
        trusted = sum(row["trusted"] for row in made)
        lines.append([f"{name}: {place}", *(f"{100 * mean:.1f}" for mean in means), f"{trusted} of {len(made)}"])
    return _markdown(lines)


def _cells(found: dict[str, float]) -> list[str]:
    return [f"{value:+.1f}" if key == "bias" else f"{value:.1f}" for key, value in found.items()]


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(found: list[dict[str, Any]], estimator: str) -> str:
    """All tables of the page, as Markdown."""
    parts = []
    for title, where in GROUPS.items():
        some = [row for row in found if row["where"] == where]
        if not some:
            continue
        trusted = trusted_only(some, estimator)
        count = f"{len(trusted) // len(NAMES)} of {len(some) // len(NAMES)}"
        parts += [f"## {title}", f"All {len(some) // len(NAMES)}, trusted or not:", overall_table(some)]
        if trusted:
            parts += [f"Where the default is trusted, {count}:", overall_table(trusted)]
        parts += ["By data set, with the coverage of the interval:", set_table(some)]
        if where == "place":
            parts.append(place_table(some, estimator))
    return "\n\n".join(parts)


def figure(found: list[dict[str, Any]], estimator: str, path: Path) -> None:
    """Estimate over truth on the unseen domains, for the naive guess and an estimator."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colors = dict(zip(SETS, plt.get_cmap("tab10").colors, strict=False))
    _, axes = plt.subplots(1, 2, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
    for axis, which in zip(axes, ("source", estimator), strict=True):
        axis.plot([0, 100], [0, 100], color="grey", linewidth=1)
        for name, color in colors.items():
            own = [r for r in found if r["set"] == name and r["estimator"] == which and r["where"] == "place"]
            for trusted, marker, alpha in ((True, "o", 0.9), (False, "x", 0.4)):
                some = [row for row in own if row["trusted"] == trusted]
                for row in some:
                    low, high = (100 * end for end in row["interval"])
                    axis.plot([100 * row["truth"]] * 2, [low, high], color=color, linewidth=0.8, alpha=0.3)
                x, y = ([100 * row[key] for row in some] for key in ("truth", "mean_iou"))
                label = name if trusted else None
                axis.plot(x, y, marker, color=color, alpha=alpha, label=label, markersize=5)
        axis.set(title=NAMES[which], xlabel="true mean IoU in per cent", xlim=(0, 100), ylim=(0, 100))
    axes[0].set_ylabel("estimate in per cent; crosses: not trusted")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "run":
        options.out.mkdir(parents=True, exist_ok=True)
        start, longest = time.perf_counter(), 0.0
        options.deadline = start + options.seconds
        for what, job in jobs(options):
            begun = time.perf_counter()
            if begun + longest > options.deadline:
                break
            job()
            took = time.perf_counter() - begun
            longest = max(longest, took if what.endswith("training") else 0)
            print(f"{what}: {took:.0f} s", flush=True)
            if time.perf_counter() > options.deadline:
                break
        else:
            print("done", flush=True)
        return
    if options.out:
        options.rows.parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(options.rows, "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as file:
            json.dump(json.loads(json.dumps(rows(options.out)), parse_float=lambda text: round(float(text), 5)), file)
    with lzma.open(options.rows, "rt", encoding="utf-8") as file:
        found = json.load(file)
    figure(found, DEFAULT_METHOD, options.rows.parent / "figures" / "estimates.png")
    print(tables(found, DEFAULT_METHOD))


if __name__ == "__main__":
    main()
