"""What channels-last and `torch.compile` bring to a step, and how often autocast casts a weight.

    python benchmarks/step_variants.py --models segformer-b0,mobilenetv2 [--side 128] [--compile] --out FILE.json

The two layouts, or the step as it is and compiled, are timed in turn in one process; a figure is the median of paired
ratios to the same step in torch's own layout, not compiled.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_cost import MODELS, Bench, timed
from step_cost import step as step_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from deft_hf.methods.core.pathways import DualPathway

STAGES = {"joint": "joint", "deft": "decoupled"}


class ChannelsLast(Bench):
    """The same with weights in channels-last, as `model.channels_last` has it."""

    def model(self) -> nn.Module:
        model = super().model()
        model.to(memory_format=torch.channels_last)
        return model


class Casts(TorchDispatchMode):
    """Counts the casts of each of some tensors."""

    def __init__(self, of: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.data_ptr() for tensor in of}
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.known:
            self.count[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def casts(bench: Bench) -> dict[str, Any]:
    """Weights that autocast casts to bfloat16 in a step, and how often, by method."""
    found = {}
    for name, stage in STAGES.items():
        pathways, _ = bench.components(stage)
        pathways.autocast = torch.bfloat16
        with Casts([*pathways.parameters()]) as counted:
            pathways(**bench.batch)["loss"].backward()
        found[f"cast_weights_{name}"] = len(counted.count)
        found[f"casts_{name}"] = counted.count.total()
    return found


def gradients(pathways: DualPathway, run: nn.Module, batch: Any) -> tuple[float, Tensor]:
    """The loss of a step without dropout, and its gradients, flattened."""
    for module in pathways.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    torch.manual_seed(0)
    loss = run(**batch)["loss"]
    loss.backward()
    flat = torch.cat([each.grad.flatten() for each in pathways.usual.parameters() if each.grad is not None])
    pathways.zero_grad()
    return loss.item(), flat


def compiled(bench: Bench, rounds: int) -> dict[str, Any]:
    """Seconds of the first compiled step; its difference; and ratios, by method."""
    row = {}
    for name, stage in STAGES.items():
        pathways, optimizer = bench.components(stage)
        run = torch.compile(pathways)
        loss, expected = gradients(pathways, pathways, bench.batch)
        start = time.perf_counter()
        own_loss, own = gradients(pathways, run, bench.batch)
        row[f"first_step_seconds_{name}"] = time.perf_counter() - start
        row[f"loss_difference_{name}"] = abs(own_loss - loss) / abs(loss)
        row[f"gradient_difference_{name}"] = float((own - expected).norm() / expected.norm())
        ratios = []
        for _ in tqdm(range(rounds), desc=f"{bench.name}, {name}"):
            plain, fast = (
                timed(partial(step_of, each, optimizer, bench.batch), bench.device) for each in (pathways, run)
            )
            ratios.append(fast / plain)
        row[f"compiled_{name}"] = median(ratios)
    return row


def layouts(bench: Bench, last: Bench, rounds: int) -> dict[str, Any]:
    """A step in channels-last by one in torch's own layout, by method."""
    row = {}
    for name, stage in STAGES.items():
        steps = [each.components(stage) for each in (bench, last)]
        ratios = []
        for _ in tqdm(range(rounds), desc=f"{bench.name}, {name}"):
            plain, other = (timed(partial(step_of, *each, bench.batch), bench.device) for each in steps)
            ratios.append(other / plain)
        row[f"channels_last_{name}"] = median(ratios)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", required=True, help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--side", type=int, default=128, help="of the square crops, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, which takes minutes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; its other rows stay")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for name in asked.models.split(","):
        given = (name, asked.side, asked.batch, device, False)
        bench = Bench(*given)
        if asked.compile:
            found = compiled(bench, asked.rounds)
        else:
            found = casts(bench) | layouts(bench, ChannelsLast(*given), asked.rounds)
        found = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in found.items()}
        key = f"{name}, {bench.side} px"
        rows[key] = rows.get(key, {}) | found | {"rounds": asked.rounds}
        print(key, json.dumps(found), flush=True)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        asked.out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
