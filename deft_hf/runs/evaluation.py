"""What an evaluation finds: scores, their intervals, and how to show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft_hf.data.labels import LabelSpace
from deft_hf.runs.extremes import OVERLAYS
from deft_hf.runs.places import Findings, panels_file
from deft_hf.scoring.bootstrap import Intervals
from deft_hf.scoring.confusion import Scores
from deft_hf.scoring.report import PanelRow, Results, class_table, domain_table, further_tables
from deft_hf.utils.result import Result, score_columns
from deft_hf.utils.text import markdown_text

if TYPE_CHECKING:
    from pandas import DataFrame

PANELS = "figures/panels.png"


@dataclass(frozen=True)
class Evaluation(Result):
    """Scores of one model, by domain.

    Attributes:
        name (`str`):
            What tables call the model.
        scores (`dict[str, Scores]`):
            Scores of each domain, validation domains first.
        validation (`list[str]`):
            Names of the domains that a checkpoint may be chosen on.
        unseen (`list[str]`):
            Names of the domains that nothing was chosen on.
        labels (`LabelSpace`):
            The classes.
        unreadable (`dict[str, list[str]]`):
            Ids of the images that could not be read and were left out, by domain.
        examples (`list[PanelRow]`):
            The middle image of each domain: domain, image, true ids (H, W), predicted ids (H, W) by name.
        intervals (`dict`, *optional*):
            95 % bootstrap intervals of the scores over images, see [`~deft_hf.scoring.bootstrap`].
        extremes (`dict[str, dict]`, *optional*, defaults to `{}`):
            By domain, id and mean IoU of its `best`, `median` and `worst` image.
        folder (`Path`, *optional*):
            Where tables and pictures were written, if they were.
        places (`list[Findings]`, *optional*, defaults to `[]`):
            What the model makes of places without labels.
        archives (`list[str]`, *optional*, defaults to `[]`):
            The zips for a benchmark's server, in that folder.
    """

    name: str
    scores: dict[str, Scores]
    validation: list[str]
    unseen: list[str]
    labels: LabelSpace
    unreadable: dict[str, list[str]]
    examples: list[PanelRow]
    intervals: Intervals | None = None
    extremes: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: Path | None = None
    places: list[Findings] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Mean IoU of each domain in per cent, with its interval over images, as Markdown."""
        return domain_table(*self._scored())

    def further_tables(self) -> list[str]:
        """The same of each further metric, a Markdown section each."""
        return [f"## {title}, per cent\n\n{table}" for title, table in further_tables(*self._scored()).items()]

    def _scored(self) -> tuple[Results, list[str], list[str], dict[str, Intervals | None]]:
        return {self.name: self.score_dicts()}, self.validation, self.unseen, {self.name: self.intervals}

    def class_tables(self) -> list[str]:
        """IoU of each class in per cent, a Markdown section for each domain."""
        results, names = {self.name: self.score_dicts()}, self.labels.names
        return [f"## {markdown_text(domain)}\n\n{class_table(results, domain, names)}" for domain in self.scores]

    def to_pandas(self) -> DataFrame:
        """A row for each domain: its role, its scores, and the IoU of each class."""
        import pandas

        roles = {name: "validation" for name in self.validation} | {name: "unseen" for name in self.unseen}
        rows = {
            domain: {"role": roles[domain], **score_columns(scores, self.labels.names)}
            for domain, scores in self.score_dicts().items()
        }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("domain")

    def pictures(self) -> list[Path]:
        if self.folder is None:
            return []
        overlays = [OVERLAYS] if (self.folder / OVERLAYS).is_file() else []  # drawn where the recipe asks for it
        names = [PANELS, *overlays, *(panels_file(found.place) for found in self.places)]
        return [self.folder / name for name in names]

    def score_dicts(self) -> dict[str, dict[str, Any]]:
        """`scores` as plain lists and numbers."""
        return {domain: scores.to_dict() for domain, scores in self.scores.items()}
