"""What a finished run shows: a table and pictures of all its methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.roles import Domains
from deft_hf.data.transforms import EvalTransform
from deft_hf.data.unreadable import Reader
from deft_hf.models.families import resolve_family
from deft_hf.models.opening import open_model
from deft_hf.models.processor import normalization, open_processor
from deft_hf.publish.facts import RunFacts
from deft_hf.recipe.data import DataSection
from deft_hf.runs.collapsed import warnings
from deft_hf.scoring.inference import predict
from deft_hf.scoring.report import (
    INTERVALS,
    MOST_PANELS,
    domain_table,
    further_tables,
    save_domain_bars,
    save_panels,
)
from deft_hf.scoring.test_time import Views
from deft_hf.utils.errors import UserError, first_line
from deft_hf.utils.files import METRICS, TABLE
from deft_hf.utils.text import markdown_text


def write_report(
    folder: Path,
    folders: Mapping[str, Path],
    facts: Mapping[str, RunFacts],
    domains: Domains,
    data: DataSection,
    encoder: str | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Table and pictures of all methods.

    Args:
        folder (`Path`):
            The output folder.
        folders (`Mapping[str, Path]`):
            By method, the folder with its exported model.
        facts (`Mapping[str, RunFacts]`):
            By method.
        domains (`Domains`):
            The data, loaded.
        data (`DataSection`):
            Sizes of images and window.
        encoder (`str`, *optional*):
            Dotted path of the encoder, of a model that `resolve_family` does not know.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run Python code that the folders hold.

    Returns:
        `str`: the table as Markdown, mean IoU in per cent.
    """
    scores = {method: fact.scores for method, fact in facts.items()}
    source, unseen = [domain.name for domain in domains.validation], [domain.name for domain in domains.unseen]
    intervals = {method: fact.intervals for method, fact in facts.items()}
    parts = [domain_table(scores, source, unseen, intervals)]
    parts += [INTERVALS] if any(intervals.values()) else []
    for title, further in further_tables(scores, source, unseen, intervals).items():
        parts += [f"{title}, per cent", further]
    table = "\n\n".join([*parts, *map(markdown_text, warnings(facts, domains))])
    (folder / TABLE).write_text(table + "\n", encoding="utf-8")
    save_domain_bars(folder / "figures" / "domains.png", scores, source, unseen)
    models = {method: _exported(place, trust_remote_code) for method, place in folders.items()}
    rows = _panel_rows(models, domains, data, encoder)
    save_panels(folder / "figures" / "panels.png", rows, domains.labels, domains=len(domains.evaluated))
    return table


def _panel_rows(
    models: Mapping[str, tuple[PreTrainedModel, BaseImageProcessor]],
    domains: Domains,
    data: DataSection,
    encoder: str | None,
) -> list[tuple[Any, ...]]:
    """The middle image of each of the first domains with every method's prediction, made by the exported models."""
    rows = []
    reader = Reader(domains.evaluated, data.unreadable)
    for index, domain in enumerate(domains.evaluated[:MOST_PANELS]):
        image, truth, _ = reader.load(index, len(domain) // 2)
        predictions = {}
        for method, (model, processor) in models.items():
            prepared = EvalTransform(data.shown_sizes()[domain.name], *normalization(processor))(image, truth)
            family = resolve_family(model, encoder)
            pixels = prepared["pixel_values"][None]
            shown = truth.shape, data.window, data.stride, Views(tuple(data.test_scales), data.test_flip)
            predictions[method] = predict(model, family, pixels, *shown)[0].numpy()
        rows.append((domain.name, image, truth, predictions))
    return rows


def _exported(place: Path, trust_remote_code: bool) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Model and processor of a finished run."""
    try:
        return open_model(place, trust_remote_code=trust_remote_code), open_processor(str(place))
    except UserError as error:
        raise UserError(
            f"{place}: the exported model is damaged ({first_line(error)}). Remove {place / METRICS}, and it is "
            "exported again from the last checkpoint."
        ) from error
