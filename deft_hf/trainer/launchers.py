"""What DeepSpeed and FSDP2 ask of a run: settings under which the method is the same, and models made whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from deft_hf.methods.base import NEEDS_WHOLE, Launcher
from deft_hf.methods.composition import Composition
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.core.shards import empty_copy, fill, is_sharded, whole_state
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.optimizer_state import load_optimizer_state, whole_optimizer_state
from deft_hf.utils.errors import UserError


def shards_parameters(accelerator: Accelerator) -> bool:
    """Whether parameters will be spread over ranks: ZeRO-3 or FSDP2."""
    plugin = accelerator.state.deepspeed_plugin
    return accelerator.is_fsdp2 or (plugin is not None and plugin.zero_stage == 3)


def check_launcher(
    accelerator: Accelerator, args: DeFTTrainingArguments, composition: Composition
) -> torch.dtype | None:
    """Refuse what cannot be the same method under the launcher's settings, and set the rest so that it is.

    Returns:
        `torch.dtype` or `None`: The dtype that the model is to compute in by an autocast of its own, where Accelerate
        has none.

    Raises:
        UserError: FSDP1, a DeepSpeed config with an optimizer, a scheduler, fp16 or offloading to NVMe, or a method
            that cannot run there, with its reason.
    """
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("FSDP version 1 flattens parameters: set fsdp_version: 2 (recipes/accelerate/fsdp2.yaml).")
    deepspeed = accelerator.state.deepspeed_plugin
    autocast = None
    if deepspeed is not None:
        autocast = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        _settle_deepspeed(deepspeed, args)
    launcher = Launcher(shards_parameters(accelerator), hides_gradients=deepspeed is not None)
    refusals = composition.refusals(launcher)
    if launcher.shards_parameters and args.torch_compile:
        refusals.append(f"torch_compile {NEEDS_WHOLE}")
    if refusals:
        raise UserError(f"{'; '.join(refusals)}.")
    return autocast


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
    # Parameters stay float32 and autocast computes in bf16, as under DDP: the generalized component would not move in
    # bf16, and BatchNorm's statistics need the dtype of its weights.
    config["bf16"] = {"enabled": False}
    # transformers would spread every model that is loaded from here on, to resume or to draw predictions with.
    unset_hf_deepspeed_config()
    # A parameter that is kept gathered would not see the average of its slices.
    zero["stage3_param_persistence_threshold"] = 0
    config["gradient_clipping"] = args.max_grad_norm


class Shards:
    """Components and optimizer state made whole, where a launcher spreads them over ranks.

    DeepSpeed's and FSDP's own checkpoints are pickles that only as many ranks can read; here they are like everyone's.

    Args:
        pathways (`DualPathway`):
            The components, whole still.
        accelerator (`Accelerator`):
            Whose launcher will spread them.

    Raises:
        UserError: They are spread already.
    """

    def __init__(self, pathways: DualPathway, accelerator: Accelerator) -> None:
        if is_sharded(pathways):
            raise UserError(
                "The model came in spread over ranks by DeepSpeed's zero.Init: load it before the arguments are made."
            )
        self.pathways = pathways
        self.device = accelerator.device
        plugins = accelerator.state.deepspeed_plugin, getattr(accelerator.state, "fsdp_plugin", None)
        self.saves = any(plugin is not None for plugin in plugins)
        self._empty = empty_copy(pathways.usual) if shards_parameters(accelerator) else None
        self._gathered: dict[str, nn.Module] = {}
        self._groups: list[list[str]] | None = None

    def whole(self, component: nn.Module) -> nn.Module:
        """A component with full parameters on this device: itself, or, if they are sharded, a gathered copy.

        The copy lasts until the next step. Collective.
        """
        if not is_sharded(component):
            return component
        name = "usual" if component is self.pathways.usual else "generalized"
        if name not in self._gathered:
            assert self._empty is not None  # as parameters are sharded
            model = copy.deepcopy(self._empty).to_empty(device=self.device)
            fill(model, whole_state(component))
            self._gathered[name] = model
        return self._gathered[name]

    def release(self) -> None:
        """Let go of copies that evaluation and checkpoints were made from: the components move on."""
        self._gathered.clear()

    def note_groups(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep which parameters are in which group of the optimizer in use, before Accelerate prepares it.

        Raises:
            UserError: It has parameters that the model has not.
        """
        if self._groups is not None:
            return
        names = {id(parameter): name for name, parameter in self.pathways.named_parameters()}
        groups = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
        if not all(name for group in groups for name in group):
            raise UserError(
                "optimizers: found an optimizer of parameters that the model does not have: make it of "
                "`model.parameters()` of the model that is passed to DeFTTrainer."
            )
        self._groups = groups

    def _parameters(self) -> list[list[nn.Parameter]]:
        if self._groups is None:
            raise UserError(
                "create_optimizer: found an override that does not call DeFTTrainer's; let it set self.optimizer and "
                "end with `return super().create_optimizer(model)`."
            )
        current = dict(self.pathways.named_parameters())
        return [[current[name] for name in group] for group in self._groups]

    def save_optimizer(self, optimizer: Any, scheduler: Any, folder: str, write: bool) -> None:
        """Write the optimizer's state whole, in torch's own form, and the scheduler's. Collective."""
        state = whole_optimizer_state(optimizer, self._parameters(), keep=write)
        if write:
            torch.save(state, Path(folder, OPTIMIZER_NAME))
            torch.save(scheduler.state_dict(), Path(folder, SCHEDULER_NAME))

    def load_optimizer(self, optimizer: Any, scheduler: Any, folder: str) -> None:
        """Read what `save_optimizer` or a plain optimizer wrote; this rank takes its pieces."""
        state = torch.load(Path(folder, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        load_optimizer_state(optimizer, self._parameters(), state)
        scheduler.load_state_dict(torch.load(Path(folder, SCHEDULER_NAME), weights_only=True))
