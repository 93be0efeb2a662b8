"""Settings that every method has."""

from __future__ import annotations

from dataclasses import dataclass

from deft_hf.methods.base import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, setting

COMPONENTS = ("generalized", "usual", "interpolated")
BATCHNORM = ("reestimate", "reference")


@dataclass
class CommonSettings:
    """Of stages, parts and what is exported."""

    component: str = setting(
        "generalized",
        "What is evaluated, saved and exported: the generalized component (where nothing is averaged: the trained "
        "model), the usual one, or the interpolated one (WiSE-FT).",
        choices=COMPONENTS,
        identity=True,
    )
    decoder_warmup_steps: int | None = setting(
        None,
        "Optimizer steps of the decoder warm-up. Default: a tenth of the last stage, as the authors.",
        allowed=NOT_NEGATIVE,
    )
    decoder_warmup_learning_rate: float | None = setting(
        None, "Learning rate of the decoder warm-up. Default: the decoder's.", allowed=POSITIVE
    )
    decoder_warmup_weight_decay: float | None = setting(
        None, "Weight decay of the decoder in the warm-up. Default: the decoder's."
    )
    encoder_learning_rate: float | None = setting(
        None, "Peak learning rate of the encoder. Default: learning_rate.", allowed=POSITIVE
    )
    decoder_learning_rate: float | None = setting(
        None, "Peak learning rate of the decoder. Default: learning_rate.", allowed=POSITIVE
    )
    encoder_weight_decay: float | None = setting(None, "Weight decay of the encoder. Default: weight_decay.")
    decoder_weight_decay: float | None = setting(None, "Weight decay of the decoder. Default: weight_decay.")
    decay_norm_and_bias: bool = setting(False, "Weight decay on norms and biases too.")
    batchnorm: str = setting(
        "reestimate",
        "BatchNorm statistics of the evaluated and exported model: re-estimated on source batches (reestimate), or "
        "as training left them (reference, the authors').",
        choices=BATCHNORM,
    )
    batchnorm_batches: int = setting(32, "Source batches that reestimate takes.", allowed=AT_LEAST_ONE)
    snapshot_on_cpu: bool = setting(
        False,
        "Keep the initialisation on the CPU even where a regulariser reads it at each step: one copy of the model "
        "less on the accelerator, and a transfer a step. Without a regulariser it is there anyway.",
    )
    evaluate_usual: bool = setting(False, "Evaluate the usual component too.")
