"""The cross-entropy by rows beside that of resized logits: time, memory and how far they are apart.

    python benchmarks/row_loss.py [--repeats 9] --out FILE.json

Forward and backward of two images of 512 x 512 pixels, float32, one thread; the two take turns, and the time is the
median of paired ratios. Memory is the bytes of the tensors alive at the peak, on top of logits and labels, as a ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from deft_hf.models import row_loss

sys.path.insert(0, str(Path(__file__).parent))
from memory import LiveBytes  # noqa: E402

SIDE, IMAGES = 512, 2
CASES = [(7, 128), (16, 128), (19, 32), (19, 128), (150, 128)]  # classes, side of the logits


def step(logits: Tensor, labels: Tensor, by_rows: bool) -> Tensor:
    logits.grad = None
    row_loss._LEAST_CLASSES = 0 if by_rows else sys.maxsize
    loss = row_loss.cross_entropy_sum(logits, labels)
    loss.backward()
    return loss.detach()


def seconds(logits: Tensor, labels: Tensor, by_rows: bool) -> float:
    start = time.perf_counter()
    step(logits, labels, by_rows)
    return time.perf_counter() - start


def peak(logits: Tensor, labels: Tensor, by_rows: bool) -> int:
    with LiveBytes([logits, labels]) as counted:
        before = counted.now
        step(logits, labels, by_rows)
    return counted.peak - before


def measure(classes: int, side: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    logits = torch.randn(IMAGES, classes, side, side, requires_grad=True)
    labels = torch.randint(0, classes, (IMAGES, SIDE, SIDE))
    labels[torch.rand(labels.shape) < 0.1] = 255
    results = []
    for by_rows in (False, True):
        results.append((step(logits, labels, by_rows), logits.grad))
    (loss, gradient), (by_rows_loss, by_rows_gradient) = results
    pairs = [(seconds(logits, labels, True), seconds(logits, labels, False)) for _ in range(repeats)]
    return {
        "classes": classes,
        "logits": side,
        "time": median(rows / whole for rows, whole in pairs),
        "memory": peak(logits, labels, True) / peak(logits, labels, False),
        "loss_apart": float((by_rows_loss - loss).abs() / loss),
        "gradient_apart": float((by_rows_gradient - gradient).norm() / gradient.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| classes | logits | time | memory | loss apart | gradient apart |\n|---:|---:|---:|---:|---:|---:|")
    rows = []
    for case in CASES:
        rows.append(measure(*case, asked.repeats))
        classes, side, times, memory, *apart = rows[-1].values()
        print(
            f"| {classes} | {side} x {side} | {times:.2f} | {memory:.2f} | {apart[0]:.0e} | {apart[1]:.0e} |",
            flush=True,
        )
    asked.out.write_text(
        json.dumps({"torch": torch.__version__, "repeats": asked.repeats, "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
