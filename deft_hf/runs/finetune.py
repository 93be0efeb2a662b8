"""From a folder of pictures to a model and its scores, in one call."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deft_hf.publish.facts import RunFacts
from deft_hf.recipe import Recipe
from deft_hf.runs.facts import read_facts
from deft_hf.runs.folder import method_folders
from deft_hf.runs.init import init
from deft_hf.runs.init.sources import unseen_entries
from deft_hf.runs.places import panels_file
from deft_hf.runs.train import train
from deft_hf.utils.files import PLACES
from deft_hf.utils.result import Result, score_columns

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Finetuned(Result):
    """A finished run.

    Attributes:
        folder (`Path`):
            The model, a plain Hub folder, with its card, report and pictures.
        recipe (`Path`):
            The recipe that was written for it; `deft-hf train` and `compare` take it.
        facts (`dict[str, RunFacts]`):
            By method, what is known of its training and its scores.
        validation (`list[str]`):
            Names of the domains that the checkpoint was chosen on.
        places (`dict[str, Any]`):
            What the methods make of each place without labels, as in `results/places.json`.
    """

    folder: Path
    recipe: Path
    facts: dict[str, RunFacts]
    validation: list[str]
    places: dict[str, Any]

    def to_pandas(self) -> DataFrame:
        """A row for each method and domain: its role, its scores, and the IoU of each class."""
        import pandas

        rows = [
            {"method": method, "domain": domain, "role": "validation" if domain in self.validation else "unseen"}
            | score_columns(scores, facts.labels)
            for method, facts in self.facts.items()
            for domain, scores in facts.scores.items()
        ]
        return pandas.DataFrame(rows).set_index(["method", "domain"])

    def pictures(self) -> list[Path]:
        names = ["figures/domains.png", "figures/panels.png", *map(panels_file, self.places)]
        return [self.folder / name for name in names]


def finetune(
    folder: str | os.PathLike,
    model: str | None = None,
    unseen: Sequence[str | os.PathLike | Mapping[str, Any]] = (),
    out: str | os.PathLike | None = None,
    *,
    method: str = "deft",
    baselines: Sequence[str] = ("joint",),
    overrides: Iterable[str] = (),
    progress: bool = True,
) -> Finetuned:
    """Fine-tunes a model on a folder of labelled pictures, and shows how it does elsewhere.

    [`~deft_hf.runs.init.init`] looks at the folder and writes a recipe with the reason of each choice, which is then
    trained as `deft-hf train` does: the same call resumes an interrupted run.

    Args:
        folder (`str` or `os.PathLike`):
            The pictures and their labels, however they are laid out.
        model (`str`, *optional*):
            Hub name or folder of the model to start from; by default one that fits data and machine.
        unseen (`Sequence[str | os.PathLike | Mapping[str, Any]]`, *optional*, defaults to `()`):
            Folders of other places, which are only looked at: scored where they have labels, estimated where not. Or
            entries of a recipe's `data.unseen`, as they are written there.
        out (`str` or `os.PathLike`, *optional*):
            Folder to write to, with the recipe beside it as `OUT.yaml`; by default `outputs/NAME_OF_THE_FOLDER`.
        method (`str`, *optional*, defaults to `"deft"`):
            The method.
        baselines (`Sequence[str]`, *optional*, defaults to `("joint",)`):
            Methods to train beside it; `()` for none.
        overrides (`Iterable[str]`, *optional*, defaults to `()`):
            `key.sub=value` each, values that replace the recipe's.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars while the folder is looked at.

    Returns:
        `Finetuned`: the model and how it does.

    Raises:
        UserError: There are no labelled pictures, or something about model, data or folder is wrong, before any
            training.

    Example:

    ```python
    from deft_hf import finetune

    run = finetune("photos/", model="nvidia/mit-b0", unseen=["coast/"])
    run.show()
    ```
    """
    name = Path(folder).resolve().name
    out = Path("outputs", name) if out is None else Path(out).expanduser()
    written = init(folder, f"{out}.yaml", model=model, overwrite=True, progress=progress).recipe
    others = [entry for place in unseen for entry in _entries(place)]
    own = Recipe.load(written)
    settings = [
        f"training.output_dir={json.dumps(str(out))}",
        f"method.name={method}",
        f"method.baselines=[{', '.join(one for one in baselines if one != method)}]",
    ]
    if others:
        before = [entry.model_dump(exclude_unset=True) for entry in own.data.unseen]
        entries = yaml.safe_dump([*before, *others], default_flow_style=True, width=10**6).strip()
        settings.append(f"data.unseen={entries}")
    recipe = Recipe.load(written, [*settings, *overrides])
    place = train(recipe)
    found = place / PLACES
    return Finetuned(
        folder=place,
        recipe=written,
        facts=read_facts(method_folders(place, recipe.method)),
        validation=[entry.name for entry in recipe.data.validation],
        places=json.loads(found.read_text("utf-8")) if found.is_file() else {},
    )


def _entries(place: str | os.PathLike | Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(place)] if isinstance(place, Mapping) else unseen_entries(Path(place).expanduser())
