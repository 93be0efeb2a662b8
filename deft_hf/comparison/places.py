"""What the methods of a comparison make of places without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deft_hf.comparison.outcomes import PlaceOutcome
from deft_hf.comparison.plan import Run
from deft_hf.data.roles import Domains
from deft_hf.recipe import Recipe
from deft_hf.runs.evaluate import recipe_segmenter
from deft_hf.runs.places import look_at, panels_file, write_findings
from deft_hf.scoring.estimates import DEFAULT_METHOD, Estimate
from deft_hf.scoring.place_report import READING, share_table
from deft_hf.scoring.report import markdown_table, percent
from deft_hf.utils.text import markdown_text


def look(
    table: Mapping[str, Mapping[int, Run]], seeds: Sequence[int], base: Recipe, domains: Domains, folder: Path
) -> dict[str, PlaceOutcome]:
    """Looks at every place with the exported models, seed by seed; pictures and lists are of the first seed.

    Args:
        table (`Mapping[str, Mapping[int, Run]]`):
            By method and seed, its run; runs without a result are left out.
        seeds (`Sequence[int]`):
            The seeds.
        base (`Recipe`):
            The recipe.
        domains (`Domains`):
            The data, loaded.
        folder (`Path`):
            Folder of the report.
    """
    found: dict[str, PlaceOutcome] = {}
    trust = base.model.trust_remote_code
    for seed in seeds:
        runs = {method: row[seed] for method, row in table.items() if seed in row and row[seed].done}
        if not runs:
            continue
        models = {
            method: recipe_segmenter(str(run.folder), base, trust_remote_code=trust) for method, run in runs.items()
        }
        findings = look_at(models, domains)
        if not found:
            write_findings(folder.joinpath, findings, domains.labels)
        for one in findings:
            before = found.get(one.place) or PlaceOutcome(len(one.ids), {}, {}, one.source, panels_file(one.place))
            estimates = {method: dict(by_seed) for method, by_seed in before.estimates.items()}
            for method, estimate in one.estimates.items():
                estimates.setdefault(method, {})[seed] = estimate
            found[one.place] = replace(before, estimates=estimates, shares=one.shares | before.shares)
    return found


def section(places: Mapping[str, PlaceOutcome], labels: Sequence[str]) -> list[str]:
    """Paragraphs of the report.

    Args:
        places (`Mapping[str, PlaceOutcome]`):
            What `look` returned.
        labels (`Sequence[str]`):
            Names of the classes.
    """
    parts = ["## Places without labels", READING]
    for name, place in places.items():
        parts.append(f"### {markdown_text(name)}, {place.images} images")
        if place.estimates:
            rows = [[method, _over_seeds(by_seed), _source(by_seed)] for method, by_seed in place.estimates.items()]
            parts.append(
                markdown_table(["method", "estimated mean IoU, mean over seeds", "on source validation"], rows)
            )
        parts.append(share_table(place.shares, place.source, labels))
        parts.append(f"![What each method predicts for images of {markdown_text(name)}]({place.figure})")
    return parts


def _over_seeds(by_seed: Mapping[int, Mapping[str, Estimate]]) -> str:
    estimates = [found[DEFAULT_METHOD] for found in by_seed.values()]
    trusted = [estimate for estimate in estimates if estimate.trusted]
    if not trusted:
        return f"not estimated: {markdown_text(estimates[0].reason)}"
    mean = percent(float(np.mean([estimate.mean_iou for estimate in trusted])))
    low, high = (percent(float(np.mean([estimate.interval[end] for estimate in trusted]))) for end in (0, 1))
    of = f", {len(trusted)} of {len(estimates)} seeds" if len(trusted) < len(estimates) else ""
    return f"{mean} [{low}, {high}]{of}"


def _source(by_seed: Mapping[int, Mapping[str, Estimate]]) -> str:
    return percent(float(np.mean([found["source"].mean_iou for found in by_seed.values()])))
