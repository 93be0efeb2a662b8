"""Trains tiny models in as many processes as there are, from a checkpoint if there is one; rank 0 writes them out."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import tiny
from tests.trainer.test_trainer import Drawn, Stream, trainer, without_batchnorm

torch.set_num_threads(1)


class SomeWithoutLabels(Drawn):
    """Every third image is ignored altogether, so that a process has batches without a valid pixel."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "labels": torch.full_like(item["labels"], 255)} if index % 3 == 0 else item


# SegFormer under every option of the loss.
WEIGHTS = [0.2, 3, 1, 1, 2, 0.5, 1]
REWEIGHTED = {"class_weights": WEIGHTS, "ohem_threshold": 0.7, "ohem_min_kept": 99, "dice_weight": 0.5}
# Ingredients that draw, freeze, change gradients and average by the count of updates.
COMBINED = {
    "method": "lp_ft",
    "average": "rising_ema",
    "mixout_probability": 0.6,
    "mixout_anchor": "average",
    "mixout_period": 2,
    "gradient_projection_rate": 0.3,
    "freeze_embedding": True,
}
# What DeFT's usual component can have beside its losses, and a decay that falls.
TERMS = {"projection_weight": 0.7, "decoder_norm_weight": 0.1, "average": "falling_ema", "ema_decay_steps": 20_000}
OWN = {
    "reweighted": REWEIGHTED,
    "combined": COMBINED,
    "terms": TERMS,
    "adapters": {"lora_rank": 2, "distance_weight": 0.0},
    "layers": {"method": "ldt", "variance_steps": 3},
    "layers_in_turn": {"method": "ldt", "variance_steps": 3, "branches": "single"},
}


def train(folder: Path, batch_size: int, model_type: str) -> None:
    """Both stages, scores of two domains, and both components, in `folder`."""
    halved = model_type == "halved"
    run = trainer(
        folder,
        model=tiny.build(model_type) if model_type == "mask2former" else without_batchnorm(),
        train=SomeWithoutLabels(32 if halved else 12),
        evaluate={"near": Drawn(5, seed=1), "far": Drawn(1, seed=2)},
        max_steps=6,
        decoder_warmup_steps=4,
        per_device_train_batch_size=4 * batch_size if halved else batch_size,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=7,
        optim="sgd",
        pathways="split" if halved else "both",
        metrics=["boundary_iou", "calibration_error"],
        **{"distance_weight": 0.1, **OWN.get(model_type, {})},
    )
    run.train(resume_from_checkpoint=run.last_good_checkpoint())
    metrics = run.evaluate()
    if run.is_world_process_zero():
        figures = [{k: entry[k] for k in ("loss", "grad_norm")} for entry in run.state.log_history if "loss" in entry]
        # Image by image too: they come in one order, whoever scored them.
        images = {name: kept["regions"][:, 1].sum(-1).tolist() for name, kept in run.evaluator.counts.items()}
        counted = {name: [scores.pixels, images[name]] for name, scores in run.scores.items()}
        compared = ("_iou", "_loss", "calibration_error")
        scores = {name: value for name, value in metrics.items() if name.endswith(compared)}
        Path(folder, "out.json").write_text(json.dumps({"figures": figures, "scores": scores, "counted": counted}))
        for name in ("usual", "generalized"):
            save_file(dict(getattr(run.pathways, name).state_dict()), Path(folder, f"{name}.safetensors"))


SHARDING = {
    "default": {},
    "uneven": {"even_batches": False},
    "split": {"split_batches": True},
    "dispatched": {"dispatch_batches": True},
}
SCORED = {"set": Drawn(7, seed=3), "few": Drawn(1, seed=4), "stream": Stream(5, seed=5)}


def count(folder: Path, how: str) -> None:
    """What is scored of each domain, however Accelerate is told to shard."""
    settings = {"per_device_eval_batch_size": 4, "accelerator_config": SHARDING[how]}
    run = trainer(folder, model=without_batchnorm(), evaluate=SCORED, **settings)
    run.evaluate()
    samples = [run.evaluation_loop(run.get_eval_dataloader(data), "").num_samples for data in SCORED.values()]
    pixels = {name: run.scores[f"eval_{name}"].pixels for name in SCORED}
    if run.is_world_process_zero():
        Path(folder, f"{how}.json").write_text(json.dumps({"pixels": pixels, "samples": samples}))


if __name__ == "__main__":
    torch.rand = tiny.same_points  # points of masks are otherwise drawn by process
    for model_type in sys.argv[2:]:
        train(Path(sys.argv[1], model_type), 1, model_type)
    for how in SHARDING:
        count(Path(sys.argv[1]), how)
