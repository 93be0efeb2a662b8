"""What a comparison knows when all runs are over; everything that is reported is made from this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """One method at one seed.

    Attributes:
        scores: By domain, `Scores.to_dict()`.
        counts: By domain, the confusion matrix of each image, int64 (images, C, C), rows are truth; empty where a run
            did not keep them.
        distances: By layer of the model, in its order, ||θ - θ_init||_2 / ||θ_init||_2.
        curve: What was scored while training: by optimizer step, mean IoU by domain.
        seconds: Wall-clock time of the training.
    """

    scores: dict[str, dict[str, Any]]
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A run that came to no result."""

    method: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Cost:
    """What a training step of the method's last stage costs, as ratios to one of `joint` in the same measurement.

    Attributes:
        time: Ratio of median step times.
        memory: Ratio of peak memory.
        flops: Ratio of counted floating-point operations.
    """

    time: float
    memory: float
    flops: float


@dataclass(frozen=True)
class Trial:
    """One setting that tuning tried for a method, and its mean IoU on source validation; `chosen` is the best."""

    method: str
    settings: dict[str, Any]
    source_mean_iou: float | None
    chosen: bool


@dataclass(frozen=True)
class Comparison:
    """Methods x seeds on one recipe.

    Attributes:
        title: Name of the comparison.
        command: The command that makes it.
        recipe: The resolved recipe, YAML.
        baseline: The method that the others are compared with.
        seeds: All seeds asked for.
        source: Names of the source validation domains.
        unseen: Names of the unseen domains.
        labels: Names of the classes.
        notes: By method, one line on what it is; its order is that of the report.
        settings: By method, the settings by which it differs from the recipe, tuned values included.
        outcomes: By method and seed; a failed or missing run has no entry.
        failures: Runs that came to nothing.
        costs: By method; may be empty.
        trials: What tuning tried; may be empty.
        versions: Of packages and hardware, as `{"torch": "2.13.0", ..., "hardware": "..."}`.
    """

    title: str
    command: str
    recipe: str
    baseline: str
    seeds: list[int]
    source: list[str]
    unseen: list[str]
    labels: list[str]
    notes: dict[str, str]
    settings: dict[str, dict[str, Any]]
    outcomes: dict[str, dict[int, Outcome]]
    failures: list[Failure] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
