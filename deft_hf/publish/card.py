"""The model card: what the model is, how good it is where, how it was made and how to use it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from transformers import PreTrainedConfig

from deft_hf.methods.averages import MADE_OF
from deft_hf.models.embedded import EMBEDDED
from deft_hf.models.families import objective_of
from deft_hf.publish.facts import RunFacts
from deft_hf.publish.terms import HUB_LICENSES, Terms, base_terms
from deft_hf.scoring.bootstrap import Intervals
from deft_hf.scoring.place_report import READING
from deft_hf.scoring.report import INTERVALS, Results, class_table, domain_table, further_tables
from deft_hf.utils.text import markdown_block, markdown_code, markdown_text, one_line, without_credentials

_METRICS = {
    "mean_iou": ("mean_iou", "Mean IoU"),
    "mean_accuracy": ("mean_accuracy", "Mean accuracy"),
    "pixel_accuracy": ("accuracy", "Pixel accuracy"),
}
# Absolute, at the start of a word: `https://host/path` and `a/b` are none.
_LOCAL_PATH = re.compile(r"""(?<![\w.~:/\\<-])(?:~\w*|[A-Za-z]:)?[/\\][^\s"',;()\[\]{}]+""")
_TOKEN = re.compile(r"""(\b\w*token\b["']?\s*[:=]\s*)[^\s,}\]]+""", re.IGNORECASE)


@dataclass(frozen=True)
class DataUse:
    """A domain of a run.

    Attributes:
        name (`str`):
            Name of the domain.
        use (`str`):
            What for: `training`, `validation` or `unseen`.
        images (`int`):
            How many.
        hub (`str`, *optional*):
            Hub name of the data set, where it is one.
        terms (`Terms`, *optional*):
            What its images come under, where known.
    """

    name: str
    use: str
    images: int
    hub: str | None = None
    terms: Terms | None = None


@dataclass(frozen=True)
class PlaceUse:
    """A place without labels.

    Attributes:
        name (`str`):
            Its name.
        images (`int`):
            Number of its images.
        tables (`Sequence[str]`):
            Estimates, where there are some, and shares of the classes: Markdown tables.
        figure (`str`):
            PNG file of examples, relative to the card.
    """

    name: str
    images: int
    tables: Sequence[str]
    figure: str


@dataclass(frozen=True)
class CardFacts:
    """What a card and a page tell.

    Attributes:
        run (`RunFacts`):
            The run that the model is of.
        model_name (`str`):
            Heading of the card.
        config (`PreTrainedConfig`):
            Config of the model; the snippet depends on its type.
        base_model (`str`):
            Hub name or folder of the pretrained model, as `from_pretrained` took it.
        settings (`Mapping[str, Any]`):
            The method's settings that differ from their defaults, in the order to print.
        source (`Sequence[str]`):
            Names of the domains trained on; `results` has their scores on validation images.
        unseen (`Sequence[str]`):
            Names of the domains that were only evaluated.
        results (`Results`):
            `results[method][domain]` is a `Scores.to_dict()`; baselines stand beside `run.method`.
        recipe (`str`):
            The recipe, YAML.
        command (`str`):
            Shell command that runs the recipe.
        intervals (`Mapping[str, Intervals | None]`, *optional*, defaults to `{}`):
            By method, 95 % intervals of its scores over images.
        warnings (`Sequence[str]`, *optional*, defaults to `()`):
            What a reader of the results must know.
        figures (`Mapping[str, str]`, *optional*, defaults to `{}`):
            Caption of each PNG file, by path relative to the card.
        page (`str`, *optional*):
            HTML file with all figures, relative to the card.
        places (`Sequence[PlaceUse]`, *optional*, defaults to `()`):
            Places without labels that the methods were looked at on.
        data (`Sequence[DataUse]`, *optional*, defaults to `()`):
            What it was trained and scored on, in the order to print.
        base_license (`str`, *optional*):
            Terms of the base model in words, where the recipe says them.
        license (`str`, *optional*):
            Identifier of the model's licence (https://huggingface.co/docs/hub/repositories-licenses).
        repo_id (`str`, *optional*):
            Hub name that the model is pushed to; the snippet loads it from there.
    """

    run: RunFacts
    model_name: str
    config: PreTrainedConfig
    base_model: str
    settings: Mapping[str, Any]
    source: Sequence[str]
    unseen: Sequence[str]
    results: Results
    recipe: str
    command: str
    intervals: Mapping[str, Intervals | None] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    page: str | None = None
    places: Sequence[PlaceUse] = ()
    data: Sequence[DataUse] = ()
    base_license: str | None = None
    license: str | None = None
    repo_id: str | None = None


def render_card(facts: CardFacts) -> str:
    """The model card as Markdown with YAML metadata, which the Hub shows scores from.

    Absolute paths are cut to their last name and tokens are left out, in the recipe and the command too.
    """
    jinja = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=markdown_text,  # of all that stands in {{ }}
    )
    jinja.filters |= {"shareable": shareable, "value": as_in_a_recipe, "literal": _literal}
    jinja.filters |= {"code": markdown_code, "cell": _code_in_a_cell, "block": markdown_block}
    template = jinja.from_string(files("deft_hf.publish").joinpath("model_card.md").read_text(encoding="utf-8"))
    objective = objective_of(facts.config.model_type)
    return template.render(
        **contents(facts),
        component=_component(facts.run),
        auto_class=objective.auto_class,
        code=_code(facts.config),
        inputs=objective.inputs(facts.config),
        mask_classification="logits" not in objective.outputs,
        metadata=Markup(_metadata(facts).to_yaml()),
    )


