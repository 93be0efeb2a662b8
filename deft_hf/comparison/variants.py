"""What can be compared: DeFT, its rivals and its ablations, each a few settings of the same loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

import yaml

from deft_hf.utils.errors import UserError

Settings = Mapping[str, Any]
# From learning rate and steps of the last stage to the key that is tuned for this variant, and its values.
Tries = Callable[[float, int], tuple[str, list[Any]]]


@dataclass(frozen=True)
class Variant:
    """One row of a comparison.

    Args:
        note: what it is, for a reader of the table.
        settings: recipe keys and their values.
        reading: which model of the run is scored. The `usual` component of `joint` with an average *is* joint, since
            nothing of the average flows back, so that one run serves both rows.
        tries: what is tuned beside the learning rate.
        like: the variant whose tuned settings this one takes, so that the two differ in what the row is about alone.
        compute_of: the last stage is made as long as the counted operations of this variant's whole run would buy.
    """

    note: str
    settings: Settings
    reading: Literal["exported", "usual"] = "exported"
    tries: Tries | None = None
    like: str | None = None
    compute_of: str | None = None

    @property
    def alone(self) -> Settings:
        """The settings of whoever wants this row only: without the average that another row is read from."""
        if self.reading == "exported" or self.settings["method.name"] == "deft":
            return self.settings
        shared = ("method.average", "method.evaluate_usual")
        return {key: value for key, value in self.settings.items() if key not in shared}


def _horizons(rate: float, steps: int) -> tuple[str, list[Any]]:
    return "method.ema_decay_steps", [20_000, 80_000, 320_000]


def _warmups(rate: float, steps: int) -> tuple[str, list[Any]]:
    return "method.decoder_warmup_steps", [max(steps // 20, 1), max(steps // 10, 1), max(steps // 5, 1)]


def _encoder_rates(rate: float, steps: int) -> tuple[str, list[Any]]:
    return "method.encoder_learning_rate", [float(f"{rate * share:.3g}") for share in (0.1, 0.3, 1)]


def _values(key: str, *values: Any) -> Tries:
    return lambda rate, steps: (key, list(values))


_JOINT = {"method.name": "joint", "method.average": "ema", "method.evaluate_usual": True}
_LP_FT = {"method.name": "lp_ft", "method.average": "ema", "method.evaluate_usual": True}
_DEFT = {"method.name": "deft", "method.evaluate_usual": True}
_NO_ENCODER_DECAY = {"method.encoder_weight_decay": 0.0}


def _ablation(note: str, settings: Settings) -> Variant:
    return Variant(note, {**_DEFT, **settings}, like="deft")


VARIANTS: dict[str, Variant] = {
    "joint": Variant("ordinary fine-tuning of everything", _JOINT, "usual", _encoder_rates),
    "joint_ema": Variant("joint, averaged by DeFT's EMA", _JOINT, tries=_horizons),
    "frozen": Variant(
        "the decoder alone on the frozen encoder",
        {"method.name": "frozen"},
        tries=_values("method.decoder_weight_decay", 1e-3, 1e-2, 1e-1),
    ),
    # Kumar et al. keep BatchNorm in evaluation mode; here it trains on, as in the other methods.
    "lp_ft": Variant("decoder warm-up, then joint (Kumar et al. 2022)", _LP_FT, "usual", _warmups),
    "lp_ft_ema": Variant("lp_ft, averaged by DeFT's EMA", _LP_FT, tries=_horizons),
    "l2_sp": Variant(
        "joint with the encoder's squared distance to its start as a penalty (Li et al. 2018)",
        {
            "method.name": "joint",
            "method.distance_weight": 1e-2,
            "method.decoder_distance_weight": 0.0,
            "method.decoder_norm_weight": 1e-2,
            "method.decoder_weight_decay": 0.0,
            **_NO_ENCODER_DECAY,
        },
        tries=_values("method.distance_weight", 1e-3, 1e-2, 1e-1),
    ),
    "swa": Variant(
        "joint, the mean of its late steps at a constant rate (Izmailov et al. 2018)",
        {"method.name": "joint", "method.average": "swa"},
        tries=_values("method.swa_start", 0.25, 0.5, 0.75),
    ),
    "wise_ft": Variant(
        "lp_ft, interpolated with its start (Wortsman et al. 2022); the point is chosen on source validation",
        {"method.name": "lp_ft", "method.component": "interpolated"},
        tries=_warmups,
    ),
    "lora": Variant(
        "lp_ft with low-rank adapters in the encoder (Hu et al. 2022), merged",
        {"method.name": "lp_ft", "method.lora_rank": 16},
        tries=_values("method.lora_rank", 4, 16, 64),
    ),
    "spd": Variant(
        "joint with selective projection decay of the encoder (Tian et al. 2024)",
        {"method.name": "joint", "method.projection_weight": 1.0, **_NO_ENCODER_DECAY},
        tries=_values("method.projection_weight", 0.3, 1.0, 3.0),
    ),
    "deft": Variant("decoder warm-up, then the decoupled stage (Pahk et al. 2025)", _DEFT, tries=_horizons),
    # What of DeFT does it?
    "deft_usual": Variant("DeFT's usual component", _DEFT, "usual", like="deft"),
    "deft_no_ema": _ablation(
        "decoupled, the generalized component fixed at the snapshot; the usual one is scored",
        {"method.ema_decay": 1.0, "method.component": "usual"},
    ),
    "deft_encoder_only": _ablation("only the encoder has a generalized copy", {"method.decoder_ema_decay": 0.0}),
    "deft_decoder_only": _ablation(
        "only the decoder has a generalized copy", {"method.ema_decay": 0.0, "method.decoder_ema_decay": 0.9999}
    ),
    "deft_no_warmup": _ablation("the decoupled stage from a random decoder", {"method.decoder_warmup_steps": 0}),
    "deft_debiased": _ablation("DeFT with a bias-corrected EMA", {"method.average": "debiased_ema"}),
    "deft_recolor": _ablation("DeFT with LAB-recoloured copies in every batch", {"data.recolor": True}),
    "deft_no_recolor": _ablation("DeFT without recoloured copies", {"data.recolor": False}),
    "deft_bn_reference": _ablation(
        "DeFT with the BatchNorm statistics that training left", {"method.batchnorm": "reference"}
    ),
    "deft_distance": _ablation("DeFT with the distance regulariser", {"method.distance_weight": 1e-2}),
    "deft_slow": _ablation(
        "DeFT with an EMA quoted at 20,000 steps: of 0.9999, 13.5 % of the initialisation is left",
        {"method.ema_decay_steps": 20_000},
    ),
    "deft_fast": _ablation("DeFT with an EMA quoted at 320,000 steps", {"method.ema_decay_steps": 320_000}),
    "joint_recolor": Variant(
        "joint with LAB-recoloured copies in every batch", {**_JOINT, "data.recolor": True}, "usual", like="joint"
    ),
    "lp_ft_recolor": Variant(
        "lp_ft with LAB-recoloured copies in every batch", {**_LP_FT, "data.recolor": True}, "usual", like="lp_ft"
    ),
    # As much compute as DeFT takes.
    "joint_equal": Variant("joint with as much compute as DeFT", _JOINT, "usual", like="joint", compute_of="deft"),
    "lp_ft_equal": Variant("lp_ft with as much compute as DeFT", _LP_FT, "usual", like="lp_ft", compute_of="deft"),
}


def parse_variants(text: str) -> dict[str, Variant]:
    """Variants by name from `joint,deft,deft:method.ema_decay_steps=40000`: names of `VARIANTS`, with settings of
    one's own after colons.

    Raises:
        UserError: an unknown or repeated name, or a setting that is no `key=value`.
    """
    chosen: dict[str, Variant] = {}
    for spec in filter(None, (part.strip() for part in text.split(","))):
        name, *settings = spec.split(":")
        if name not in VARIANTS:
            near = get_close_matches(name, VARIANTS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VARIANTS)}"
            raise UserError(f"--methods: found {name!r}; {hint}")
        if spec in chosen:
            raise UserError(f"--methods: found {spec} twice; keep one")
        own = dict(map(_setting, settings))
        variant = VARIANTS[name]
        note = variant.note + "".join(f", {key}={value}" for key, value in own.items())
        chosen[spec] = replace(variant, note=note, settings={**variant.settings, **own})
    if not chosen:
        raise UserError("--methods: found none, expected names with commas between them, such as joint,lp_ft,deft")
    return chosen


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--methods: found {text!r}, expected key=value, such as method.ema_decay_steps=40000")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--methods: found {text!r}, whose value is no YAML") from None
