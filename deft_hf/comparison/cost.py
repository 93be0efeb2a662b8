"""Cost of a training step relative to one of `joint`: time, peak memory, floating-point operations."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from deft_hf.comparison.outcomes import Cost
from deft_hf.comparison.plan import Plan, Run
from deft_hf.data.collate import MaskTargets, collate
from deft_hf.methods import variants as known_variants
from deft_hf.methods.core.cost import equal_compute_steps, method_flops, step_flops
from deft_hf.methods.core.stages import Span
from deft_hf.methods.variant import Settings, Variant
from deft_hf.models.families import resolve_family
from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.provenance import hardware
from deft_hf.runs.start import open_start
from deft_hf.runs.train import make_trainer
from deft_hf.scoring.report import save_json
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import RECIPE
from deft_hf.utils.machine import peak_memory

_STEPS = 7
_WARM = 2  # first steps, which allocate


def measure(plan: Plan, settings: Mapping[str, Settings], folder: Path) -> dict[str, Cost]:
    """Time, memory and operations of a step of each variant's last stage, as ratios to `joint`.

    Each variant is measured in a separate process: first its peak memory, then its steps in turn with those of
    `joint`, so that both see the same load of the machine. Earlier measurements are read from `folder`. A variant that
    cannot be measured, for example because memory does not suffice for two models, is left out.

    Args:
        plan (`Plan`):
            Plan of the comparison.
        settings (`Mapping[str, Settings]`):
            By method, the settings of the run that is made for its row alone.
        folder (`Path`):
            Folder of the results: one JSON file per method and kind of hardware.
    """
    joint = _measured(plan.run(known_variants()["joint"].own, 0), plan, folder)
    if joint is None:
        return {}
    costs = {}
    for name, own in tqdm(settings.items(), desc="measuring steps", unit="method"):
        found = _measured(plan.run(own, 0), plan, folder)
        if found is None:
            continue
        costs[name] = Cost(
            time=found["seconds"] / found["joint_seconds"],
            # Unknown if a step needs no more memory than importing did.
            memory=found["memory"] / joint["memory"] if joint["memory"] else math.nan,
            flops=found["flops"] / joint["flops"],
        )
    return costs


def _measured(run: Run, plan: Plan, folder: Path) -> dict[str, float] | None:
    path = folder / f"{run.folder.name}-{re.sub(r'[^0-9A-Za-z]+', '-', hardware()).strip('-')}.json"
    if not _is_measured(path):
        recipes = []
        for role, each in (("own", run), ("joint", plan.run(known_variants()["joint"].own, 0))):
            place = folder / f".{role}"
            place.mkdir(parents=True, exist_ok=True)
            (place / RECIPE).write_text(each.recipe.to_yaml(), encoding="utf-8")
            recipes.append(str(place / RECIPE))
        command = [sys.executable, "-m", "deft_hf.comparison.cost", *recipes]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.splitlines() or [f"status {result.returncode}"])[-1]
            tqdm.write(f"{run.folder.name}: a step was not measured ({reason})", file=sys.stderr)
            return None
        save_json(path, json.loads(result.stdout.splitlines()[-1]))
    return json.loads(path.read_text())


def _is_measured(path: Path) -> bool:
    try:
        found = json.loads(path.read_text("utf-8"))
        return all(isinstance(found[key], int | float) for key in ("seconds", "joint_seconds", "memory", "flops"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # not yet, or damaged


def with_equal_compute(plan: Plan, variants: Mapping[str, Variant]) -> dict[str, Variant]:
    """The variants, those of equal compute with a last stage as long as the compute of the other one's run buys.

    Operations are counted on the CPU for four images: warm-up and decoupled stage of `deft` pay for the variant's own
    warm-up, which stays as long as it was, and for as many steps of its last stage as that leaves.

    Raises:
        UserError: If the warm-up leaves no steps.
    """
    if all(variant.compute_of is None for variant in variants.values()):
        return dict(variants)
    recipe = plan.run({}, 0).recipe
    model, *_ = open_start(recipe.model, recipe.data, recipe.data.label_space(), recipe.training.seed)
    family = resolve_family(model, recipe.model.encoder)
    side = recipe.data.crop_size
    assert side is not None  # the section fills it in
    image = {"pixel_values": torch.zeros(3, *side), "labels": torch.zeros(*side, dtype=torch.int64)}
    batch = MaskTargets()([image] * 4)

    def spans(settings: Settings) -> list[Span]:
        own = plan.run(settings, 0).recipe
        return method_arguments(own, own.method.name).spans(plan.steps(settings))

    result = {}
    for name, variant in variants.items():
        result[name] = variant
        if variant.compute_of is not None:
            wanted = spans(known_variants()[variant.compute_of].settings)
            *earlier, last = spans(variant.settings)
            left = method_flops(model, family, wanted, batch) - method_flops(model, family, earlier, batch)
            steps = equal_compute_steps(left, model, family, batch, last.stage)
            warmup = dict(earlier).get("warmup", 0)
            if steps < 1:
                raise UserError(
                    f"{name}: its decoder warm-up of {warmup} steps takes all the compute of {variant.compute_of}; "
                    "shorten it with method.decoder_warmup_steps"
                )
            own = {"training.max_steps": steps, "method.decoder_warmup_steps": warmup}
            result[name] = replace(variant, own={**variant.own, **own})
    return result


def _prepare(recipe: Recipe) -> tuple[DeFTTrainer, dict[str, Tensor], dict[str, Tensor]]:
    """A trainer in its last stage, one of its batches, and what four images make of one."""
    recipe.data.check = False
    recipe.data.validation = recipe.data.unseen = []  # nothing is scored
    args = method_arguments(recipe, recipe.method.name)
    trainer = make_trainer(args, recipe.model, recipe.data, load_domains(recipe.data))
    trainer.create_optimizer()
    trainer.stages.enter(trainer.stages.set_length(100), new=True, optimizer=trainer.optimizer)
    device = trainer.args.device
    dataset: Any = trainer.train_dataset
    collator = MaskTargets() if trainer.family.objective.needs_masks else collate
    trainer.pathways.to(device).train()

    def batch(size: int) -> dict[str, Tensor]:
        samples = [dataset[index % len(dataset)] for index in range(size)]
        return send_to_device(collator(samples), device)

    return trainer, batch(trainer.args.train_batch_size), batch(4)


def _step(trainer: DeFTTrainer, batch: Mapping[str, Tensor]) -> float:
    """Seconds of one optimizer step."""
    optimizer: Any = trainer.optimizer
    _wait(trainer)
    start = time.perf_counter()
    with trainer.accelerator.autocast():
        loss = trainer.pathways(**batch)["loss"]
    loss.backward()
    trainer.stages.before_step()
    optimizer.step()
    trainer.stages.after_step()
    optimizer.zero_grad()
    _wait(trainer)
    return time.perf_counter() - start


def _wait(trainer: DeFTTrainer) -> None:
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize(trainer.args.device)


def main(own: str, joint: str) -> None:
    """Measure the recipe `own` and the recipe `joint` in turn, and print the results as one line of JSON."""
    logging.disable_progress_bar()
    before = 0 if torch.cuda.is_available() else peak_memory() or 0
    trainer, batch, four = _prepare(Recipe.load(own))
    for _ in range(_WARM):
        _step(trainer, batch)
    memory = (peak_memory() or 0) - before
    flops = step_flops(trainer.pathways, four) // 2  # a figure of two images, as those that were kept before
    other, other_batch, _ = _prepare(Recipe.load(joint))
    for _ in range(_WARM):
        _step(other, other_batch)
    pairs = [(_step(trainer, batch), _step(other, other_batch)) for _ in range(_STEPS)]
    seconds, joint_seconds = (median(column) for column in zip(*pairs, strict=True))
    print(json.dumps({"seconds": seconds, "joint_seconds": joint_seconds, "memory": memory, "flops": flops}))


if __name__ == "__main__":
    main(*sys.argv[1:])
