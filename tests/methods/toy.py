"""A method of another package, in one file: joint training with the L1 distance to the start as a penalty."""

from dataclasses import dataclass

from deft_hf.methods import Joint
from deft_hf.methods.base import NOT_NEGATIVE, setting
from deft_hf.methods.core.stages import PARTS
from deft_hf.methods.variant import Variant, values


@dataclass
class ToySettings:
    """Of the penalty."""

    l1_weight: float = setting(1e-3, "Weight of the L1 distance to the start.", allowed=NOT_NEGATIVE)


class L1SP(Joint):
    """λ ||θ - θ_init||_1 on the usual component."""

    name = "l1_sp"
    summary = "joint with the L1 distance to the start as a penalty"
    Settings = ToySettings
    variants = {
        "l1_sp": Variant(
            "joint with the L1 distance to its start as a penalty",
            {"method.name": "l1_sp", "method.l1_weight": 1e-2},
            tries=values("method.l1_weight", 1e-3, 1e-2, 1e-1),
        )
    }

    @property
    def reads_start(self):
        return True

    def refusals(self, launcher):
        if launcher.shards_parameters:
            yield "l1_sp sums absolute distances of whole tensors: train it with DDP"

    def penalties(self, pathways):
        for part in PARTS:
            for parameter, start in zip(pathways.trained(part), pathways.start(part), strict=True):
                yield self.settings.l1_weight * (parameter - start).abs().sum()
