"""From run folders to a `Comparison`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from deft_hf.comparison.outcomes import Outcome
from deft_hf.comparison.plan import Run
from deft_hf.comparison.worker import COUNTS, HISTORY


def outcome(run: Run, reading: str) -> Outcome:
    """What a finished run found for one of its components.

    Args:
        run: a run that is done.
        reading: `exported` or `usual`.
    """
    scores = run.scores(reading)
    suffix = "_usual" if reading == "usual" and "usual_scores" in run.facts else ""
    with np.load(run.folder / COUNTS) as file:
        counts = {domain: file[f"eval_{domain}{suffix}"] for domain in scores}
    return Outcome(
        scores=scores,
        counts=counts,
        distances=run.facts["layer_distances"][reading],
        curve=_curve(json.loads((run.folder / HISTORY).read_text()), scores, suffix),
        seconds=run.facts["train_seconds"],
    )


def _curve(history: list[dict[str, Any]], domains: Mapping[str, Any], suffix: str) -> dict[int, dict[str, float]]:
    """Mean IoU by step and domain, out of the log of the trainer, where domains are logged one by one."""
    curve: dict[int, dict[str, float]] = {}
    for entry in history:
        for domain in domains:
            value = entry.get(f"eval_{domain}{suffix}_mean_iou")
            if value is not None:
                # The second evaluation of a step is that after training, on all images: no point of the curve.
                curve.setdefault(entry["step"], {}).setdefault(domain, value)
    whole = {step: found for step, found in curve.items() if len(found) == len(domains)}
    return whole if len(whole) > 1 else {}
