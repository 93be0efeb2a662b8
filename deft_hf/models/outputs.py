"""What `DualPathway` gives in training, in the form that outputs have in transformers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class PathwayLosses(ModelOutput):
    """The losses of one batch, scalars; those that a stage does not have are left out.

    Attributes:
        loss (`Tensor`):
            Sum of the terms and penalties, for the backward.
        encoder_loss (`Tensor`, *optional*):
            Of the encoder pathway, detached.
        decoder_loss (`Tensor`, *optional*):
            Of the decoder pathway, detached.
        stable_loss (`Tensor`, *optional*):
            Of the branch that trains the stable layers, detached.
        unstable_loss (`Tensor`, *optional*):
            Of the branch that trains the unstable layers, detached.
        joint_loss (`Tensor`, *optional*):
            Of the whole model, detached.
    """

    loss: Tensor | None = None
    encoder_loss: Tensor | None = None
    decoder_loss: Tensor | None = None
    stable_loss: Tensor | None = None
    unstable_loss: Tensor | None = None
    joint_loss: Tensor | None = None
