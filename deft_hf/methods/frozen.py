"""Frozen: the decoder alone, on the pretrained encoder as it is."""

from __future__ import annotations

from deft_hf.methods.base import Method
from deft_hf.methods.variant import Variant, values


class Frozen(Method):
    """The decoder is trained on the frozen encoder; its BatchNorm statistics follow the source images."""

    name = "frozen"
    summary = "the decoder alone, on the frozen encoder; the trained model is exported"
    stages = ("warmup",)
    variants = {
        "frozen": Variant(
            "the decoder alone on the frozen encoder",
            {"method.name": "frozen"},
            tries=values("method.decoder_weight_decay", 1e-3, 1e-2, 1e-1),
        )
    }
