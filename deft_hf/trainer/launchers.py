"""What DeepSpeed and FSDP2 ask of a run: settings under which the method is the same, and models made whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.utils.data import DataLoader
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from deft_hf.methods.core.shards import fill, is_sharded, whole_state
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.optimizer import parameter_groups
from deft_hf.trainer.optimizer_state import load_optimizer_state, whole_optimizer_state
from deft_hf.utils.errors import UserError


def shards_parameters(accelerator: Accelerator) -> bool:
    """Whether parameters will be spread over ranks: ZeRO-3 or FSDP2."""
    plugin = accelerator.state.deepspeed_plugin
    return accelerator.is_fsdp2 or (plugin is not None and plugin.zero_stage == 3)


def check_launcher(accelerator: Accelerator, args: DeFTTrainingArguments) -> torch.dtype | None:
    """Refuse what cannot be the same method under the launcher's settings, and set the rest so that it is.

    Returns:
        The dtype that the model is to compute in by an autocast of its own, where Accelerate has none.

    Raises:
        UserError: FSDP1, a DeepSpeed config with an optimizer, a scheduler, fp16 or offloading to NVMe, or a method
            that needs whole parameters where they are spread.
    """
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("FSDP version 1 flattens parameters: set fsdp_version: 2 (recipes/accelerate/fsdp2.yaml).")
    autocast = None
    if accelerator.state.deepspeed_plugin is not None:
        autocast = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        _settle_deepspeed(accelerator.state.deepspeed_plugin, args)
    if shards_parameters(accelerator):
        _refuse_what_needs_whole_parameters(args)
    return autocast


def _refuse_what_needs_whole_parameters(args: DeFTTrainingArguments) -> None:
    whole = {
        "distance_weight": any(args.distance_weights()),
        "decoder_norm_weight": args.decoder_norm_weight > 0,
        "projection_weight": args.projection_weight > 0,
        "lora_rank": args.lora_rank > 0,
        "component: interpolated": args.component == "interpolated",
        "torch_compile": args.torch_compile,
    }
    if asked := [name for name, wanted in whole.items() if wanted]:
        raise UserError(
            f"{', '.join(asked)} needs whole parameters on every rank, which ZeRO-3 and FSDP2 do not leave there: "
            "leave it out, or use recipes/accelerate/ddp.yaml or zero2.yaml."
        )


def _settle_deepspeed(plugin: Any, args: DeFTTrainingArguments) -> None:
    config = plugin.deepspeed_config
    zero = config.setdefault("zero_optimization", {})
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise UserError(
                f"The DeepSpeed config has a section `{section}`: leave it out; learning rates, decay and schedule of "
                "encoder and decoder come from the training arguments."
            )
    if config.get("fp16", {}).get("enabled") is True or args.fp16:
        raise UserError("fp16 under DeepSpeed is not supported: use bf16, or another launcher for fp16.")
    for section in ("offload_param", "offload_optimizer"):
        if zero.get(section, {}).get("device") == "nvme":
            raise UserError(f"DeepSpeed's {section} to nvme is not supported: offload to cpu.")
    if args.projection_weight > 0:
        raise UserError(
            "projection_weight looks at gradients, which DeepSpeed keeps to itself: leave one of them out."
        )
    # Parameters stay float32 and autocast computes in bf16, as under DDP: the generalized component would not move in
    # bf16, and BatchNorm's statistics need the dtype of its weights.
    config["bf16"] = {"enabled": False}
    # transformers would spread every model that is loaded from here on, to resume or to draw predictions with.
    unset_hf_deepspeed_config()
    # A parameter that is kept gathered would not see the average of its slices.
    zero["stage3_param_persistence_threshold"] = 0
    config["gradient_clipping"] = args.max_grad_norm


class ShardingMixin:
    """The methods of `transformers.Trainer` that DeepSpeed and FSDP2 change, and models made whole.

    Their own checkpoints are pickles that only as many ranks can read; here they are like everyone's.

    Attributes:
        empty: a component on the meta device, where parameters will be spread over ranks.
        gathered: whole copies of components, by name, until the next step.
    """

    empty: nn.Module | None = None
    gathered: dict[str, nn.Module]

    def whole(self, component: nn.Module) -> nn.Module:
        """A component of `pathways` with whole parameters on this device: itself, or where they are spread over ranks
        a copy that lasts until the next step. Collective."""
        if not is_sharded(component):
            return component
        name = "usual" if component is self.pathways.usual else "generalized"
        if name not in self.gathered:
            model = copy.deepcopy(self.empty).to_empty(device=self.args.device)
            fill(model, whole_state(component))
            self.gathered[name] = model
        return self.gathered[name]

    def release(self) -> None:
        """Let go of copies that evaluation and checkpoints were made from: the components move on."""
        self.gathered.clear()

    @property
    def _launcher_saves(self) -> bool:
        """Whether Trainer would leave saving to DeepSpeed or FSDP."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader]:
        if resume_from_checkpoint is None or not self._launcher_saves:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Before parameters are spread and DeepSpeed copies them.
        self._load_from_checkpoint(resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.pathways.set_initial(self.pathways.initial)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _groups(self) -> list[list[nn.Parameter]]:
        return [group["params"] for group in parameter_groups(self.pathways, self.args)]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._launcher_saves:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(self.optimizer, self._groups(), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._launcher_saves or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        load_optimizer_state(self.optimizer, self._groups(), state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
