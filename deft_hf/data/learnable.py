"""Labels from which something can be learned, and on which something can be scored: said before training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from deft_hf.data.collate import item_tensors
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.domains import Domain
from deft_hf.data.report import DomainReport
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.utils.errors import UnreadableFile, UserError

MUCH_IGNORED = 0.5
"""Share of ignored pixels above which a domain is named before training."""


def check_sources(reports: Sequence[DomainReport]) -> list[str]:
    """What the domains to train on hold, after a look at every mask.

    Args:
        reports (`Sequence[DomainReport]`):
            Reports of `Domain.check`, for domains of the same classes.

    Returns:
        `list[str]`: What should be known before training: classes without a pixel, many ignored pixels.

    Raises:
        UserError: A domain has pixels of fewer than two classes, so that nothing can be learned from it.
    """
    checked = [report for report in reports if report.pixels.any()]
    _raise_if_few_classes(checked, "nothing can be learned from it")
    warnings = _much_ignored(checked)
    if not checked:
        return warnings
    pixels = np.sum([report.pixels for report in checked], axis=0)
    if missing := [name for name, count in zip(checked[0].labels.names, pixels, strict=False) if not count]:
        ignored = pixels[IGNORE_INDEX] / pixels.sum()
        warnings.append(
            f"no image to train on has a pixel of {_some(missing)}, which cannot be learned; {ignored:.1%} of the "
            f"pixels are ignored{_line_to_add(checked[0], pixels)}"
        )
    return warnings


def check_scored(reports: Sequence[DomainReport]) -> list[str]:
    """What the domains to score hold, after a look at every mask; see `check_sources`.

    Raises:
        UserError: A domain has pixels of fewer than two classes, over which a mean IoU is no score.
    """
    checked = [report for report in reports if report.pixels.any()]
    _raise_if_few_classes(checked, "a mean IoU over it is not a score")
    return _much_ignored(checked)


def check_two_classes(name: str, dataset: Any) -> None:
    """Looks into a data set until two classes were found, in the first item as a rule.

    Args:
        name (`str`):
            Name of the data set, for messages.
        dataset (`Any`):
            A `TrainingSet`, an `EvaluationSet` or a data set of items with `labels`; streams, which can be read once,
            are left alone.

    Raises:
        UserError: All of it has pixels of fewer than two classes.
    """
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return
    if isinstance(dataset, TrainingSet | EvaluationSet):
        domains = dataset.domains if isinstance(dataset, TrainingSet) else [dataset.domain]
        for domain in domains:
            _check_domain(name, domain)
        return
    found: set[int] = set()
    for index in range(len(dataset)):
        found |= set(item_tensors(dataset[index])["labels"].unique().tolist()) - {IGNORE_INDEX}
        if len(found) > 1:
            return
    if len(dataset):
        raise UserError(f"{name}: all of its {len(dataset)} items {_only(found, None)}, from which nothing follows")


def _check_domain(name: str, domain: Domain) -> None:
    found: set[int] = set()
    read = 0
    for index in range(len(domain)):
        with suppress(UnreadableFile):  # what is done about it is for the reader to say
            found |= set(np.unique(domain.load(index)[1]).tolist()) - {IGNORE_INDEX}
            read += 1
        if len(found) > 1:
            return
    if read:
        pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
        pixels[[*found, IGNORE_INDEX]] = 1
        report = DomainReport(domain.name, domain.labels, pairs=read, pixels=pixels)
        raise UserError(f"{name}: {_few_classes(report, 'nothing follows from it')}")


def _raise_if_few_classes(reports: Sequence[DomainReport], consequence: str) -> None:
    problems = [
        _few_classes(report, consequence)
        for report in reports
        if np.count_nonzero(report.pixels[: report.labels.num_labels]) < 2
    ]
    if problems:
        raise UserError("\n".join(problems))


def _few_classes(report: DomainReport, consequence: str) -> str:
    present = set(np.flatnonzero(report.pixels[: report.labels.num_labels]).tolist())
    return (
        f"{report.domain}: its masks {_only(present, report.labels.names)}, so that {consequence}; at least two "
        f"classes must have pixels{_line_to_add(report, report.pixels)}"
    )


def _only(classes: set[int], names: Sequence[str] | None) -> str:
    if not classes:
        return "have no pixel of a class, all are ignored"
    (only,) = classes
    return f"have pixels of one class alone, {only if names is None else names[only]}"


def _line_to_add(report: DomainReport, pixels: np.ndarray) -> str:
    """The `ids` that make a class of 255, where it may be one."""
    labels = report.labels
    if labels.ids is not None or labels.colors is not None or not pixels[IGNORE_INDEX]:
        return ""
    missing = [index for index in range(labels.num_labels) if not pixels[index]]
    if not missing or labels.num_labels > 8:
        return ""
    target = missing[-1]
    ids = {index: index for index in range(labels.num_labels) if index != target} | {IGNORE_INDEX: target}
    line = ", ".join(f"{raw}: {train}" for raw, train in ids.items())
    return f". If 255 in the masks is {labels.names[target]}, add to labels: ids: {{{line}}}"


def _much_ignored(reports: Sequence[DomainReport]) -> list[str]:
    return [
        f"{report.domain}: {report.ignored_share:.1%} of its pixels are ignored{_line_to_add(report, report.pixels)}"
        for report in reports
        if report.ignored_share > MUCH_IGNORED
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
