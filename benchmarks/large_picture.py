"""Peak memory and seconds of `deft-hf predict` on one large picture with a sliding window.

    python benchmarks/large_picture.py [--height 9000 --width 12000] [--window 512] [--out FILE.json]

The picture is made of drawn streets. The model has random weights, which cost what trained ones do: `mobilenetv2`
(with DeepLabV3+), or `tiny`, a SegFormer of a few thousand parameters, beside which libraries and picture are all. The
command runs in a process of its own with one thread, whose largest resident set is reported: libraries, model, picture
and all. `sha256` is that of the class ids, so that two versions can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from deft_hf.data import draw_street
from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized

Image.MAX_IMAGE_PIXELS = None
TILE = (750, 1000)
STREETS = 4


def draw(path: Path, height: int, width: int) -> None:
    """Writes streets beside and below each other as one PNG."""
    tiles = [draw_street("clear", seed, TILE)[0] for seed in range(STREETS)]
    down, across = -(-height // TILE[0]), -(-width // TILE[1])
    rows = [
        np.concatenate([tiles[(row + column) % STREETS] for column in range(across)], axis=1) for row in range(down)
    ]
    Image.fromarray(np.concatenate(rows)[:height, :width]).save(path, compress_level=1)


def build(name: str, folder: Path, classes: int) -> None:
    """Writes a model."""
    torch.manual_seed(0)
    model: PreTrainedModel
    if name == "tiny":
        few = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
        model = SegformerForSemanticSegmentation(SegformerConfig(**few, num_labels=classes))
    else:
        model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(output_stride=16, num_labels=classes))
    export_generalized(model.eval(), folder, segmentation_processor(None, (512, 512)))


def run(command: list[str]) -> dict[str, float]:
    """Seconds and MiB at its peak of a command."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mib": round(used.ru_maxrss * unit / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--height", type=int, default=9000)
    parser.add_argument("--width", type=int, default=12000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--model", choices=("mobilenetv2", "tiny"), default="mobilenetv2")
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    found: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    found |= {name: value for name, value in vars(given).items() if name != "out"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # In a process of its own: the peak of whoever starts the command would count as the command's.
        drawing = get_context("spawn").Process(target=draw, args=(folder / "large.png", given.height, given.width))
        drawing.start()
        drawing.join()
        build(given.model, folder / "model", given.classes)
        command = [sys.executable, "-m", "deft_hf", "predict", str(folder / "model"), str(folder / "large.png")]
        window = f"{given.window},{given.window}"
        found |= run([*command, "--out", str(folder / "out"), "--window", window, "--quiet"])
        ids = np.asarray(Image.open(folder / "out" / "classes" / "large.png"))
        found["sha256"] = hashlib.sha256(ids.tobytes()).hexdigest()
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
