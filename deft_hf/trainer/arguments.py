"""`TrainingArguments` plus what the methods need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from transformers import SchedulerType, TrainingArguments

from deft_hf.methods.core.ema import Average, run_decay, share_left
from deft_hf.trainer.stages import METHODS, Span
from deft_hf.utils.errors import UserError

AVERAGES = ("none", *get_args(Average))
COMPONENTS = ("generalized", "usual", "interpolated")
# What makes a method another one: a baseline beside it has the defaults of these.
OF_THE_METHOD = (
    "average",
    "component",
    "distance_weight",
    "decoder_distance_weight",
    "decoder_norm_weight",
    "projection_weight",
    "lora_rank",
    "lora_alpha",
)


def own_defaults() -> dict[str, Any]:
    """The defaults of `OF_THE_METHOD`."""
    defaults = {field.name: field.default for field in fields(DeFTTrainingArguments)}
    return {name: defaults[name] for name in OF_THE_METHOD}


@dataclass
class DeFTTrainingArguments(TrainingArguments):
    """`TrainingArguments` for `DeFTTrainer`. Steps are optimizer steps; `max_steps` (or `num_train_epochs`) is the
    length of the method's last stage, which `decoder_warmup_steps` precede where the method has a warm-up before it.

    Args:
        method (`str`, defaults to `"deft"`): `deft` (decoder warm-up, then the decoupled stage), `joint` (ordinary
            fine-tuning), `frozen` (the decoder on the frozen encoder), `lp_ft` (decoder warm-up, then joint).
        average (`str`, *optional*): how the generalized component follows the usual one: `ema` (DeFT's),
            `debiased_ema` (without the initialisation's share), `swa` (the mean of the steps after `swa_start`, in
            which the learning rate stands still) or `none`. Default: `ema` for `deft`, else `none`. With `joint` or
            `lp_ft` it is the control that averages without decoupling.
        swa_start (`float`, defaults to 0.5): share of the last stage after which `swa` starts.
        component (`str`, defaults to `"generalized"`): what is evaluated, saved and exported: the `generalized`
            component (where nothing is averaged: the trained model), the `usual` one, or the `interpolated` one: the
            trained weights on the line to the last stage's initialisation, where `DeFTTrainer.interpolate` puts them,
            to be called after `train` with the names of source validation (WiSE-FT, Wortsman et al., CVPR 2022, arXiv
            2109.01903).
        decoder_warmup_steps (`int`, *optional*): length of the warm-up; default: a tenth of the last stage, as the
            authors.
        decoder_warmup_learning_rate (`float`, *optional*): default: the decoder's.
        encoder_learning_rate, decoder_learning_rate (`float`, *optional*): default: `learning_rate`.
        encoder_weight_decay, decoder_weight_decay (`float`, *optional*): default: `weight_decay`.
        decay_norm_and_bias (`bool`, defaults to `False`): weight decay on norms and biases too.
        ema_decay (`float`, defaults to 0.9999): decay of the generalized encoder, quoted at `ema_decay_steps`.
        decoder_ema_decay (`float`, *optional*): of the generalized decoder; default: the same.
        ema_decay_steps (`int`, *optional*, defaults to 80000): run length that the decays are quoted at; they are
            re-scaled to the run, m_run = m^(ema_decay_steps / steps). `None` takes them as they are.
        distance_weight (`float`, defaults to 0): weight λ of λ/2 ||θ - θ_init||² on the usual component.
        decoder_distance_weight (`float`, *optional*): of the decoder; default: the same.
        decoder_norm_weight (`float`, defaults to 0): weight β of β/2 ||θ||² on the usual decoder's weights, not its
            norms and biases: with a `distance_weight` on the encoder alone, L2-SP (Li et al., ICML 2018, arXiv
            1802.01483).
        projection_weight (`float`, defaults to 0): weight λ of selective projection decay on the encoder
            (`deft_hf.methods.spd`); set `encoder_weight_decay` to 0 with it.
        lora_rank (`int`, defaults to 0): train low-rank adapters of this rank instead of the encoder's weights (needs
            `peft`); they are merged into what is saved. 0: the weights themselves.
        lora_alpha (`float`, *optional*): their scale is lora_alpha / lora_rank; default: the rank.
        batchnorm (`str`, defaults to `"reestimate"`): BatchNorm statistics of the evaluated and exported model: taken
            anew on source batches (`reestimate`), or as training left them (`reference`, the authors').
        batchnorm_batches (`int`, defaults to 32): how many source batches `reestimate` takes.
        snapshot_on_cpu (`bool`, defaults to `False`): keep the initialisation on the CPU even where a regulariser
            reads it at each step: one copy of the model less on the accelerator, and a transfer a step. Without a
            regulariser it is there anyway.
        evaluate_usual (`bool`, defaults to `False`): evaluate the usual component too.

    Raises:
        UserError: values that exclude each other or lie outside their range, all in one message.
    """

    method: str = field(default="deft", metadata={"help": f"One of {', '.join(METHODS)}.", "choices": [*METHODS]})
    average: str | None = field(default=None, metadata={"help": "Default: ema for deft only.", "choices": AVERAGES})
    swa_start: float = field(default=0.5, metadata={"help": "Share of the last stage after which swa starts."})
    component: str = field(default="generalized", metadata={"help": "What is exported.", "choices": COMPONENTS})
    decoder_warmup_steps: int | None = field(default=None, metadata={"help": "Optimizer steps of the warm-up."})
    decoder_warmup_learning_rate: float | None = field(default=None, metadata={"help": "Default: the decoder's."})
    encoder_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    decoder_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    encoder_weight_decay: float | None = field(default=None, metadata={"help": "Default: weight_decay."})
    decoder_weight_decay: float | None = field(default=None, metadata={"help": "Default: weight_decay."})
    decay_norm_and_bias: bool = field(default=False, metadata={"help": "Weight decay on norms and biases too."})
    ema_decay: float = field(default=0.9999, metadata={"help": "EMA decay, quoted at ema_decay_steps."})
    decoder_ema_decay: float | None = field(default=None, metadata={"help": "Default: ema_decay."})
    ema_decay_steps: int | None = field(default=80_000, metadata={"help": "Run length the decay is quoted at."})
    distance_weight: float = field(default=0.0, metadata={"help": "Weight of the distance to the initialisation."})
    decoder_distance_weight: float | None = field(default=None, metadata={"help": "Default: distance_weight."})
    decoder_norm_weight: float = field(default=0.0, metadata={"help": "Weight of the decoder's squared norm."})
    projection_weight: float = field(default=0.0, metadata={"help": "Weight of selective projection decay."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of the encoder's adapters; 0 for none."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Scale of the adapters times their rank."})
    batchnorm: str = field(
        default="reestimate", metadata={"help": "BN policy.", "choices": ["reestimate", "reference"]}
    )
    batchnorm_batches: int = field(default=32, metadata={"help": "Source batches for BN re-estimation."})
    snapshot_on_cpu: bool = field(default=False, metadata={"help": "Keep the initialisation on the CPU always."})
    evaluate_usual: bool = field(default=False, metadata={"help": "Evaluate the usual component too."})

    # Trainer would drop what `DualPathway.forward` does not name, the recoloured copies among it.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns the model does not take."})
    # Trainer's default asks for the loss on the host at every step. Divergence is checked when logging and saving.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and inf losses from the log."})

    def __post_init__(self) -> None:
        self._check_that_the_best_is_saved()
        super().__post_init__()
        problems = [text for wrong, text in self._rules() if wrong]
        if problems:
            raise UserError("; ".join(problems))
        if SchedulerType(self.lr_scheduler_type).value in ("reduce_lr_on_plateau", "greedy"):
            # All that is scored is the better the higher it is; the schedulers' own default expects it to fall.
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}
        # Otherwise the order of the data would hang on the state of torch's global generator.
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

    def _rules(self) -> list[tuple[bool, str]]:
        positive = {
            name: getattr(self, name)
            for name in (
                "encoder_learning_rate",
                "decoder_learning_rate",
                "decoder_warmup_learning_rate",
                "lora_alpha",
            )
        }
        decays = {name: getattr(self, name) for name in ("ema_decay", "decoder_ema_decay")}
        return [
            (self.method not in METHODS, f"method is {self.method!r}: expected one of {', '.join(METHODS)}"),
            (
                self.average not in (None, *AVERAGES),
                f"average is {self.average!r}: expected one of {', '.join(AVERAGES)}",
            ),
            (
                self.component not in COMPONENTS,
                f"component is {self.component!r}: expected one of {', '.join(COMPONENTS)}",
            ),
            (
                self.method == "deft" and self.average == "none",
                "method deft needs an average; for one that never moves set ema_decay: 1 and component: usual",
            ),
            (self.method == "frozen" and self.averages, "method frozen has no average: leave average out"),
            (
                self.method == "frozen" and self.component == "interpolated",
                "method frozen leaves the encoder where it was: there is nothing to interpolate",
            ),
            (self.component == "interpolated" and self.averages, "component interpolated goes with average: none"),
            (
                self.lora_rank > 0 and (self.method not in ("joint", "lp_ft") or self.averages),
                "lora_rank goes with method joint or lp_ft and average: none (averaged factors are no average)",
            ),
            (
                self.lora_rank > 0
                and (any(self.distance_weights()) or self.projection_weight > 0 or self.component == "interpolated"),
                "lora_rank keeps the encoder's weights: leave distance_weight, projection_weight, interpolation out",
            ),
            (not 0 <= self.swa_start < 1, f"swa_start is {self.swa_start}: expected a share from 0, below 1"),
            *(
                (getattr(self, name) is not None and getattr(self, name) < 0, f"{name} is below 0")
                for name in ("decoder_distance_weight", "decoder_norm_weight", "projection_weight", "lora_rank")
            ),
            *((v is not None and v <= 0, f"{k} is {v}: expected a positive number") for k, v in positive.items()),
            *((v is not None and not 0 <= v <= 1, f"{k} is {v}: expected 0 to 1") for k, v in decays.items()),
            (
                self.decoder_warmup_steps is not None and self.decoder_warmup_steps < 0,
                f"decoder_warmup_steps is {self.decoder_warmup_steps}: expected 0 or more",
            ),
            (
                self.ema_decay_steps is not None and self.ema_decay_steps < 1,
                f"ema_decay_steps is {self.ema_decay_steps}: expected a number of steps, or null",
            ),
            (self.distance_weight < 0, f"distance_weight is {self.distance_weight}: expected 0 or more"),
            (
                self.batchnorm not in ("reestimate", "reference"),
                f"batchnorm is {self.batchnorm!r}: expected reestimate or reference",
            ),
            (
                self.bf16_full_eval or self.fp16_full_eval,
                "bf16_full_eval and fp16_full_eval are not supported, evaluation is in float32: leave them out",
            ),
            (
                self.remove_unused_columns,
                "remove_unused_columns would drop what training takes, recoloured copies among it: leave it at false",
            ),
            (self.label_smoothing_factor != 0, "label_smoothing_factor is not supported: leave it at 0"),
            (
                self.enable_jit_checkpoint,
                "enable_jit_checkpoint would save in the middle of a step: leave it out, SIGTERM saves at its end",
            ),
            (self.batchnorm_batches < 1, f"batchnorm_batches is {self.batchnorm_batches}: expected 1 or more"),
        ]

    @property
    def averages(self) -> Average | None:
        """`average` with its default filled in; `None` where nothing is averaged."""
        average = ("ema" if self.method == "deft" else "none") if self.average is None else self.average
        return None if average == "none" else average

    @property
    def reads_initial_at_each_step(self) -> bool:
        """Whether a regulariser needs the initialisation at each step, and not only when distances are logged."""
        return any(self.distance_weights()) or self.projection_weight > 0

    def distance_weights(self) -> tuple[float, float]:
        """Weight of the distance regulariser on encoder and decoder."""
        decoder = self.distance_weight if self.decoder_distance_weight is None else self.decoder_distance_weight
        return self.distance_weight, decoder

    def spans(self, last_steps: int) -> list[Span]:
        """The stages of the method with their lengths, the last one lasting `last_steps`."""
        *earlier, last = METHODS[self.method]
        warmup = math.ceil(last_steps / 10) if self.decoder_warmup_steps is None else self.decoder_warmup_steps
        return [Span(stage, warmup) for stage in earlier if warmup] + [Span(last, last_steps)]

    def run_decays(self, steps: int) -> dict[str, float]:
        """EMA decay of encoder and decoder, re-scaled to an averaged stage of `steps`."""
        decoder = self.ema_decay if self.decoder_ema_decay is None else self.decoder_ema_decay
        return {
            "encoder": run_decay(self.ema_decay, steps, self.ema_decay_steps),
            "decoder": run_decay(decoder, steps, self.ema_decay_steps),
        }

    def swa_first_step(self, steps: int) -> int:
        """Optimizer steps of a last stage of `steps` after which `swa` starts to average."""
        return math.floor(self.swa_start * steps)

    def final_shares(self, steps: int) -> dict[str, float]:
        """Share of the initialisation that the exported encoder and decoder will have left."""
        return {part: share_left(decay, steps) for part, decay in self.run_decays(steps).items()}

    def learning_rates(self) -> dict[str, float]:
        """Peak learning rate of `encoder`, `decoder`, and of the decoder during the `warmup`."""
        decoder = self.learning_rate if self.decoder_learning_rate is None else self.decoder_learning_rate
        return {
            "encoder": self.learning_rate if self.encoder_learning_rate is None else self.encoder_learning_rate,
            "decoder": decoder,
            "warmup": decoder if self.decoder_warmup_learning_rate is None else self.decoder_warmup_learning_rate,
        }

    def weight_decays(self) -> dict[str, float]:
        """Weight decay of `encoder` and `decoder`."""
        return {
            "encoder": self.weight_decay if self.encoder_weight_decay is None else self.encoder_weight_decay,
            "decoder": self.weight_decay if self.decoder_weight_decay is None else self.decoder_weight_decay,
        }
