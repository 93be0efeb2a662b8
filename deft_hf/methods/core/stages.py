"""Stages and parts: the words that every method is written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Stage = Literal["warmup", "measure", "decoupled", "split", "alternating", "joint"]
Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, Part] = ("encoder", "decoder")


class Span(NamedTuple):
    """A stage and the optimizer steps that it lasts."""

    stage: Stage
    steps: int


def stage_at(spans: Sequence[Span], step: int) -> tuple[int, Span]:
    """Index and span of the stage that the optimizer step after `step` belongs to; the last one after its end."""
    end = 0
    for index, span in enumerate(spans):
        end += span.steps
        if step < end:
            return index, span
    return len(spans) - 1, spans[-1]
