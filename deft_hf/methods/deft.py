"""DeFT: decoder warm-up, then encoder and decoder apart, each against a slowly moving copy of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deft_hf.methods.averages import HORIZONS
from deft_hf.methods.base import Method, Run, setting
from deft_hf.methods.core.stages import Stage
from deft_hf.methods.variant import Settings, Variant

_OWN: Settings = {"method.name": "deft", "method.evaluate_usual": True}


def _ablation(note: str, **settings: Any) -> Variant:
    own = {f"method.{name}": value for name, value in settings.items()}
    return Variant(note, {**_OWN, **own}, like="deft")


def _data_ablation(note: str, settings: Settings) -> Variant:
    return Variant(note, {**_OWN, **settings}, like="deft")


@dataclass
class DeFTSettings:
    """Of DeFT alone."""

    pathways: str = setting(
        "both",
        "What a step passes through the two pathways: the whole batch through both (the paper), or one half of it "
        "through each (split), which costs less than a step of joint. Split needs four images a device or more.",
        choices=("both", "split"),
        identity=True,
    )


class DeFT(Method):
    """Decoupled fine-tuning (Pahk et al., ICLR 2025); the export is the generalized encoder and decoder."""

    name = "deft"
    summary = "decoder warm-up, then the decoupled stage; the generalized parts are exported"
    paper = "Pahk et al. 2025, https://openreview.net/forum?id=qZEdmyqCHF"
    stages = ("warmup", "decoupled")
    default_average = "ema"
    Settings = DeFTSettings
    variants = {
        "deft": Variant("decoder warm-up, then the decoupled stage (Pahk et al. 2025)", _OWN, tries=HORIZONS),
        # What of DeFT does it?
        "deft_split": Variant(
            "DeFT, one half of each batch through each pathway",
            {**_OWN, "method.pathways": "split"},
            tries=HORIZONS,
        ),
        "deft_split_equal": Variant(
            "deft_split with as much compute as DeFT",
            {**_OWN, "method.pathways": "split"},
            like="deft_split",
            compute_of="deft",
        ),
        "deft_usual": Variant("DeFT's usual component", _OWN, reading="usual", like="deft"),
        "deft_no_ema": _ablation(
            "decoupled, the generalized component fixed at the snapshot; the usual one is scored",
            ema_decay=1.0,
            component="usual",
        ),
        "deft_encoder_only": _ablation("only the encoder has a generalized copy", decoder_ema_decay=0.0),
        "deft_decoder_only": _ablation(
            "only the decoder has a generalized copy", ema_decay=0.0, decoder_ema_decay=0.9999
        ),
        "deft_no_warmup": _ablation("the decoupled stage from a random decoder", decoder_warmup_steps=0),
        "deft_debiased": _ablation("DeFT with a bias-corrected EMA", average="debiased_ema"),
        "deft_rising": _ablation("DeFT with a decay that rises to 1 over the run", average="rising_ema"),
        "deft_falling": _ablation("DeFT with a decay that falls from 1 over the run", average="falling_ema"),
        "deft_recolor": _data_ablation("DeFT with LAB-recoloured copies in every batch", {"data.recolor": True}),
        "deft_no_recolor": _data_ablation("DeFT without recoloured copies", {"data.recolor": False}),
        "deft_bn_reference": _ablation("DeFT with the BatchNorm statistics that training left", batchnorm="reference"),
        "deft_distance": _ablation("DeFT with the distance regulariser", distance_weight=1e-2),
        "deft_slow": _ablation(
            "DeFT with an EMA quoted at 20,000 steps: of 0.9999, 13.5 % of the initialisation is left",
            ema_decay_steps=20_000,
        ),
        "deft_fast": _ablation("DeFT with an EMA quoted at 320,000 steps", ema_decay_steps=320_000),
    }

    @property
    def course(self) -> tuple[Stage, ...]:
        return ("warmup", "split") if self.settings.pathways == "split" else self.stages

    def problems(self, run: Run) -> Iterator[str]:
        if run.average is None:
            yield "method deft needs an average; for one that never moves set ema_decay: 1 and component: usual"