def _code(config: PreTrainedConfig) -> str | None:
    """The file of the model's class, where transformers does not have it."""
    classes = getattr(config, "auto_map", None) or {}
    return next((f"{str(place).split('--')[-1].partition('.')[0]}.py" for place in classes.values()), None)


def _component(run: RunFacts) -> str:
    """What of a training the model is, in words."""
    made_of = MADE_OF.get(run.average or "")
    if run.component == "generalized" and made_of:
        return f"the generalized component of that training: {made_of}, put together as one ordinary model"
    return "the usual component of that training: encoder and decoder as the gradients left them"


def contents(facts: CardFacts) -> dict[str, Any]:
    """What the card and the page of a run have in common: the facts, their tables as Markdown, names fit to print."""
    scores = facts.results[facts.run.method]
    return {
        **vars(facts),
        "base": _base_name(facts),
        "base_on_hub": _is_hub_name(facts.base_model),
        "base_terms": _base_terms(facts),
        "domain_table": domain_table(facts.results, facts.source, facts.unseen, facts.intervals),
        "intervals_note": INTERVALS if any(facts.intervals.values()) else "",
        "further_tables": further_tables(facts.results, facts.source, facts.unseen, facts.intervals),
        "class_tables": [
            (_title(facts, domain), class_table(facts.results, domain, facts.run.labels), scores[domain]["absent"])
            for domain in [*facts.source, *facts.unseen]
            if domain in scores
        ],
        "reading": READING,
        "duration": str(timedelta(seconds=round(facts.run.train_seconds))),
    }


def _metadata(facts: CardFacts) -> ModelCardData:
    scores = list(_eval_results(facts))
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["deft", "domain-generalization", "semantic-segmentation"],
        base_model=facts.base_model if _is_hub_name(facts.base_model) else None,
        datasets=list(dict.fromkeys(use.hub for use in facts.data if use.hub and use.use == "training")) or None,
        **_license(facts.license),
        model_name=facts.model_name if scores else None,
        eval_results=scores or None,
    )


def _license(name: str | None) -> dict[str, Any]:
    # The Hub refuses a card with an identifier that it does not know.
    if name is None or name.lower() in HUB_LICENSES:
        return {"license": name and name.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")}


def _base_terms(facts: CardFacts) -> Terms | None:
    if facts.base_license is not None:
        return Terms(facts.base_license)
    return base_terms(facts.base_model, facts.config.model_type, _is_hub_name(facts.base_model))


def _eval_results(facts: CardFacts) -> Iterator[EvalResult]:
    """One entry a domain and metric. The Hub takes results of equal `dataset_type` for one data set."""
    for domain in [*facts.source, *facts.unseen]:
        scores = facts.results[facts.run.method].get(domain, {})
        for key, (metric_type, name) in _METRICS.items():
            score = scores.get(key)
            if score is not None and math.isfinite(score):
                yield EvalResult(
                    task_type="image-segmentation",
                    task_name="Semantic segmentation",
                    dataset_type=domain,
                    dataset_name=_title(facts, domain),
                    metric_type=metric_type,
                    metric_name=name,
                    metric_value=float(score),
                )


def _title(facts: CardFacts, domain: str) -> str:
    return f"{domain} (unseen)" if domain in facts.unseen else f"{domain} (source, validation)"


def _is_hub_name(base_model: str) -> bool:
    # In the order in which `from_pretrained` looks.
    if base_model == EMBEDDED:
        return False
    if Path(base_model).expanduser().exists():
        return False
    try:
        validate_repo_id(base_model)
    except HFValidationError:
        return False
    return True


def _base_name(facts: CardFacts) -> str:
    if facts.base_model == EMBEDDED:
        return "the tiny SegFormer of deft_hf"
    return facts.base_model if _is_hub_name(facts.base_model) else Path(facts.base_model).expanduser().resolve().name


def shareable(text: str) -> str:
    """`text` without what concerns the author's machine or account alone."""
    text = _TOKEN.sub(r"\1(left out)", without_credentials(text))
    return _LOCAL_PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text).strip()


def shareable_tree(tree: Any) -> Any:
    """[`shareable`] for each text in lists and mappings, as YAML and JSON have them."""
    if isinstance(tree, Mapping):
        hidden = {key for key in tree if str(key).lower().endswith("token")}
        return {key: "(left out)" if key in hidden else shareable_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shareable_tree(value) for value in tree]
    return shareable(tree) if isinstance(tree, str) else tree


def _literal(text: str) -> str:
    """A string of Python."""
    return Markup(json.dumps(one_line(text), ensure_ascii=False))


def _code_in_a_cell(text: str) -> str:
    return Markup(markdown_code(text).replace("|", "\\|"))


def as_in_a_recipe(setting: Any) -> str:
    """The value of a setting, as a recipe has it."""
    return setting if isinstance(setting, str) else json.dumps(setting)
