"""What is known of a finished run: one object, which is written to `results/metrics.json`, read back and rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def _if_any() -> Any:
    """A fact that is left out of the file where a run has none of it."""
    return field(default=None, metadata={"if_any": True})


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything about a finished run that a table, a card or a later reader may ask for.

    A new fact is one more field here, at the place that it has in the file. What earlier versions did not write has a
    default. Values are as JSON has them.

    Attributes:
        method (`str`):
            Name of the method.
        average (`str`, *optional*):
            How the generalized component follows: `ema`, `rising_ema`, `falling_ema`, `debiased_ema`, `swa`,
            `layer_ema`, or none.
        component (`str`, *optional*, defaults to `"generalized"`):
            Which model of the training was exported: `generalized`, `usual` or `interpolated`.
        seed (`int`):
            Random seed of the run.
        stages (`list[dict]`):
            In order, `stage` and its `steps`, optimizer steps.
        batch_size (`int`):
            Images of an optimizer step, over all processes.
        learning_rates (`dict[str, float]`):
            Peak learning rate of encoder and decoder.
        weight_decays (`dict[str, float]`):
            Weight decay of encoder and decoder, and of the decoder in the warm-up.
        decays (`dict[str, float]`, *optional*):
            EMA decay of the run by part, or by group of layers; none without a moving average.
        initial_share (`dict[str, float]`):
            Share of the initialisation left in the model by part, in [0, 1].
        distance (`dict[str, float]`):
            L2 distance of the model to its initialisation by part.
        batchnorm (`str`):
            `reestimate` or `reference`.
        interpolation (`dict[str, float | None]`, *optional*):
            Mean IoU on source validation by α.
        unstable_layers (`list[str]`, *optional*):
            Tensors whose gradients vary most, from the least to the most, where the method measures it.
        best_checkpoint (`int`, *optional*):
            Step of the checkpoint that was chosen.
        train_seconds (`float`):
            Wall-clock time of the training.
        resumed (`bool`):
            Whether it resumed from a checkpoint.
        processes (`int`):
            How many processes trained.
        hardware (`str`):
            What it ran on, in words.
        versions (`dict[str, str]`):
            Version of each package.
        git (`dict[str, dict]`, *optional*, defaults to `{}`):
            Commit of the code and of the recipe's folder, and whether files there differ.
        recipe (`dict`, *optional*, defaults to `{}`):
            The recipe, complete.
        choices (`list[dict]`, *optional*):
            Values of the recipe that were chosen for it: `key`, `value` and `why`.
        recipes_before (`list[str]`, *optional*, defaults to `[]`):
            Files of the recipes that the run was started with earlier.
        data (`dict[str, list[dict]]`, *optional*, defaults to `{}`):
            By section of the recipe, name, number of images and hash of each domain.
        transform (`dict[str, str]`, *optional*):
            Name of the user's own transform of training crops, and SHA-256 of its source.
        unreadable (`dict[str, list[str]]`, *optional*, defaults to `{}`):
            By domain, ids of the images that could not be read.
        labels (`list[str]`):
            Class names in the order of their ids.
        scores (`dict[str, dict]`):
            By domain, `Scores.to_dict()` of the exported model.
        intervals (`dict`, *optional*):
            95 % bootstrap intervals over images, see [`~deft_hf.scoring.bootstrap`]: under `domains` by domain and
            score, under `unseen_mean` by score, both ends.
        extremes (`dict[str, dict]`, *optional*):
            By domain, id and mean IoU of its `best`, `median` and `worst` image.
        usual_scores (`dict[str, dict]`, *optional*):
            Scores of the usual component, if it was evaluated.
        only_class (`str`, *optional*):
            The class that the model predicts for all or nearly all pixels of source validation, where there is one.
        layer_distances (`Mapping[str, Mapping[str, float | None]]`, *optional*):
            In a comparison, by component and layer, ||θ - θ_init|| / ||θ_init||.
    """

    method: str
    average: str | None = None
    component: str = "generalized"
    seed: int
    stages: list[dict[str, Any]]
    batch_size: int
    learning_rates: dict[str, float]
    weight_decays: dict[str, float]
    decays: dict[str, float] | None
    initial_share: dict[str, float]
    distance: dict[str, float]
    batchnorm: str
    interpolation: dict[str, float | None] | None = _if_any()
    unstable_layers: list[str] | None = _if_any()
    best_checkpoint: int | None = None
    train_seconds: float
    resumed: bool
    processes: int
    hardware: str
    versions: dict[str, str]
    git: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    choices: list[dict[str, Any]] | None = _if_any()
    recipes_before: list[str] = field(default_factory=list)
    data: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    transform: dict[str, str] | None = _if_any()
    unreadable: dict[str, list[str]] = field(default_factory=dict)
    labels: list[str]
    scores: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, Any]] | None = _if_any()
    extremes: dict[str, dict[str, Any]] | None = _if_any()
    usual_scores: dict[str, dict[str, Any]] | None = _if_any()
    only_class: str | None = _if_any()
    layer_distances: Mapping[str, Mapping[str, float | None]] | None = _if_any()

    def to_dict(self) -> dict[str, Any]:
        """What `results/metrics.json` holds, in its order; what a run has none of is left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            one.name: values[one.name] for one in fields(self) if values[one.name] or not one.metadata.get("if_any")
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunFacts:
        """The facts in a `results/metrics.json`, of this version or an earlier one.

        Raises:
            KeyError, TypeError: If it holds something else.
        """
        known = {one.name for one in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}
        if "average" not in found and values.get("ema"):  # the first version knew of one average
            found["average"] = "ema"
        return cls(**found)
