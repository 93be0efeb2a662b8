"""The model card and the page of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from deft_hf.data.roles import Domains
from deft_hf.methods import extension_settings
from deft_hf.models.opening import read_config
from deft_hf.publish.card import CardFacts, DataUse, PlaceUse, render_card
from deft_hf.publish.facts import RunFacts
from deft_hf.publish.figures import RunRecord, save_run_figures
from deft_hf.publish.page import render_page
from deft_hf.publish.terms import DATA, DRAWN, Terms
from deft_hf.recipe import MethodSection, Recipe, TrainingSection
from deft_hf.recipe.data import DataSection
from deft_hf.recipe.domains import Entry, HubEntry, StreetsEntry
from deft_hf.runs.collapsed import warnings
from deft_hf.runs.extremes import CAPTION, OVERLAYS
from deft_hf.runs.folder import method_folders
from deft_hf.runs.places import Findings, panels_file
from deft_hf.scoring.report import MOST_PANELS
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.files import CARD, CONFUSIONS, DISTANCES, HISTORY, PAGE, RECIPE
from deft_hf.utils.integrity import read_json

_LARGEST = 1e300  # a picture cannot be drawn of more


def write_card(
    recipe: Recipe, domains: Domains, facts: Mapping[str, RunFacts], places: Sequence[Findings] = ()
) -> None:
    """`README.md` and `report.html` of the output folder, with their pictures, from what the methods left behind.

    Args:
        recipe (`Recipe`):
            Recipe of the run.
        domains (`Domains`):
            Data of the run, loaded.
        facts (`Mapping[str, RunFacts]`):
            By method.
        places (`Sequence[Findings]`, *optional*, defaults to `()`):
            What the methods make of places without labels.
    """
    folder, own = Path(recipe.training.output_dir), recipe.method.name
    record = _record(method_folders(folder, recipe.method), own, domains, facts)
    count = len(domains.evaluated)
    each = "each domain" if count <= MOST_PANELS else f"each of the first {MOST_PANELS} of {count} domains"
    captions = {
        "domains.png": "Mean IoU of each method on each domain",
        "panels.png": f"An image of {each}, its truth, and what each method makes of it",
        **save_run_figures(folder / "figures", record),
        **({Path(OVERLAYS).name: CAPTION} if recipe.publish.best_and_worst and (folder / OVERLAYS).is_file() else {}),
    }
    card_facts = CardFacts(
        run=facts[own],
        model_name=folder.resolve().name,
        config=read_config(str(folder), trust_remote_code=recipe.model.trust_remote_code),
        base_model=recipe.model.pretrained,
        settings=_settings(recipe.method, recipe.training),
        source=record.source,
        unseen=record.unseen,
        results=record.results,
        intervals={method: fact.intervals for method, fact in facts.items()},
        warnings=warnings(facts, domains),
        recipe=recipe.to_yaml(),
        command=f"accelerate launch -m deft_hf.train {RECIPE}",
        figures={f"figures/{name}": caption for name, caption in captions.items()},
        page=PAGE,
        places=[
            PlaceUse(one.place, len(one.ids), one.tables(domains.labels.names), panels_file(one.place))
            for one in places
        ],
        data=_data_uses(recipe.data, domains, recipe.publish.data_licenses),
        base_license=recipe.publish.base_license,
        license=recipe.publish.license,
        repo_id=recipe.publish.repo_id,
    )
    (folder / CARD).write_text(render_card(card_facts), "utf-8", errors="replace")
    (folder / PAGE).write_text(render_page(card_facts, folder), "utf-8", errors="replace")


def _settings(method: MethodSection, training: TrainingSection) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    declared = [*fields(DeFTTrainingArguments), *extension_settings().values()]
    defaults = {field.name: field.default for field in declared}
    chosen = method.model_dump(exclude={"name", "baselines"}) | training.model_dump(exclude_unset=True)
    return {name: value for name, value in chosen.items() if name != "output_dir" and value != defaults.get(name)}


def _record(folders: Mapping[str, Path], own: str, domains: Domains, facts: Mapping[str, RunFacts]) -> RunRecord:
    # A run that an earlier version finished lacks what there was not: then these pictures are not drawn.
    def kept(method: str, name: str, expected: Callable[[Any], bool], default: Any) -> Any:
        path = folders[method] / name
        return read_json(path, expected, "remove it, and its picture is left out") if path.is_file() else default

    def is_confusions(found: Any) -> bool:
        side = domains.labels.num_labels
        return all(np.asarray(counts, dtype=np.int64).shape == (side, side) for counts in found.values())

    return RunRecord(
        method=own,
        stages=[(stage["stage"], stage["steps"]) for stage in facts[own].stages],
        histories={method: kept(method, HISTORY, _is_history, []) for method in facts},
        results={method: fact.scores for method, fact in facts.items()},
        confusions=kept(own, CONFUSIONS, is_confusions, {}),
        distances={method: kept(method, DISTANCES, _is_distances, {}) for method in facts},
        labels=domains.labels,
        source=[domain.name for domain in domains.validation],
        unseen=[domain.name for domain in domains.unseen],
    )


def _is_history(found: Any) -> bool:
    return isinstance(found, list) and all(
        all(value is None or _is_number(value) for value in _drawn(entry))
        and (isinstance(entry.get("step"), int) or not _drawn(entry))
        for entry in found
    )


def _drawn(entry: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in entry.items() if name.endswith(("loss", "_rate", "_iou", "distance", "share"))]


def _is_distances(found: Any) -> bool:
    return all(value is None or _is_number(value) for value in found.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _data_uses(data: DataSection, domains: Domains, licenses: Mapping[str, str]) -> list[DataUse]:
    sections = {
        "training": (data.source, domains.source),
        "validation": (data.validation, domains.validation),
        "unseen": (data.unseen, domains.unseen),
    }
    return [
        DataUse(domain.name, use, len(domain), _hub_name(entry), _terms(entry, licenses))
        for use, (entries, loaded) in sections.items()
        for entry, domain in zip((entry for entry in entries if entry.labelled), loaded, strict=True)
    ]


def _hub_name(entry: Entry) -> str | None:
    return entry.hub if isinstance(entry, HubEntry) and not Path(entry.hub).exists() else None


def _terms(entry: Entry, licenses: Mapping[str, str]) -> Terms | None:
    said = licenses.get(entry.name)
    if said is not None:
        return Terms(said)
    return DRAWN if isinstance(entry, StreetsEntry) else DATA.get(getattr(entry, "layout", None) or "")
