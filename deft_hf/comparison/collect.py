"""From run folders to a `Comparison`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np

from deft_hf.comparison.outcomes import Outcome
from deft_hf.comparison.plan import Run
from deft_hf.publish.figures import score_curve
from deft_hf.utils.files import COUNTS, HISTORY


def outcome(run: Run, reading: str) -> Outcome:
    """The outcome of a finished run for one of its components.

    Args:
        run (`Run`):
            A finished run.
        reading (`str`):
            Component to read: `"exported"` or `"usual"`.
    """
    scores = run.scores(reading)
    suffix = "_usual" if reading == "usual" and "usual_scores" in run.facts else ""
    with np.load(run.folder / COUNTS) as file:
        counts = {domain: file[f"eval_{domain}{suffix}"] for domain in scores}
    return Outcome(
        scores=scores,
        counts=counts,
        distances=run.facts["layer_distances"][reading],
        curve=score_curve(json.loads((run.folder / HISTORY).read_text()), scores, suffix),
        seconds=run.facts["train_seconds"],
    )


def commits(table: Mapping[str, Mapping[int, Run]]) -> dict[str, str]:
    """The commits of deft_hf that the finished runs were made at, and how many each; empty outside a repository."""
    runs = {run.folder: run for row in table.values() for run in row.values() if run.done}
    states = [run.facts.get("git", {}).get("deft_hf") for run in runs.values()]
    names = Counter(
        (state["commit"] + (" with changes" if state["dirty"] else "")) if state else "unknown" for state in states
    )
    if not any(states):
        return {}
    return {"runs by commit of deft_hf": ", ".join(f"{name} ({count})" for name, count in sorted(names.items()))}
