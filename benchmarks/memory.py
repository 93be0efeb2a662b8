"""Peak memory of an optimizer step, joint against DeFT, and the memory a GPU needs under each launcher.

    python benchmarks/memory.py [--side 512] [--batch 2] [--out benchmarks/results/memory.json]

Counted are the bytes of all tensors that are alive, on any device, at every operation of a step: weights, generalized
component, gradients, optimizer state, activations, buffers of kernels that are tensors. What an allocator rounds up or
keeps is not. DeFT's peak should be joint's and one more model: the graph of the decoder pathway is gone before that of
the encoder pathway, which is as large as joint's, is built.
"""

from __future__ import annotations

import argparse
import json
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import resolve_family

MiB = 2**20

SEGFORMER_B0 = SegformerConfig(num_labels=19)
SEGFORMER_B5 = SegformerConfig(
    hidden_sizes=[64, 128, 320, 512], depths=[3, 6, 40, 3], decoder_hidden_size=768, num_labels=19
)
MODELS = {
    "SegFormer-b0": lambda: SegformerForSemanticSegmentation(SEGFORMER_B0),
    "MobileNetV2 + DeepLabV3+": lambda: MobileNetV2ForSemanticSegmentation(
        MobileNetV2Config(output_stride=16, num_labels=19)
    ),
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, as long as something holds them."""

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()
        for tensor in there:
            self._meet(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        return result

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or not size:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak(model: nn.Module, method: str, side: int, batch: int, checkpointing: bool = False) -> dict[str, float]:
    """MiB of a step with AdamW: at its peak, and at rest between steps."""
    family = resolve_family(model)
    average = EMA(0.999, 0.999) if method == "deft" else None
    pathways = DualPathway(model, family, average)
    if checkpointing:
        pathways.activation_checkpointing_enable()
    pathways.train().enter("decoupled" if method == "deft" else "joint", average)
    pathways.snapshot()
    trained = [parameter for parameter in pathways.usual.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    images = torch.randn(batch, 3, side, side)
    labels = torch.randint(0, 19, (batch, side, side))

    def step() -> None:
        pathways(pixel_values=images, labels=labels)["loss"].backward()
        optimizer.step()
        pathways.update_generalized()
        optimizer.zero_grad()

    step()  # makes the optimizer's state
    state = [value for held in optimizer.state.values() for value in held.values() if isinstance(value, Tensor)]
    there = [*pathways.parameters(), *pathways.buffers(), *state, images, labels]
    with LiveBytes(there) as counted:
        rest = counted.now
        step()
    return {"peak": counted.peak / MiB, "rest": rest / MiB}


def measure(side: int, batch: int) -> list[dict[str, Any]]:
    rows = []
    for name, build in MODELS.items():
        for checkpointing in (False, True):
            torch.manual_seed(0)
            if checkpointing and not build().supports_gradient_checkpointing:
                continue
            joint, deft = (peak(build(), method, side, batch, checkpointing) for method in ("joint", "deft"))
            model = sum(tensor.nbytes for tensor in [*build().parameters(), *build().buffers()]) / MiB
            rows.append(
                {
                    "model": name + (", activation checkpointing" if checkpointing else ""),
                    "joint_peak": joint["peak"],
                    "model_copy": model,
                    "predicted_deft_peak": joint["peak"] + model,
                    "deft_peak": deft["peak"],
                }
            )
    return rows


def per_gpu(parameters: float, gpus: int) -> dict[str, float]:
    """GiB a GPU holds at rest for a model of `parameters`, without activations: float32 weights of both components,
    gradients and AdamW's two moments, 4 bytes each; ZeRO has a float32 copy of the trained weights besides."""
    one = 4 * parameters / 2**30
    weights, gradients, moments, masters = 2 * one, one, 2 * one, one
    return {
        "DDP": weights + gradients + moments,
        "ZeRO-1": weights + gradients + (moments + masters) / gpus,
        "ZeRO-2": weights + (gradients + moments + masters) / gpus,
        "ZeRO-3": (weights + gradients + moments + masters) / gpus,
        "FSDP2": (weights + gradients + moments) / gpus,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=512, help="of the square crops, in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    rows = measure(arguments.side, arguments.batch)
    columns = ["MiB at the peak of a step", "joint", "+ model", "= predicted", "DeFT"]
    print(f"| {' | '.join(columns)} |\n|---|" + "---:|" * 4)
    for row in rows:
        name, *figures = row.values()
        print(f"| {name} | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |")
    with torch.device("meta"):
        sizes = {
            "SegFormer-b0": SegformerForSemanticSegmentation(SEGFORMER_B0).num_parameters(),
            "SegFormer-b5": SegformerForSemanticSegmentation(SEGFORMER_B5).num_parameters(),
            "300 M parameters": 300e6,
        }
    table = {name: per_gpu(parameters, gpus=8) for name, parameters in sizes.items()}
    print("\n| GiB a GPU at rest, 8 GPUs | " + " | ".join(next(iter(table.values()))) + " |\n|---|" + "---:|" * 5)
    for name, figures in table.items():
        print(f"| {name} ({sizes[name] / 1e6:.0f} M) | " + " | ".join(f"{gib:.2f}" for gib in figures.values()) + " |")
    if arguments.out:
        facts = {"side": arguments.side, "batch": arguments.batch, "peaks_MiB": rows, "per_gpu_GiB": table}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
