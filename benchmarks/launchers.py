"""How far apart DDP, ZeRO-1 to 3 and FSDP2 end, straight and resumed, in two processes on a CPU.

    python benchmarks/launchers.py [--out benchmarks/results/launchers.json]

Needs the extra `deepspeed`. Tiny SegFormer and MobileNetV2, four steps of warm-up and six decoupled: how far a
component is from DDP's, relative to its size and to how far it went from the initialisation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
MODELS = ("segformer", "mobilenet_v2")


def norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())


def compare(folder: Path, reference: Path) -> dict[str, dict[str, float]]:
    initial = load_file(reference / "initial.safetensors")
    found = {}
    for component in ("usual", "generalized"):
        ours, theirs = (load_file(place / f"{component}.safetensors") for place in (folder, reference))
        apart = norm([ours[name] - theirs[name] for name in initial])
        went = norm([theirs[name] - initial[name] for name in initial])
        found[component] = {"of its size": apart / norm([theirs[n] for n in initial]), "of its way": apart / went}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [sys.executable, *launcher, "-m", "tests.distributed.launcher_script", place, *MODELS]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        table = {
            model: {run.name: compare(run, run.parent / "ddp") for run in sorted(Path(place, model).iterdir())}
            for model in MODELS
        }
    print(
        "| model | run | UC, of its size | of its way | GC, of its size | of its way |\n|---|---|---:|---:|---:|---:|"
    )
    for model, runs in table.items():
        for run, parts in runs.items():
            figures = [value for component in parts.values() for value in component.values()]
            print(f"| {model} | {run} | " + " | ".join(f"{figure:.1e}" for figure in figures) + " |")
    if arguments.out:
        arguments.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
