"""What a step of DeFT costs, as ratios to a step of joint fine-tuning, beside two floors.

    python benchmarks/step_cost.py --models segformer-b0,mobilenetv2 [--side 128] [--batch 4] [--bf16] --out FILE.json

All are timed in turn in one process, and a figure is the median of paired ratios. Rows of other models, sides,
batches, precisions or devices that FILE.json has stay.

* `deft`, `split`: a whole step, with average and AdamW, fused as in a run by default.
* `parts`: the floor, what is bound by memory included: each pathway alone, with only the gradients that it needs, and
  one step of the optimizer.
* `loop`: four modules and two backwards, as the authors' code has it.
* `flops_deft`, `flops_split`: the floor of operations.
* `ema`, `optimizer`, `loss`, `data`: their shares of a joint step; `data` is one process that makes the batch.
* `memory_...`: bytes of the tensors that are alive at the peak of a step; on a GPU, what its allocator held.
* `memory_parts`: the floor of memory, the largest of each pathway alone and the optimizer's step alone, with the
  weights of both components and the optimizer's state there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    ConvNextConfig,
    Dinov2Config,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    PreTrainedConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from deft_hf.data import TrainTransform, draw_street
from deft_hf.data.collate import MaskTargets
from deft_hf.methods.core.cost import step_flops
from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.stages import PARTS
from deft_hf.models.families import resolve_family

sys.path.insert(0, str(Path(__file__).parent))
from memory import LiveBytes  # noqa: E402

CLASSES = 19
KEY = ("model", "side", "batch", "bf16", "device")  # of a row
Steps = Mapping[str, Callable[[], None]]


def segformer(depths: list[int], sizes: list[int], decoder: int) -> Callable[[], nn.Module]:
    config = SegformerConfig(depths=depths, hidden_sizes=sizes, decoder_hidden_size=decoder, num_labels=CLASSES)
    return lambda: SegformerForSemanticSegmentation(config)


def upernet(backbone: PreTrainedConfig) -> Callable[[], nn.Module]:
    config = UperNetConfig(backbone_config=backbone, use_auxiliary_head=False, num_labels=CLASSES)
    return lambda: UperNetForSemanticSegmentation(config)


def dinov2(width: int, heads: int) -> PreTrainedConfig:
    return Dinov2Config(
        hidden_size=width, num_attention_heads=heads, out_features=["stage3", "stage6", "stage9", "stage12"]
    )


_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_MIT = [64, 128, 320, 512]
MODELS: dict[str, Callable[[], nn.Module]] = {
    "segformer-b0": segformer([2, 2, 2, 2], [32, 64, 160, 256], 256),
    "segformer-b2": segformer([3, 4, 6, 3], _MIT, 768),
    "segformer-b5": segformer([3, 6, 40, 3], _MIT, 768),
    "upernet-convnext-tiny": upernet(ConvNextConfig(hidden_sizes=[96, 192, 384, 768], **_STAGES)),
    "upernet-dinov2-small": upernet(dinov2(384, 6)),
    "upernet-dinov2-base": upernet(dinov2(768, 12)),
    "mask2former-swin-tiny": lambda: Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=SwinConfig(drop_path_rate=0.3, **_STAGES), num_labels=CLASSES)
    ),
    "mobilenetv2": lambda: MobileNetV2ForSemanticSegmentation(MobileNetV2Config(output_stride=16, num_labels=CLASSES)),
}


class Bench:
    """The ways to take a step of one model on one batch, each with components and an optimizer of its own."""

    def __init__(self, name: str, side: int, batch: int, device: torch.device, bf16: bool) -> None:
        self.name, self.device, self.bf16 = name, device, bf16
        if name.startswith("upernet-dinov2"):
            side = side // 14 * 14
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, CLASSES, (batch, side // 16 + 1, side // 16 + 1), generator=generator)
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :side, :side].contiguous()
        images = torch.randn(batch, 3, side, side, generator=generator)
        items = {"pixel_values": images, "labels": labels}
        if resolve_family(MODELS[name]()).objective.needs_masks:
            items = MaskTargets(lambda given: given)(items)
        self.batch = {key: self._moved(value) for key, value in items.items()}
        self.side = side

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else [each.to(self.device) for each in value]

    def model(self) -> nn.Module:
        """The model, newly drawn."""
        return MODELS[self.name]()

    def components(self, stage: Any) -> tuple[DualPathway, torch.optim.Optimizer]:
        """Components in a stage, and AdamW, whose state is made."""
        torch.manual_seed(0)
        model = self.model()
        average = None if stage == "joint" else EMA(0.999, 0.999)
        pathways = DualPathway(model, resolve_family(model), average).to(self.device).train()
        pathways.autocast = torch.bfloat16 if self.bf16 else None
        pathways.enter(stage, average)
        pathways.snapshot()
        trained = [parameter for parameter in pathways.usual.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        step(pathways, optimizer, self.batch)
        return pathways, optimizer

    def pathway(self, pathways: DualPathway, part: str) -> None:
        """Forward and backward of one pathway alone."""
        usual, generalized = pathways.usual, pathways.generalized
        encoder, decoder = (usual, generalized) if part == "encoder" else (generalized, usual)
        objective = pathways.family.objective
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            items = objective.count(usual, self.batch)
            objective.loss(pathways.pathway(encoder, decoder), self.batch, items).backward()

    def steps(self) -> tuple[Steps, dict[str, float]]:
        """What is timed, by name; and ratios of operations."""
        joint, deft, split = (self.components(stage) for stage in ("joint", "decoupled", "split"))
        pathways, optimizer = deft
        parameters = [*pathways.usual.parameters()]

        def loop() -> None:
            for part in ("decoder", "encoder"):
                self.pathway(pathways, part)
            optimizer.step()
            for average, current in zip(pathways.generalized.parameters(), parameters, strict=True):
                with torch.no_grad():
                    average.lerp_(current, 0.001)
            optimizer.zero_grad()

        def optimizer_alone() -> None:
            optimizer.step()

        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]

        def with_gradients() -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

        found: dict[str, Callable[[], None]] = {
            "joint": lambda: step(*joint, self.batch),
            "deft": lambda: step(*deft, self.batch),
            "split": lambda: step(*split, self.batch),
            "encoder": lambda: (self.pathway(pathways, "encoder"), optimizer.zero_grad())[1],
            "decoder": lambda: (self.pathway(pathways, "decoder"), optimizer.zero_grad())[1],
            "loop": loop,
            "optimizer": lambda: (with_gradients(), optimizer_alone(), optimizer.zero_grad())[2],
            "ema": pathways.update_generalized,
            "loss": self.loss_alone(joint[0]),
            "data": self.data_alone(),
        }
        flops = {name: step_flops(each[0], self.batch) for name, each in (("deft", deft), ("split", split))}
        of_joint = step_flops(joint[0], self.batch)
        return found, {f"flops_{name}": count / of_joint for name, count in flops.items()}

    def loss_alone(self, pathways: DualPathway) -> Callable[[], None]:
        """Forward and backward of the loss on the model's outputs; of mask classification, nothing."""
        objective = pathways.family.objective
        if objective.needs_masks:
            return lambda: None
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = objective.forward(pathways.usual, self.batch["pixel_values"])
        logits = objective.logits(outputs).detach().requires_grad_()
        items = objective.count(pathways.usual, self.batch)

        def run() -> None:
            model = nn.Module()
            model.forward = lambda pixel_values: logits  # type: ignore[method-assign]
            objective.loss(model, self.batch, items).backward()
            logits.grad = None

        return run

    def memory(self) -> dict[str, float]:
        """Bytes at the peak of a step of each, as ratios to joint."""
        peaks = {
            name: self.peak(*self.components(stage), lambda pathways, optimizer: step(pathways, optimizer, self.batch))
            for name, stage in (("joint", "joint"), ("deft", "decoupled"), ("split", "split"))
        }
        pathways, optimizer = self.components("decoupled")

        def loop(pathways: DualPathway, optimizer: torch.optim.Optimizer) -> None:
            self.pathway(pathways, "decoder")
            self.pathway(pathways, "encoder")
            optimizer.step()
            pathways.update_generalized()

        peaks["loop"] = self.peak(pathways, optimizer, loop)
        optimizer_alone = self.peak(pathways, optimizer, lambda _, optimizer: optimizer.step())
        parts = [optimizer_alone]
        for part in PARTS:
            optimizer.zero_grad()
            parts.append(self.peak(pathways, optimizer, lambda pathways, _, part=part: self.pathway(pathways, part)))
        peaks["parts"] = max(parts)
        joint = peaks.pop("joint")
        return {f"memory_{name}": peak / joint for name, peak in peaks.items()}

    def peak(self, pathways: DualPathway, optimizer: torch.optim.Optimizer, run: Callable[..., None]) -> int:
        """Bytes at the peak of `run`, the gradients that are there already included."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run(pathways, optimizer)
            return torch.cuda.max_memory_allocated()
        state = [v for held in optimizer.state.values() for v in held.values() if isinstance(v, Tensor)]
        given = [value for value in self.batch.values() if isinstance(value, Tensor)]
        gradients = [each.grad for each in pathways.parameters() if each.grad is not None]
        with LiveBytes([*pathways.parameters(), *pathways.buffers(), *state, *given, *gradients]) as counted:
            del gradients
            run(pathways, optimizer)
        return counted.peak

    def data_alone(self) -> Callable[[], None]:
        """One process makes the batch from a picture of 2 x 2 crops, decoded."""
        image, mask = draw_street("clear", 0, (2 * self.side, 2 * self.side))
        transform, size = TrainTransform((self.side, self.side)), len(self.batch["labels"])
        return lambda: make(transform, Image.fromarray(image), mask, size)


def make(transform: TrainTransform, picture: Image.Image, mask: np.ndarray, size: int) -> None:
    for index in range(size):
        transform(picture, mask, np.random.default_rng(index))


def step(pathways: DualPathway, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any]) -> None:
    pathways(**batch)["loss"].backward()
    optimizer.step()
    pathways.update_generalized()
    optimizer.zero_grad()


def timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    # Seconds of the processor: what else runs on a machine takes none of them.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(bench: Bench, repeats: int, minutes: float) -> dict[str, Any]:
    """One row: ratios to joint, and seconds of a joint step."""
    steps, row = bench.steps()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + 60 * minutes
    for _ in tqdm(range(repeats), desc=bench.name, mininterval=5):
        if time.monotonic() > end:
            break
        for name, run in steps.items():
            seconds[name].append(timed(run, bench.device))
    seconds["parts"] = [
        sum(parts) for parts in zip(*(seconds[n] for n in ("encoder", "decoder", "optimizer")), strict=True)
    ]
    ratios = {
        name: median(own / joint for own, joint in zip(values, seconds["joint"], strict=True))
        for name, values in seconds.items()
        if name != "joint"
    }
    deft_by_parts = median(own / parts for own, parts in zip(seconds["deft"], seconds["parts"], strict=True))
    ema = median(own / deft for own, deft in zip(seconds["ema"], seconds["deft"], strict=True))
    joint = median(seconds["joint"])
    row |= {
        **ratios,
        "deft_by_parts": deft_by_parts,
        "ema_of_deft": ema,
        "seconds_joint": joint,
        "rounds": len(seconds["joint"]),
    }
    del steps
    return {"model": bench.name, "side": bench.side, "batch": len(bench.batch["labels"]), **row, **bench.memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--side", type=int, default=128, help="of the square crops, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20, help="rounds")
    parser.add_argument("--minutes", type=float, default=inf, help="no round of a model starts later than this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; its other rows stay")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {asked.threads} thread(s)"
    settings = {"device": name, "torch": torch.__version__, "bf16": asked.bf16}
    rows: dict[Any, dict[str, Any]] = {}
    if asked.out.exists():
        rows = {tuple(row[name] for name in KEY): row for row in json.loads(asked.out.read_text())}
    columns = ["deft", "parts", "deft_by_parts", "split", "loop", "flops_deft", "ema_of_deft"]
    columns += ["memory_deft", "memory_loop", "memory_parts"]
    print(f"| {' | '.join(['model', *columns])} |\n|---|" + "---:|" * len(columns), flush=True)
    for model in asked.models.split(","):
        row = measure(Bench(model, asked.side, asked.batch, device, asked.bf16), asked.repeats, asked.minutes)
        print(f"| {model} | " + " | ".join(f"{row[column]:.3f}" for column in columns) + " |", flush=True)
        row = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()} | settings
        rows[tuple(row[name] for name in KEY)] = row
        ordered = sorted(rows.values(), key=lambda row: (list(MODELS).index(row["model"]), row["side"]))
        asked.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in ordered) + "\n]\n")


if __name__ == "__main__":
    main()
