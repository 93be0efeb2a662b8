"""`TrainingArguments` plus what the methods need."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.debug_utils import DebugOption

from deft_hf.methods import METHODS, Joint, RunSettings, compose
from deft_hf.methods.core.stages import Span
from deft_hf.scoring.metrics import is_error, unknown
from deft_hf.trainer.limits import missing_trackers, out_of_range, wrong_words
from deft_hf.trainer.loss import LossArguments, wrong_weights
from deft_hf.utils.errors import UserError, first_line


@dataclass
class DeFTTrainingArguments(LossArguments, RunSettings, TrainingArguments):
    """`TrainingArguments` for `DeFTTrainer`, with the settings of all methods.

    Steps are optimizer steps; `max_steps` (or `num_train_epochs`) is the length of the method's last stage, which
    `decoder_warmup_steps` precede where the method has a warm-up before it. A `learning_rate` or `weight_decay` alone
    serves both parts. Each setting is described in the settings class of its method in `deft_hf.methods`, those of the
    loss in [`~deft_hf.trainer.loss.LossArguments`].

    Raises:
        UserError: If values exclude each other or are out of range; one message lists them all.

    Example:

    ```python
    >>> from deft_hf import DeFTTrainingArguments

    >>> args = DeFTTrainingArguments("out", method="deft", max_steps=20_000, decoder_warmup_steps=2_000)
    >>> [(span.stage, span.steps) for span in args.spans(args.max_steps)]
    [('warmup', 2000), ('decoupled', 20000)]

    ```
    """

    metrics: list[str] | None = field(
        default=None,
        metadata={"help": "Further metrics of every evaluation, by their names in `deft_hf.scoring.metrics`."},
    )
    # Trainer would drop what `DualPathway.forward` does not name, the recoloured copies among it.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns the model does not take."})
    # Trainer's default asks for the loss on the host at every step. Divergence is checked when logging and saving.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and inf losses from the log."})

    def __post_init__(self) -> None:
        if problems := [*out_of_range(self), *wrong_weights(self)]:
            raise UserError("\n".join(problems))
        self._check_that_the_best_is_saved()
        if self.greater_is_better is None and is_error(self.metric_for_best_model or ""):
            self.greater_is_better = False  # transformers knows losses alone
        try:
            super().__post_init__()
        except UserError:
            raise
        # Of one argument or another, which transformers names: a package, a file, a word, a key of a mapping.
        except (
            AttributeError,
            ImportError,
            LookupError,
            NotImplementedError,
            OSError,
            TypeError,
            ValueError,
        ) as error:
            raise UserError(f"TrainingArguments: {first_line(error)}") from error
        problems = [*compose(self).problems(), *self._unsupported(), *wrong_words(self), *missing_trackers(self)]
        problems += unknown(self.metrics or ())
        if problems:
            raise UserError("\n".join(problems))
        if SchedulerType(self.lr_scheduler_type).value in ("reduce_lr_on_plateau", "greedy"):
            # The schedulers' own default expects the metric to fall, which a loss alone does.
            given: Any = self.lr_scheduler_kwargs or {}  # `Trainer` has made a dict of a string
            self.lr_scheduler_kwargs = {"mode": "max" if self.greater_is_better else "min", **given}
        # Otherwise the order of the data would depend on the state of torch's global generator.
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        # Pinning serves transfers to an accelerator; without one torch warns at every loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"

    def _check_that_the_best_is_saved(self) -> None:
        # transformers lets saves be rarer: a best step between two of them is lost, and another model loaded.
        if not self.load_best_model_at_end or self.save_strategy == "best":
            return
        eval_steps = self.eval_steps or self.logging_steps
        if self.save_strategy != self.eval_strategy or (
            self.save_strategy == "steps" and self.save_steps != eval_steps
        ):
            raise UserError(
                f"load_best_model_at_end loads a step that was scored and saved: found eval_strategy "
                f"{str(self.eval_strategy)} with eval_steps {eval_steps} and save_strategy {str(self.save_strategy)} "
                f"with save_steps {self.save_steps}; give both the same strategy and number of steps"
            )

    def _unsupported(self) -> list[str]:
        """What of `Trainer` would not be what it says here."""
        found = {
            "bf16_full_eval and fp16_full_eval are not supported, evaluation is in float32: leave them out": (
                self.bf16_full_eval or self.fp16_full_eval
            ),
            "remove_unused_columns would drop what training takes, recoloured copies among it: leave it at false": (
                self.remove_unused_columns
            ),
            "label_smoothing_factor is not supported: leave it at 0": self.label_smoothing_factor != 0,
            "auto_find_batch_size would start again from weights that were trained already: leave it out, lower "
            "per_device_train_batch_size and raise gradient_accumulation_steps": self.auto_find_batch_size,
            "neftune_noise_alpha is noise on the embeddings of words, which there are none of: leave it out": (
                self.neftune_noise_alpha is not None
            ),
            "use_liger_kernel has kernels for language models alone: leave it out": self.use_liger_kernel,
            "train_sampling_strategy: found group_by_length, and images have none: leave it out": (
                self.train_sampling_strategy == "group_by_length"
            ),
            "debug: found underflow_overflow, which does not know the two components of a step apart: leave it out, "
            "or look at method joint": (
                DebugOption.UNDERFLOW_OVERFLOW in self.debug and compose(self).method.course != Joint.stages
            ),
            "enable_jit_checkpoint would save in the middle of a step: leave it out, SIGTERM saves at its end": (
                self.enable_jit_checkpoint
            ),
        }
        return [text for text, wrong in found.items() if wrong]

    @property
    def folder(self) -> Path:
        """`output_dir`, which `TrainingArguments` fills in where it is not given."""
        assert self.output_dir is not None
        return Path(self.output_dir)

    @property
    def averages(self) -> str | None:
        """`average` with the method's default filled in; `None` where nothing is averaged."""
        return compose(self).average

    def spans(self, last_steps: int) -> list[Span]:
        """The stages of the method with their lengths, the last one lasting `last_steps`."""
        return compose(self).spans(last_steps)

    def trains_encoder(self) -> bool:
        """Whether any stage of the method moves the encoder."""
        return METHODS[self.method].trains_encoder()

    def learning_rates(self) -> dict[str, float]:
        """Peak learning rate of `encoder`, `decoder`, and of the decoder during the `warmup`."""
        decoder = self.learning_rate if self.decoder_learning_rate is None else self.decoder_learning_rate
        return {
            "encoder": self.learning_rate if self.encoder_learning_rate is None else self.encoder_learning_rate,
            "decoder": decoder,
            "warmup": decoder if self.decoder_warmup_learning_rate is None else self.decoder_warmup_learning_rate,
        }

    def weight_decays(self) -> dict[str, float]:
        """Weight decay of `encoder`, `decoder`, and of the decoder during the `warmup`."""
        decoder = self.weight_decay if self.decoder_weight_decay is None else self.decoder_weight_decay
        return {
            "encoder": self.weight_decay if self.encoder_weight_decay is None else self.encoder_weight_decay,
            "decoder": decoder,
            "warmup": decoder if self.decoder_warmup_weight_decay is None else self.decoder_warmup_weight_decay,
        }
