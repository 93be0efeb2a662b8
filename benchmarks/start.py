"""What stands around the training steps: start, imports, checkpoints, evaluation and prediction.

    python benchmarks/start.py --out FILE.json [--images 2000] [--quick]

* From the command `python -m deft_hf.train RECIPE` to its first optimizer step: the first start on so many pairs of
  1024 x 512 pixels (drawn streets with the noise of a camera, a different file each), the second, and a third after
  one mask has changed. Each writes to a folder of its own; the model is the tiny SegFormer of the package.
* Imports and commands that read their arguments, beside `import torch` and transformers' `Trainer`.
* A checkpoint of a SegFormer-B0 and the resume from it: `joint`, `deft`, and transformers' `Trainer`.
* `evaluate` beside a loop over transformers' `pipeline`, which counts into the same confusion matrix, and `predict`
  with and without overlays, on the same files: by a tiny SegFormer, beside which everything around it shows, and by
  SegFormer-B0. What is compared takes turns in one process.

One thread for torch; medians. The JSON is flat; what ends in `_s` are seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (512, 1024)
METHODS = ("transformers", "joint", "deft")
RECIPE = """\
model: {checkpoint: embedded}
method: {name: deft, decoder_warmup_steps: 2}
data:
  labels: streets
  source: [{folder: DATA, split: 0.98}]
  validation: [{folder: DATA, split: 0.02}]
  crop_size: [128, 128]
training: {output_dir: OUT, max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1e-3, logging_steps: 1}
"""
IMPORTS = {
    "import_torch_s": ["-c", "import torch"],
    "import_torch_transformers_s": ["-c", "import torch, transformers"],
    "import_trainer_s": ["-c", "from transformers import Trainer"],
    "import_deft_hf_s": ["-c", "import deft_hf"],
    "import_deft_trainer_s": ["-c", "from deft_hf import DeFTTrainer"],
    "help_s": ["-m", "deft_hf", "--help"],
    "train_help_s": ["-m", "deft_hf", "train", "--help"],
    "train_parsed_s": ["-m", "deft_hf.train"],  # which ends where its arguments are found to be missing
}


def alone(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `measure` returns in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *given).result()


def draw(folder: Path, count: int) -> dict[str, Any]:
    """Writes pairs, of which those of one drawing differ in a comment; says what device and versions these are."""
    from deft_hf.data import draw_street
    from deft_hf.runs.provenance import hardware, versions

    rng = np.random.default_rng(0)
    drawn = []
    for seed in range(min(12, count)):
        image, mask = draw_street("clear", seed, SIZE)
        noisy = (image.astype(np.int16) + rng.integers(-4, 5, image.shape)).clip(0, 255).astype(np.uint8)
        drawn.append((_png(noisy), _png(mask)))
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        for name, content in zip(("images", "masks"), drawn[index % len(drawn)], strict=True):
            (folder / name / f"{index:05d}.png").write_bytes(_commented(content, str(index)))
    return {"device": hardware(), **versions()}


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _commented(png: bytes, comment: str) -> bytes:
    chunk = b"tEXtComment\0" + comment.encode()
    head = 33  # signature and IHDR
    return png[:head] + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[head:]


def until_first_step(recipe: Path, out: Path) -> float:
    """Seconds from the command until the log of the first step is printed; the run is ended there."""
    start = time.perf_counter()
    command = [sys.executable, "-u", "-m", "deft_hf.train", str(recipe), f"training.output_dir={out}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "'loss'" in line:
                process.kill()
                return round(time.perf_counter() - start, 2)
    raise SystemExit("".join(lines))


def starts(folder: Path, count: int) -> dict[str, Any]:
    """The starts of one recipe."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("DATA", str(folder / "data")).replace("OUT", str(folder / "out")))
    found = {f"{name}_start_s": until_first_step(recipe, folder / name) for name in ("first", "second")}
    mask = folder / "data" / "masks" / "00001.png"
    ids = np.array(Image.open(mask))
    ids[0, 0] = ids.max() - ids[0, 0]
    mask.write_bytes(_png(ids))
    found["changed_start_s"] = until_first_step(recipe, folder / "third")
    found["first_over_second"] = round(found["first_start_s"] / found["second_start_s"], 2)
    return {"images": count, **found}


def imports(repeats: int) -> dict[str, float]:
    """Seconds of each command, all in turn, median of the repeats."""
    subprocess.run([sys.executable, *IMPORTS["import_deft_trainer_s"]], check=True)  # files are cached from here on
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, arguments in IMPORTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            taken[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(each), 2) for name, each in taken.items()}


