"""The results of a comparison, from which every report is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deft_hf.scoring.estimates import Estimate
from deft_hf.utils.result import Result, score_columns

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Outcome:
    """One method at one seed.

    Attributes:
        scores (`dict[str, dict[str, Any]]`):
            By domain, `Scores.to_dict()`.
        counts (`dict[str, np.ndarray]`, *optional*, defaults to `{}`):
            By domain, the confusion matrix of each image, int64 (images, C, C), rows are truth; empty where a run did
            not keep them.
        distances (`dict[str, float]`, *optional*, defaults to `{}`):
            By layer of the model, in its order, ||θ - θ_init||_2 / ||θ_init||_2.
        curve (`dict[int, dict[str, float]]`, *optional*, defaults to `{}`):
            Scores during training: by optimizer step, mean IoU by domain.
        seconds (`float`, *optional*, defaults to `0.0`):
            Wall-clock time of the training.
    """

    scores: dict[str, dict[str, Any]]
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A run without a result, and the reason."""

    method: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Cost:
    """What a training step of the method's last stage costs, as ratios to one of `joint` in the same measurement.

    Attributes:
        time (`float`):
            Ratio of median step times.
        memory (`float`):
            Ratio of peak memory.
        flops (`float`):
            Ratio of counted floating-point operations.
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
class PlaceOutcome:
    """What the methods make of a place without labels.

    Attributes:
        images (`int`):
            Number of its images.
        estimates (`dict[str, dict[int, dict[str, Estimate]]]`):
            By method, seed and estimator, how well the method probably does there; empty where nothing could be
            calibrated.
        shares (`dict[str, list[float]]`):
            By method, the share of the pixels that its first seed predicts as each class.
        source (`list[float]`, *optional*):
            The share of each class in the truth of source validation.
        figure (`str`):
            Picture of examples, relative to the report.
    """

    images: int
    estimates: dict[str, dict[int, dict[str, Estimate]]]
    shares: dict[str, list[float]]
    source: list[float] | None
    figure: str


@dataclass(frozen=True)
class Comparison(Result):
    """Methods x seeds on one recipe.

    Attributes:
        title (`str`):
            Title of the report.
        command (`str`):
            Command that reproduces it.
        recipe (`str`):
            The resolved recipe, YAML.
        baseline (`str`):
            Method that the others are compared with.
        seeds (`list[int]`):
            All seeds asked for.
        source (`list[str]`):
            Names of the source validation domains.
        unseen (`list[str]`):
            Names of the unseen domains.
        labels (`list[str]`):
            Names of the classes.
        notes (`dict[str, str]`):
            By method, one line that describes it; the order is that of the report.
        settings (`Mapping[str, Mapping[str, Any]]`):
            By method, the settings in which it differs from the recipe, tuned values included.
        outcomes (`dict[str, dict[int, Outcome]]`):
            By method and seed; a failed or missing run has no entry.
        failures (`list[Failure]`, *optional*, defaults to `[]`):
            Failed runs.
        costs (`dict[str, Cost]`, *optional*, defaults to `{}`):
            Cost of a step by method; may be empty.
        trials (`list[Trial]`, *optional*, defaults to `[]`):
            Settings that tuning tried; may be empty.
        versions (`dict[str, str]`, *optional*, defaults to `{}`):
            Versions of packages and the hardware, as `{"torch": "2.13.0", ..., "hardware": "..."}`.
        folder (`Path`, *optional*):
            Where the report was written, if it was.
        places (`dict[str, PlaceOutcome]`, *optional*, defaults to `{}`):
            By name, places without labels.
        pooled (`Mapping[str, Sequence[int]]`, *optional*, defaults to `{}`):
            By method whose models are made of the runs of all seeds, the seeds that have an outcome: the first stands
            for a model that they have in common.
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
    settings: Mapping[str, Mapping[str, Any]]
    outcomes: dict[str, dict[int, Outcome]]
    failures: list[Failure] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    places: dict[str, PlaceOutcome] = field(default_factory=dict)
    pooled: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def to_pandas(self) -> DataFrame:
        """A row for each method, seed and domain: the domain's role, its scores, and the IoU of each class."""
        import pandas

        roles = {name: "validation" for name in self.source} | {name: "unseen" for name in self.unseen}
        rows = [
            {"method": method, "seed": seed, "domain": domain, "role": role}
            | score_columns(outcome.scores[domain], self.labels)
            for method, by_seed in self.outcomes.items()
            for seed, outcome in by_seed.items()
            for domain, role in roles.items()
        ]
        return pandas.DataFrame(rows).set_index(["method", "seed", "domain"])

    def pictures(self) -> list[Path]:
        return (
            []
            if self.folder is None
            else [self.folder / "figures" / name for name in ("differences.png", "domains.png")]
        )
