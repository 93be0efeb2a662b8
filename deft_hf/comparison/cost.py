"""What a training step costs beside one of `joint`: time, peak memory, floating-point operations."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from deft_hf import runs
from deft_hf.comparison.outcomes import Cost
from deft_hf.comparison.plan import Plan, Run
from deft_hf.comparison.variants import VARIANTS, Variant
from deft_hf.data.collate import collate
from deft_hf.method.cost import step_flops
from deft_hf.recipe import Recipe
from deft_hf.results import RECIPE
from deft_hf.trainer import DeFTTrainer

_STEPS = 7
_WARM = 2  # first steps, which allocate


def measure(plan: Plan, variants: Mapping[str, Variant], folder: Path) -> dict[str, Cost]:
    """Time, memory and operations of a step of each variant's last stage, as ratios to `joint`.

    Each variant has a process of its own: its peak memory comes first; then its steps take turns with those of
    `joint`, so that both see the same load of the machine. What was measured before is read from `folder`.

    Args:
        plan: of the comparison.
        variants: by name.
        folder: keeps one JSON file a variant.
    """
    joint = _measured(plan.run(VARIANTS["joint"].alone, 0), plan, folder)
    costs = {}
    for name, variant in tqdm(variants.items(), desc="measuring steps", unit="method"):
        found = _measured(plan.run(variant.alone, 0), plan, folder)
        costs[name] = Cost(
            time=found["seconds"] / found["joint_seconds"],
            memory=found["memory"] / joint["memory"],
            flops=found["flops"] / joint["flops"],
        )
    return costs


def _measured(run: Run, plan: Plan, folder: Path) -> dict[str, float]:
    path = folder / f"{run.folder.name}.json"
    if not path.is_file():
        recipes = []
        for role, each in (("own", run), ("joint", plan.run(VARIANTS["joint"].alone, 0))):
            place = folder / f".{role}"
            place.mkdir(parents=True, exist_ok=True)
            (place / RECIPE).write_text(each.recipe.to_yaml())
            recipes.append(str(place / RECIPE))
        command = [sys.executable, "-m", "deft_hf.comparison.cost", *recipes]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        path.write_text(output.splitlines()[-1] + "\n")
    return json.loads(path.read_text())


def flops_of_a_step(recipe: Recipe) -> int:
    """Operations of one step of the last stage of the recipe's method on one image."""
    trainer, batch = _prepare(recipe)
    return step_flops(trainer.pathways, {name: values[:2] for name, values in batch.items()})


def _prepare(recipe: Recipe) -> tuple[DeFTTrainer, dict[str, Tensor]]:
    """A trainer in its last stage, and one of its batches."""
    recipe.data.check = False
    trainer = runs.make_trainer(recipe, recipe.method.name, runs.load_domains(recipe))
    trainer.create_optimizer()
    trainer.spans = trainer.args.spans(100)
    trainer.enter_stage(sum(span.steps for span in trainer.spans), new=True)
    size = trainer.args.train_batch_size
    batch = collate([trainer.train_dataset[index % len(trainer.train_dataset)] for index in range(size)])
    trainer.pathways.to(trainer.args.device).train()
    return trainer, {name: values.to(trainer.args.device) for name, values in batch.items()}


def _step(trainer: DeFTTrainer, batch: Mapping[str, Tensor]) -> float:
    """Seconds of one optimizer step."""
    _wait(trainer)
    start = time.perf_counter()
    with trainer.compute_loss_context_manager():
        loss = trainer.pathways(**batch)["loss"]
    loss.backward()
    trainer.before_step()
    trainer.optimizer.step()
    trainer.after_step()
    trainer.optimizer.zero_grad()
    _wait(trainer)
    return time.perf_counter() - start


def _wait(trainer: DeFTTrainer) -> None:
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize(trainer.args.device)


def _peak_memory() -> int:
    """Bytes on the accelerator, or of the whole process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def main(own: str, joint: str) -> None:
    """Measure the recipe `own` beside `joint` and print the figures as one line of JSON."""
    logging.disable_progress_bar()
    before = 0 if torch.cuda.is_available() else _peak_memory()
    trainer, batch = _prepare(Recipe.load(own))
    for _ in range(_WARM):
        _step(trainer, batch)
    memory = _peak_memory() - before
    flops = step_flops(trainer.pathways, {name: values[:2] for name, values in batch.items()})
    other, other_batch = _prepare(Recipe.load(joint))
    for _ in range(_WARM):
        _step(other, other_batch)
    pairs = [(_step(trainer, batch), _step(other, other_batch)) for _ in range(_STEPS)]
    seconds, joint_seconds = (median(column) for column in zip(*pairs, strict=True))
    print(json.dumps({"seconds": seconds, "joint_seconds": joint_seconds, "memory": memory, "flops": flops}))


if __name__ == "__main__":
    main(*sys.argv[1:])