class _Items:
    """Noise and labels of the size of a crop."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(index)
        pixels = torch.randn(3, 128, 128, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(0, 7, (128, 128), generator=generator)}


def checkpoints(folder: Path, repeats: int) -> dict[str, Any]:
    """Of each method of deft_hf and of transformers' `Trainer` in turn, see `checkpoint`: medians."""
    rows = [
        {f"{method}_{key}": value for method in METHODS for key, value in checkpoint(method, folder, repeat).items()}
        for repeat in range(repeats)
    ]
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def checkpoint(method: str, folder: Path, repeat: int) -> dict[str, float]:
    """Seconds of a step, of a save after the second and of the resume from it, and bytes by file."""
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.utils import logging

    from deft_hf import DeFTTrainer, DeFTTrainingArguments

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = folder / f"{method}{repeat}"
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "save_steps": 2, "report_to": "none", "max_steps": 2}
    options |= {"output_dir": str(folder), "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    if method == "transformers":
        made: Any = (Trainer, TrainingArguments(**options))
    else:
        warmup = {"decoder_warmup_steps": 1, "max_steps": 1} if method == "deft" else {}
        made = (DeFTTrainer, DeFTTrainingArguments(**options | {"method": method} | warmup))
    found: dict[str, float] = {}

    def timed(of: Any, call: str, key: str) -> None:
        inner = getattr(of, call)

        def outer(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = inner(*given, **named)
            found[key] = time.perf_counter() - start  # of the last call
            return result

        setattr(of, call, outer)

    trainer = made[0](_segformer(), made[1], train_dataset=_Items())
    timed(trainer, "_save_checkpoint", "save_s")
    timed(trainer, "training_step", "step_s")
    if method != "transformers":
        timed(trainer.checkpoints, "save", "save_files_s")
    trainer.train()
    saved, kinds = folder / "checkpoint-2", ("model", "usual", "initial", "generalized", "optimizer")
    for path in sorted(saved.iterdir()):
        key = f"{path.stem if path.stem in kinds else 'rest'}_bytes"
        found[key] = found.get(key, 0) + path.stat().st_size
    trainer = made[0](_segformer(), made[1], train_dataset=_Items())
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(saved))
    return found | {"resume_s": time.perf_counter() - start}


def _segformer(**config: Any) -> Any:
    """Of random weights, which cost what trained ones do."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(**config | {"num_labels": 7}))


def around(name: str, folder: Path, data: Path, count: int, rounds: int) -> dict[str, Any]:
    """Scores and predicts, each way in turn: images a second, median of the rounds."""
    import torch
    from transformers import pipeline
    from transformers.utils import logging

    from deft_hf import predict
    from deft_hf.data import STREETS, Domain
    from deft_hf.models.processor import segmentation_processor
    from deft_hf.publish.export import export_generalized
    from deft_hf.runs.evaluate import score
    from deft_hf.runs.segmenter import Segmenter
    from deft_hf.scoring.confusion import ConfusionMatrix

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    few = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    model = str(folder / name)
    export_generalized(_segformer(**(few if name == "tiny" else {})).eval(), model, segmentation_processor(None, SIZE))
    town = Domain.from_folder(data, STREETS, name="town").select(range(count))
    segmenter = Segmenter.open(model, device="cpu")
    pipe: Any = pipeline("image-segmentation", model=model, device="cpu")
    known = {label: index for index, label in pipe.model.config.id2label.items()}
    pictures = [town.dataset[index]["image"]["path"] for index in range(count)]

    def by_pipeline(batch: int) -> float:
        matrix = ConfusionMatrix(len(STREETS.names))
        for path, segments in zip(pictures, pipe(pictures, batch_size=batch), strict=True):
            ids = np.zeros(SIZE, np.uint8)
            for segment in segments:
                ids[np.asarray(segment["mask"]) > 0] = known[segment["label"]]
            truth = np.array(Image.open(path.replace("images", "masks")))
            matrix.update(torch.from_numpy(ids), torch.from_numpy(truth))
        return matrix.compute(STREETS.names).mean_iou

    def by_predict(overlays: bool) -> None:
        predict(model, pictures, tempfile.mkdtemp(dir=folder), device="cpu", overlays=overlays, progress=False)

    ways: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: score(segmenter, unseen=[town], progress=False).scores["town"].mean_iou,
        "pipeline": lambda: by_pipeline(1),
        "pipeline_batch_4": lambda: by_pipeline(4),
        "predict": lambda: by_predict(True),
        "predict_no_overlays": lambda: by_predict(False),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, Any] = {}
    for _ in range(rounds):
        for way, call in ways.items():
            start = time.perf_counter()
            scores[way] = call()
            taken[way].append(time.perf_counter() - start)
    found = {f"{name}_{way}_images_per_s": round(count / statistics.median(each), 3) for way, each in taken.items()}
    ratios = (theirs / ours for theirs, ours in zip(taken["pipeline"], taken["evaluate"], strict=True))
    found[f"{name}_evaluate_over_pipeline"] = round(statistics.median(ratios), 3)
    return found | {f"{name}_same_score": scores["evaluate"] == scores["pipeline"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000, help="pairs of the recipe that is started")
    parser.add_argument("--quick", action="store_true", help="100 pairs, one repeat, the tiny model alone")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    given = parser.parse_args()
    count, repeats = (100, 1) if given.quick else (given.images, 3)
    with tempfile.TemporaryDirectory() as place:
        folder, data = Path(place), Path(place) / "data"
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_ASSETS_CACHE": str(folder / "cache")}
        found = alone(draw, data, count) | imports(repeats) | starts(folder, count)
        found |= alone(checkpoints, folder, repeats)
        found |= alone(around, "tiny", folder, data, 12, repeats)
        if not given.quick:
            found |= alone(around, "segformer_b0", folder, data, 4, repeats)
    print(json.dumps(found, indent=2))
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
