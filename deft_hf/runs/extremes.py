"""Shows the images of each domain that a model segments best, worst and in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deft_hf.data.domains import Domain
from deft_hf.runs.segmenter import Segmenter
from deft_hf.scoring.extremes import MOST_DOMAINS, Example, save_overlays

OVERLAYS = "figures/best_and_worst.png"
CAPTION = "The images of each domain with the best, the median and the worst mean IoU of their own"


def draw_extremes(
    path: Path, segmenter: Segmenter, domains: Sequence[Domain], found: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Segment these images once more and draw them, if there are any.

    Args:
        path (`Path`):
            PNG file.
        segmenter (`Segmenter`):
            The model that was scored.
        domains (`Sequence[Domain]`):
            What it was scored on.
        found (`Mapping`):
            By domain, what [`~deft_hf.scoring.extremes.extremes`] found.
    """
    pictured = [domain for domain in domains if found.get(domain.name)]
    rows: dict[str, list[Example]] = {}
    for domain in pictured[:MOST_DOMAINS]:
        rows[domain.name], own = [], segmenter.at(domain.name)
        for kind, one in found[domain.name].items():
            image, truth = domain.load(domain.ids.index(one["image"]))
            example = Example(kind, one["image"], one["mean_iou"], np.asarray(image), truth, own.classes(image))
            rows[domain.name].append(example)
    if rows:
        save_overlays(path, rows, domains[0].labels, len(pictured))
