"""From run folders to a `Comparison`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from deft_hf.comparison.outcomes import Outcome
from deft_hf.comparison.plan import Run
from deft_hf.publish.figures import score_curve
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.files import COUNTS, HISTORY

# What numpy and json raise on damaged files.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    BadZipFile,
    ZlibError,
)


def outcome(run: Run, reading: str) -> Outcome:
    """The outcome of a finished run for one of its components.

    Args:
        run (`Run`):
            A finished run.
        reading (`str`):
            Component to read: `"exported"` or `"usual"`.

    Raises:
        UserError: A file of it is damaged.
    """
    scores = run.scores(reading)
    suffix = "_usual" if reading == "usual" and "usual_scores" in run.facts else ""
    try:
        with np.load(run.folder / COUNTS) as file:
            counts = {domain: _square(file[f"eval_{domain}{suffix}"]) for domain in scores}
        return Outcome(
            scores=scores,
            counts=counts,
            distances=run.facts["layer_distances"][reading],
            curve=score_curve(json.loads((run.folder / HISTORY).read_text()), scores, suffix),
            seconds=run.facts["train_seconds"],
        )
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{run.folder}: its results cannot be read ({reason}); remove it, and it is run again."
        ) from error


def _square(counts: np.ndarray) -> np.ndarray:
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or counts.dtype.kind not in "iu":
        raise ValueError(f"{COUNTS} holds {counts.dtype} {counts.shape}, no confusion matrix for each image")
    return counts


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
