"""The `training` section of a recipe: any field of `transformers.TrainingArguments` that the entries leave to it."""

from __future__ import annotations

import dataclasses
import os
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

from deft_hf.recipe.section import Section, fields_of
from deft_hf.recipe.sections import MethodSection
from deft_hf.recipe.values import Expected, Positive

# Plain words for what several arguments say together: a run turns them into these before it starts.
PLAIN = ("epochs", "batch_size", "early_stop")
# Declared as text below: their words are those of the installed transformers.
_WORDS_OF_TRANSFORMERS = ("lr_scheduler_type", "optim", "log_level", "ddp_backend")


class TrainingSection(Section, extra="allow"):
    """Length, optimizer, schedule, precision, logging and saving of a run.

    Declared are the fields that recipes set most often. Every other field of `TrainingArguments` is taken too, and
    checked against its type there.
    """

    output_dir: Annotated[
        str, AfterValidator(os.path.expanduser), Expected("text: the folder that the run writes to")
    ] = Field(description="Folder that the run writes to.")
    seed: int = Field(default=42, description="Seed of everything random.")
    epochs: Annotated[float, Field(gt=0), Expected("a number above 0")] | None = Field(
        default=None,
        description="Length of the last stage in passes over the source images; a run turns it into `max_steps`. "
        "Default: chosen, see Defaults.",
    )
    batch_size: Positive | None = Field(
        default=None,
        description="Images of an optimizer step, over all devices and accumulated batches. Default: chosen.",
    )
    early_stop: Positive | None = Field(
        default=None,
        description="End the last stage after so many evaluations without a better score on source validation.",
    )
    max_steps: int = Field(
        default=-1, description="Length of the method's last stage in optimizer steps. Default: chosen."
    )
    num_train_epochs: float = Field(
        default=3.0, description="As `epochs`, with the last batch of each epoch as Trainer counts it."
    )
    per_device_train_batch_size: int = Field(
        default=8, description="Images of a step on each device, before accumulation."
    )
    gradient_accumulation_steps: int = Field(default=1, description="Batches whose gradients make one optimizer step.")
    per_device_eval_batch_size: int = Field(default=8, description="Images that are scored at once on each device.")
    auto_find_batch_size: bool = Field(default=False, description="Halve the batch size until it fits into memory.")

    learning_rate: float = Field(
        default=5e-5, description="Peak learning rate of encoder and decoder, where `method` says nothing else."
    )
    weight_decay: float = Field(default=0.0, description="Of encoder and decoder, where `method` says nothing else.")
    optim: str = Field(default="adamw_torch_fused", description="Optimizer, such as `adamw_torch` or `sgd`.")
    optim_args: str | None = Field(default=None, description="Its own arguments as text, such as `momentum=0.9`.")
    adam_beta1: float = Field(default=0.9, description="β1 of Adam optimizers.")
    adam_beta2: float = Field(default=0.999, description="β2 of Adam optimizers.")
    adam_epsilon: float = Field(default=1e-8, description="ε of Adam optimizers.")
    max_grad_norm: float = Field(
        default=1.0, description="Gradients are clipped to this norm; 0 leaves them as they are."
    )
    lr_scheduler_type: str = Field(
        default="linear", description="Learning rate schedule, such as `polynomial` or `cosine`."
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = Field(
        default=None, description="Its own arguments, such as `{power: 0.9, lr_end: 0.0}`."
    )
    warmup_steps: float = Field(
        default=0, description="Optimizer steps in which the learning rate rises; below 1, a share of all steps."
    )

    class_weights: (
        Annotated[
            Literal["balanced"] | list[Annotated[float, Field(ge=0)]],
            Expected("balanced, or a list of numbers from 0 up, one a class"),
        ]
        | None
    ) = Field(
        default=None,
        description="Weights of the classes in the cross-entropy: a list, or `balanced`, inverse to their share of "
        "the labelled source pixels. Default: all 1.",
    )
    ohem_threshold: float | None = Field(
        default=None,
        description="Online hard example mining: a pixel counts while the probability of its class is below this, 0.7 "
        "as a rule. Default: all count.",
    )
    ohem_min_kept: float = Field(
        default=0.0625,
        description="With it, so many of the hardest pixels of each image count at least; below 1, a share.",
    )
    dice_weight: float = Field(default=0.0, description="Weight of a Dice loss that is added to the cross-entropy.")

    bf16: bool = Field(default=False, description="Train in bfloat16 autocast.")
    fp16: bool = Field(default=False, description="Train in float16 autocast with loss scaling.")
    tf32: bool | None = Field(default=None, description="Use TF32 matrix products; null leaves it to PyTorch.")
    activation_checkpointing: bool | None = Field(
        default=None, description="Recompute activations in the backward pass: less memory, more time."
    )
    torch_compile: bool = Field(default=False, description="Compile the model.")
    use_cpu: bool = Field(default=False, description="Train on the CPU even where there is an accelerator.")

    logging_strategy: Literal["no", "steps", "epoch"] = Field(default="steps", description="When to log.")
    logging_steps: float = Field(
        default=500, description="Optimizer steps between two logs; below 1, a share of all steps."
    )
    log_level: str = Field(default="passive", description="Verbosity of the main process; `passive` changes nothing.")
    report_to: str | list[str] | None = Field(
        default="none", description="Trackers to log to, such as `tensorboard`, `wandb` or a list; `none` for none."
    )
    run_name: str | None = Field(default=None, description="Name of the run in trackers.")
    disable_tqdm: bool | None = Field(default=None, description="Show no progress bars.")

    eval_strategy: Literal["no", "steps", "epoch"] = Field(default="no", description="When to score while training.")
    eval_steps: float | None = Field(
        default=None, description="Optimizer steps between two evaluations. Default: `logging_steps`."
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = Field(
        default="steps", description="When to save a checkpoint."
    )
    save_steps: float = Field(
        default=500, description="Optimizer steps between two checkpoints; below 1, a share of all steps."
    )
    save_total_limit: int | None = Field(default=None, description="How many checkpoints to keep. Default: all.")
    load_best_model_at_end: bool = Field(
        default=False, description="Export the checkpoint that does best on `metric_for_best_model`."
    )
    metrics: Annotated[list[str], Expected("a list of names of metrics")] | None = Field(
        default=None,
        description="Further metrics beside IoU and accuracy: `f_score`, `frequency_weighted_iou`, `boundary_iou` and "
        "`calibration_error`.",
    )
    metric_for_best_model: str | None = Field(
        default=None,
        description="Score that a checkpoint is chosen by, such as `town_mean_iou`: of validation domains only.",
    )
    greater_is_better: bool | None = Field(default=None, description="Whether a higher score is the better one.")

    dataloader_num_workers: int = Field(
        default=0, description="Processes that load images; 0 loads them in the main one."
    )
    dataloader_persistent_workers: bool = Field(default=False, description="Keep these processes from epoch to epoch.")
    dataloader_prefetch_factor: int | None = Field(default=None, description="Batches that each process loads ahead.")
    dataloader_pin_memory: bool = Field(
        default=True, description="Load into pinned memory, for faster copies to the GPU."
    )
    ddp_backend: str | None = Field(default=None, description="Backend of distributed training. Default: by device.")
    ddp_timeout: int = Field(default=1800, description="Seconds that processes wait for each other.")

    advice: ClassVar[dict[str, str]] = {
        "method": "it belongs to method: method.name",
        "resume_from_checkpoint": "the same command resumes from the last checkpoint by itself",
        # What people type first, by the names of other tools.
        "batch": "did you mean batch_size?",
        "early_stopping": "did you mean early_stop?",
        "early_stopping_patience": "did you mean early_stop?",
        "lr": "did you mean learning_rate?",
        "num_epochs": "did you mean epochs?",
        "patience": "did you mean early_stop?",
        "steps": "did you mean max_steps?",
        "max_epochs": "did you mean epochs?",
        "scheduler": "did you mean lr_scheduler_type?",
        "lr_scheduler": "did you mean lr_scheduler_type?",
        "optimizer": "did you mean optim?",
        "num_workers": "did you mean dataloader_num_workers?",
        "output": "did you mean output_dir?",
        # Gone from transformers 5, but still in many a recipe.
        "adafactor": "transformers 5 writes optim: adafactor",
        "evaluation_strategy": "transformers 5 calls it eval_strategy",
        "group_by_length": "transformers 5 writes train_sampling_strategy: group_by_length",
        "logging_dir": "transformers 5 removed it; set the environment variable TENSORBOARD_LOGGING_DIR",
        "no_cuda": "transformers 5 calls it use_cpu",
        "overwrite_output_dir": "transformers 5 removed it; choose another output_dir",
        "per_gpu_eval_batch_size": "transformers 5 calls it per_device_eval_batch_size",
        "per_gpu_train_batch_size": "transformers 5 calls it per_device_train_batch_size",
        "save_safetensors": "transformers 5 removed it; weights are always saved as safetensors",
        "use_mps_device": "transformers 5 removed it; the device is found by itself",
        "warmup_ratio": "transformers 5 removed it; a warmup_steps below 1 is a share of all steps",
    }

    @classmethod
    def keys(cls) -> dict[str, FieldInfo]:
        return _all_fields(cls)

    @classmethod
    def advice_on(cls, key: str) -> str | None:
        if key in MethodSection.keys():
            return f"it belongs to method: method.{key}"
        if is_by_the_entry(key) and key not in cls.advice:
            return "the Hub has its own section: publish.push_to_hub, publish.repo_id"
        return super().advice_on(key)


def is_by_the_entry(name: str) -> bool:
    """Whether the entry sets the field of `TrainingArguments` by itself: it resumes, and publishes the run."""
    return name in ("resume_from_checkpoint", "push_to_hub") or name.startswith("hub_")


@cache
def _all_fields(section: type[Section]) -> dict[str, FieldInfo]:
    from transformers import TrainingArguments

    from deft_hf.trainer.arguments import DeFTTrainingArguments

    fields = fields_of(DeFTTrainingArguments)
    others = {
        each.name: fields[each.name]
        for each in dataclasses.fields(TrainingArguments)
        if not is_by_the_entry(each.name)
    }
    declared = {name: field for name, field in section.model_fields.items() if name not in _WORDS_OF_TRANSFORMERS}
    return others | declared
