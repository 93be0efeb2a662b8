"""Models that predict the same class everywhere: their scores are numbers, and nothing was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_hf.data.roles import Domains
from deft_hf.publish.facts import RunFacts
from deft_hf.utils.text import one_line

_NEARLY = 0.01


def only_class(confusions: Mapping[str, Any], domains: Sequence[str], labels: Sequence[str]) -> str | None:
    """The class that a model predicts alone, or nearly so; `None` where it predicts several, or nothing was counted.

    Nearly: it gives all other classes together at most a hundredth of the pixels that they have.

    Args:
        confusions (`Mapping[str, Any]`):
            By domain, the confusion matrix (C, C), or those of its images (images, C, C); rows are truth.
        domains (`Sequence[str]`):
            Where to look.
        labels (`Sequence[str]`):
            Names of the classes.
    """
    side = len(labels)
    counts = [np.asarray(confusions[name]).reshape(-1, side, side) for name in domains if name in confusions]
    if not counts:
        return None
    whole = np.sum([each.sum(0) for each in counts], axis=0)
    truth, predicted = whole.sum(1), whole.sum(0)
    most = int(predicted.argmax())
    others, theirs = predicted.sum() - predicted[most], truth.sum() - truth[most]
    return labels[most] if predicted.any() and others <= _NEARLY * theirs else None


def looked_at(domains: Domains) -> list[str]:
    """The names of the domains that say whether a model learned anything: source validation, or all without any."""
    return [domain.name for domain in domains.validation or domains.evaluated]


def warnings(facts: Mapping[str, RunFacts], domains: Domains) -> list[str]:
    """One line for each method whose exported model predicts a single class.

    Args:
        facts (`Mapping[str, RunFacts]`):
            By method.
        domains (`Domains`):
            Data of the runs.
    """
    where = "source validation" if domains.validation else "all that was scored"
    return [
        f"{method}: the exported model predicts {one_line(fact.only_class)} for all or nearly all pixels of {where}, "
        "so that its scores say nothing of what it learned. Train for more steps, or at another learning_rate."
        for method, fact in facts.items()
        if fact.only_class is not None
    ]
