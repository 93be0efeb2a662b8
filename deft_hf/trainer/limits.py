"""What `TrainingArguments` may hold that Trainer itself does not check: numbers, and packages that may be missing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend, ParallelismConfig
from transformers import Trainer, TrainingArguments, integrations
from transformers.training_args import OptimizerNames, ParallelMode

from deft_hf.utils.errors import UserError, first_line

_MOST_STEPS = 2**53  # beyond, a float does not tell one step from the next
# Each worker is a process with a copy of torch: far more than cores only take memory.
_MOST_WORKERS = max(64, 4 * (os.cpu_count() or 1))


class Limits(NamedTuple):
    """The finite numbers from `low` to `high`, and how to say so."""

    low: float
    high: float
    expected: str
    whole: bool = False
    open: str = ""  # which ends are left out: "low", "high" or "low high"

    def hold(self, value: Any) -> bool:
        """Whether `value` is one of them."""
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return (isinstance(value, Integral) or math.isfinite(value)) and self._hold_number(value)

    def _hold_number(self, value: Any) -> bool:
        above = value > self.low if "low" in self.open else value >= self.low
        return bool(above and (value < self.high if "high" in self.open else value <= self.high))


_SEED = Limits(0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}", whole=True)
_COUNT = Limits(1, 2**31 - 1, "a whole number from 1", whole=True)
_POSITIVE = Limits(0, math.inf, "a number above 0", open="low")
_NOT_NEGATIVE = Limits(0, math.inf, "0 or more")
_BETA = Limits(0, 1, "0 or more, and below 1", open="high")
_INTERVAL = Limits(
    0, _MOST_STEPS, "a whole number of steps from 1, or a share of all steps between 0 and 1", open="low"
)

LIMITS = {
    "seed": _SEED,
    "data_seed": _SEED,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_steps": Limits(-1, _MOST_STEPS, "a whole number from 1, or -1 with num_train_epochs", whole=True),
    "num_train_epochs": _POSITIVE,
    "learning_rate": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "decoder_warmup_weight_decay": _NOT_NEGATIVE,
    "encoder_weight_decay": _NOT_NEGATIVE,
    "decoder_weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _NOT_NEGATIVE,
    "ohem_threshold": Limits(0, 1, "a probability between 0 and 1", open="low high"),
    "ohem_min_kept": Limits(0, _MOST_STEPS, "a number of pixels, or a share of them below 1", open="low"),
    "dice_weight": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "warmup_steps": Limits(0, _MOST_STEPS, "a whole number of steps from 0, or a share of all steps below 1"),
    "logging_steps": _INTERVAL,
    "eval_steps": _INTERVAL,
    "save_steps": _INTERVAL,
    "eval_delay": _NOT_NEGATIVE,
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": Limits(1, 2**31 - 1, "a whole number from 1; null keeps every checkpoint", whole=True),
    "torch_empty_cache_steps": _COUNT,
    "dataloader_num_workers": Limits(0, _MOST_WORKERS, f"0 to {_MOST_WORKERS} processes on this machine", whole=True),
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": Limits(1, 2**31 - 1, "a whole number of seconds from 1", whole=True),
}
_STEPS = {"warmup_steps", "logging_steps", "eval_steps", "save_steps"}

# Where transformers asks for the package of a tracker by another name.
_ASKED_AS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
_PIP_NAMES = {"azure_ml": "azureml-sdk", "flyte": "flytekit", "comet_ml": "comet_ml"}


def out_of_range(args: TrainingArguments) -> Iterator[str]:
    """Yields `KEY: found VALUE, expected ...` for every number that training cannot be run with."""
    for name, limits in LIMITS.items():
        value = getattr(args, name)
        if value is None:
            continue
        ragged = name in _STEPS and isinstance(value, float) and value > 1 and value != int(min(value, _MOST_STEPS))
        if not limits.hold(value) or ragged or (name == "max_steps" and value == 0):
            yield f"{name}: found {_short(value)}, expected {limits.expected}"


def wrong_words(args: TrainingArguments) -> Iterator[str]:
    """Yields one line for each word or mapping that Trainer would stumble over once it is built."""
    backends = [backend.value.lower() for backend in DynamoBackend]
    if args.torch_compile and (args.torch_compile_backend or "no").lower() not in backends:
        known = ", ".join(backends)
        yield f"torch_compile_backend: found {_short(args.torch_compile_backend)}, expected one of {known}"
    elif args.torch_compile_mode is not None and args.torch_compile_backend == "inductor":
        from torch import _inductor

        if args.torch_compile_mode not in (modes := _inductor.list_mode_options()):
            yield f"torch_compile_mode: found {_short(args.torch_compile_mode)}, expected one of {', '.join(modes)}"
    if args.parallelism_config is not None and not isinstance(args.parallelism_config, ParallelismConfig):
        yield "parallelism_config: found no ParallelismConfig of accelerate, which it must be; leave it out"
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        yield "fsdp: found in a single process; start it with accelerate launch, or leave fsdp out"


def missing_trackers(args: TrainingArguments) -> Iterator[str]:
    """Yields one line for each tracker of `report_to` that transformers does not know or that is not installed."""
    known = integrations.integration_utils.INTEGRATION_TO_CALLBACK
    for name in args.report_to or []:
        if name not in known:
            yield f"report_to: found {_short(name)}, expected none or one of {', '.join(known)}"
            continue
        is_there = getattr(integrations, f"is_{_ASKED_AS.get(name, name)}_available", lambda: True)
        if not is_there():
            package = _PIP_NAMES.get(name, name)
            yield (
                f"report_to: found {name}, which is not installed or not set up; pip install {package}, or leave "
                "it out (report_to: none)"
            )


def check_optimizer(args: TrainingArguments) -> None:
    """Build the optimizer over a single number, which shows what is missing or wrong before there is a model.

    Raises:
        UserError: Its package is not installed, or `optim_args` or the `adam_` settings do not fit it.
    """
    model, name = torch.nn.Linear(1, 1), OptimizerNames(args.optim).value
    try:
        cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
        if not options.keys() & {"params", "model", "optimizer_dict"}:  # what `build_optimizer` refuses
            cls(list(model.parameters()), **options)
    except ImportError as error:
        raise UserError(
            f"optim: found {name}, whose package is not installed ({first_line(error)}); install it, or "
            "choose another optimizer, such as adamw_torch"
        ) from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        given = f" with optim_args {args.optim_args!r}, expected KEY=VALUE,KEY=VALUE" if args.optim_args else ""
        raise UserError(
            f"optim: found {name}{given}; it cannot be built ({first_line(error)}); correct it, or choose "
            "another optimizer, such as adamw_torch"
        ) from error


def check_compiler(args: TrainingArguments) -> None:
    """Compile an addition, which shows what is missing before there is a model.

    Raises:
        UserError: torch cannot compile for the device: a C++ compiler is missing, or Triton.
    """
    if not args.torch_compile:
        return

    def add(number: torch.Tensor) -> torch.Tensor:
        return number + 1

    backend = (args.torch_compile_backend or "inductor").lower()
    compiled = torch.compile(add, backend=backend, mode=args.torch_compile_mode)
    try:
        compiled(torch.zeros(1, device=args.device))
    except Exception as error:  # of the backend, which may be any
        raise UserError(
            f"torch_compile: found true, but torch cannot compile here ({first_line(error)}); install what it asks "
            "for, such as g++ for a CPU, or leave torch_compile out"
        ) from error


def _short(value: object) -> str:
    # Python refuses to write out an integer of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
