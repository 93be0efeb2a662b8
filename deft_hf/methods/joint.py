"""Joint: ordinary fine-tuning of everything, the baseline."""

from __future__ import annotations

from deft_hf.methods.averages import AVERAGED
from deft_hf.methods.base import Method
from deft_hf.methods.variant import Settings, Variant, encoder_rates

_OWN: Settings = {"method.name": "joint"}


class Joint(Method):
    """Ordinary fine-tuning on the common loop."""

    name = "joint"
    summary = "ordinary fine-tuning of everything; the trained model, or its average, is exported"
    stages = ("joint",)
    variants = {
        "joint": Variant("ordinary fine-tuning of everything", _OWN, AVERAGED, "usual", encoder_rates),
        "joint_recolor": Variant(
            "joint with LAB-recoloured copies in every batch",
            {**_OWN, "data.recolor": True},
            AVERAGED,
            "usual",
            like="joint",
        ),
        "joint_equal": Variant(
            "joint with as much compute as DeFT", _OWN, AVERAGED, "usual", like="joint", compute_of="deft"
        ),
    }
