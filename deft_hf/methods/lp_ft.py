"""LP-FT: the decoder on the frozen encoder first, then everything. DeFT without its second stage."""

from __future__ import annotations

from deft_hf.methods.averages import AVERAGED
from deft_hf.methods.base import Method
from deft_hf.methods.variant import Settings, Variant, warmups

_OWN: Settings = {"method.name": "lp_ft"}


class LPFT(Method):
    """Linear probing, then fine-tuning (Kumar et al., ICLR 2022).

    Kumar et al. keep BatchNorm in evaluation mode; here it trains on, as in the other methods.
    """

    name = "lp_ft"
    summary = "decoder warm-up, then joint; the trained model, or its average, is exported"
    paper = "Kumar et al. 2022, https://arxiv.org/abs/2202.10054"
    stages = ("warmup", "joint")
    variants = {
        "lp_ft": Variant("decoder warm-up, then joint (Kumar et al. 2022)", _OWN, AVERAGED, "usual", warmups),
        "lp_ft_recolor": Variant(
            "lp_ft with LAB-recoloured copies in every batch",
            {**_OWN, "data.recolor": True},
            AVERAGED,
            "usual",
            like="lp_ft",
        ),
        "lp_ft_equal": Variant(
            "lp_ft with as much compute as DeFT", _OWN, AVERAGED, "usual", like="lp_ft", compute_of="deft"
        ),
    }
