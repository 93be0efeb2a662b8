"""Trains tiny models under DDP, ZeRO and FSDP2 in turn; rank 0 writes what came out of each, and of resumed runs.

A run is `CASE/LAUNCHER`; a case is a model type, or one with an optimizer of the caller's: `mobilenet_v2+one_group`.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import deepspeed
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from deft_hf.methods.core.batchnorm import batchnorm_modules
from deft_hf.methods.core.shards import is_sharded, whole_state
from deft_hf.trainer.trainer import DeFTTrainer
from tests import tiny
from tests.trainer.test_trainer import Drawn, arguments

torch.set_num_threads(1)

# The first checkpoint is one step into the second stage and in the middle of an epoch, whose last batch is short.
STEPS, WARMUP, SAVED, IMAGES = 6, 2, 3, 14
RATE, MOMENTUM = 0.1, 0.9


def well_conditioned(model):
    """Deep random layers of BatchNorm and ReLU6 blow up rounding; in the middle of its range ReLU6 is linear."""
    for module in batchnorm_modules(model).values():
        module.bias.data.fill_(3.0)
    return model


def deepspeed_config(stage):
    sizes = dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"
    )
    return {"zero_optimization": {"stage": stage}, "zero_force_ds_cpu_optimizer": False, **sizes}


def one_group(model):
    """All parameters in one group, those that no gradient reaches among them."""
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)


def reversed_groups(model):
    """The decoder first, and each part from its last parameter to its first."""
    named = list(model.named_parameters())[::-1]
    parts = [[p for name, p in named if name.startswith(f"{model.base_model_prefix}.") == inside] for inside in (0, 1)]
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, (RATE, RATE / 2), strict=True)]
    return torch.optim.SGD(groups, momentum=MOMENTUM)


OPTIMIZERS = {"one_group": one_group, "reversed_groups": reversed_groups}


def trainer(case, launcher, folder, **overrides):
    """Accelerate has no FSDP on a CPU: it is told that the processes have GPUs of their own."""
    AcceleratorState._reset_state()
    unset_hf_deepspeed_config()
    fsdp = launcher == "fsdp2"
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": str(fsdp).lower()}
    os.environ |= {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    if launcher.startswith("zero"):
        overrides["deepspeed"] = deepspeed_config(int(launcher[-1]))
    settings = {"max_steps": STEPS - WARMUP, "decoder_warmup_steps": WARMUP, "per_device_train_batch_size": 2}
    # Adam would blow up the rounding noise of biases whose gradient is zero.
    settings |= {"optim": "sgd", "optim_args": f"momentum={MOMENTUM}", "learning_rate": RATE, "max_grad_norm": 0.05}
    settings |= {"save_strategy": "steps", "save_steps": SAVED}
    settings |= {"weight_decay": 0.01, "decoder_warmup_weight_decay": 0.1}  # of our own groups
    model_type, _, own = case.partition("+")
    model = well_conditioned(tiny.build(model_type, **tiny.WITHOUT_DROPOUT[model_type]))
    args = arguments(folder, **settings, **overrides)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU if fsdp else DistributedType.MULTI_CPU
    domains = {"near": Drawn(5, seed=1), "far": Drawn(1, seed=2)}
    optimizers = (OPTIMIZERS[own](model) if own else None, None)
    return DeFTTrainer(model, args, train_dataset=Drawn(IMAGES), eval_dataset=domains, optimizers=optimizers)


def write(run, folder):
    """Both components, the exported folder, its logits and scores; every rank takes part."""
    metrics = run.evaluate()
    run.save_model(str(folder / "final"))
    states = {name: whole_state(getattr(run.pathways, name)) for name in ("usual", "generalized")}
    initial = run.pathways.whole_initial()
    with torch.inference_mode():
        logits = run.generalized_model.eval()(pixel_values=tiny.batch()["pixel_values"]).logits
    facts = {
        "sharded": is_sharded(run.pathways),
        "scores": {name: value for name, value in metrics.items() if name.endswith("mean_iou")},
        "counted": {name: scores.pixels for name, scores in run.scores.items()},
        "losses": [entry["loss"] for entry in run.state.log_history if "grad_norm" in entry],
        "norms": [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry],
        "distances": [entry["encoder_distance"] for entry in run.state.log_history if "encoder_distance" in entry],
    }
    if run.is_world_process_zero():
        for name, tensors in {**states, "initial": initial, "logits": {"logits": logits.contiguous()}}.items():
            save_file(tensors, folder / f"{name}.safetensors")
        (folder / "facts.json").write_text(json.dumps(facts))


def main(folder, *runs):
    # DeepSpeed would compile an operator for CPUs; the tests need no compiler.
    deepspeed.ops.__compatible_ops__ = {}
    for case, launcher in (run.split("/") for run in runs):
        straight, resumed = folder / case / launcher, folder / case / f"{launcher}-resumed"
        run = trainer(case, launcher, straight)
        run.train()
        write(run, straight)
        again = trainer(case, launcher, resumed)
        if again.is_world_process_zero():
            shutil.copytree(straight / f"checkpoint-{SAVED}", resumed / f"checkpoint-{SAVED}")
        again.accelerator.wait_for_everyone()
        again.train(resume_from_checkpoint=True)
        write(again, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
