"""A row of a comparison: a few settings of the common loop, declared by the method that it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Settings = Mapping[str, Any]
Tries = Callable[[float, int], tuple[str, list[Any]]]
"""From learning rate and steps of the last stage to the key that is tuned for a variant, and its values."""
Mix = Literal["soup", "greedy_soup", "revt"]
"""How the models of several seeds are averaged; see [`~deft_hf.methods.soups`]."""


@dataclass(frozen=True)
class Variant:
    """One row of a comparison.

    Args:
        note (`str`):
            What it is, for a reader of the table.
        own (`Mapping[str, Any]`):
            Recipe keys and their values.
        shared (`Mapping[str, Any]`, *optional*):
            What its run has beside them so that other rows can be read from the same run. The `usual` component of
            `joint` with an average *is* joint, since nothing of the average flows back, so that one run serves both.
        reading (`str`, *optional*, defaults to `"exported"`):
            The component of the run that is scored, `exported` or `usual`.
        tries (`Callable`, *optional*):
            What is tuned beside the learning rate.
        like (`str`, *optional*):
            The variant whose tuned settings this one takes, so that the two differ in what the row is about alone.
        compute_of (`str`, *optional*):
            The last stage is made as long as the counted operations of this variant's whole run would buy.
        mix (`str`, *optional*):
            What is scored is averaged from the exported models of the row's runs at all seeds, in this way.
    """

    note: str
    own: Settings
    shared: Settings = field(default_factory=dict)
    reading: Literal["exported", "usual"] = "exported"
    tries: Tries | None = None
    like: str | None = None
    compute_of: str | None = None
    mix: Mix | None = None

    @property
    def settings(self) -> Settings:
        """The settings of its run."""
        return {**self.shared, **self.own}


def values(key: str, *candidates: Any) -> Tries:
    """Tries that depend on neither rate nor length."""
    return lambda rate, steps: (key, list(candidates))


def warmups(rate: float, steps: int) -> tuple[str, list[Any]]:
    """A decoder warm-up of a twentieth, a tenth and a fifth of the last stage."""
    return "method.decoder_warmup_steps", [max(steps // share, 1) for share in (20, 10, 5)]


def encoder_rates(rate: float, steps: int) -> tuple[str, list[Any]]:
    """Encoder rates of a tenth, three tenths and all of the learning rate."""
    return "method.encoder_learning_rate", [float(f"{rate * share:.3g}") for share in (0.1, 0.3, 1)]
