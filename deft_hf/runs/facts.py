"""The facts of a run: collected when it is over, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deft_hf.data.roles import Domains
from deft_hf.publish.facts import RunFacts
from deft_hf.runs.collapsed import looked_at, only_class
from deft_hf.runs.provenance import Origin, data_lists, git_states, hardware, versions
from deft_hf.scoring.bootstrap import intervals
from deft_hf.scoring.extremes import extremes
from deft_hf.scoring.metrics import metrics
from deft_hf.scoring.tally import REGIONS
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import EARLIER_RECIPES, METRICS
from deft_hf.utils.integrity import step_of, whole_number

_FACTS = TypeAdapter(RunFacts)
_Ends = dict[str, tuple[float | None, float | None]]


class _Stage(BaseModel):
    stage: str
    steps: int = Field(ge=0, lt=2**53)


class _Scores(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None | list[float | None]] = Field(init=False)
    mean_iou: float | None
    iou: list[float | None]
    absent: list[str | int]


class _Intervals(BaseModel):
    domains: dict[str, _Ends] = {}
    unseen_mean: _Ends = {}


class _Example(BaseModel):
    image: str
    mean_iou: float | None


class _Commit(BaseModel):
    commit: str
    dirty: bool


class _Read(BaseModel):
    """What tables, cards and pictures take from the mappings among the facts."""

    stages: list[_Stage]
    train_seconds: float = Field(ge=0, lt=1e10)
    git: dict[str, _Commit | None]
    data: dict[str, list[dict[str, str | int | None]]]
    scores: dict[str, _Scores]
    usual_scores: dict[str, _Scores] | None
    intervals: _Intervals | None
    extremes: dict[str, dict[str, _Example]] | None


def collect_facts(
    trainer: DeFTTrainer,
    domains: Domains,
    origin: Origin,
    seconds: float,
    resumed: bool,
) -> RunFacts:
    """The facts of a run that is trained and scored.

    Args:
        trainer (`DeFTTrainer`):
            Trainer of the run.
        domains (`Domains`):
            Data of the run.
        origin (`Origin`):
            What it was started with.
        seconds (`float`):
            Wall-clock time of the training.
        resumed (`bool`):
            Whether it resumed from a checkpoint.
    """
    args, pathways, last = trainer.args, trainer.pathways, trainer.spans[-1]
    rule, chosen = trainer.composition.rule(last.steps), trainer.composition.facts()
    best = trainer.state.best_model_checkpoint
    names = [domain.name for domain in domains.evaluated]
    scored = {key: scores.to_dict() for key, scores in trainer.scores.items()}
    confusions = {name: trainer.evaluator.confusions[f"eval_{name}"] for name in names}
    return RunFacts(
        method=args.method,
        average=args.averages,
        component=args.component,
        seed=args.seed,
        stages=[{"stage": span.stage, "steps": span.steps} for span in trainer.spans],
        batch_size=trainer.get_total_train_batch_size(args),
        learning_rates=args.learning_rates(),
        weight_decays=args.weight_decays(),
        decays=None if rule is None else rule.decays,
        initial_share=chosen.get("initial_share") or pathways.share_left(),
        distance=pathways.distances(pathways.exported),
        batchnorm=args.batchnorm,
        interpolation=chosen.get("interpolation"),
        unstable_layers=chosen.get("unstable_layers"),
        best_checkpoint=step_of(best) if args.load_best_model_at_end and best is not None else None,
        train_seconds=round(seconds, 1),
        resumed=resumed,
        processes=trainer.accelerator.num_processes,
        hardware=hardware(),
        versions=versions(),
        git=git_states(origin.path),
        recipe=dict(origin.recipe),
        choices=[choice._asdict() for choice in origin.choices if choice.value is not None],
        recipes_before=sorted(path.name for path in origin.folder.glob(EARLIER_RECIPES)),
        data=_data(domains) if trainer.is_world_process_zero() else {},
        transform=None if origin.transform is None else dict(origin.transform),
        unreadable=trainer.unreadable_images(),
        labels=list(domains.labels.names),
        scores={name: scored[f"eval_{name}"] for name in names},
        intervals=intervals(
            {name: trainer.evaluator.counts[f"eval_{name}"] for name in names},
            [domain.name for domain in domains.unseen],
            trainer.evaluator.further,
        ),
        extremes={
            domain.name: extremes(trainer.evaluator.counts[f"eval_{domain.name}"][REGIONS], domain.ids)
            for domain in domains.evaluated
        },
        only_class=only_class(confusions, looked_at(domains), domains.labels.names),
        usual_scores={name: scored[f"eval_{name}_usual"] for name in names if f"eval_{name}_usual" in scored},
    )


def _data(domains: Domains) -> dict[str, list[dict[str, Any]]]:
    return data_lists(source=domains.source, validation=domains.validation, unseen=domains.unseen)


def read_facts(folders: Mapping[str, Path]) -> dict[str, RunFacts]:
    """The facts of every method.

    Args:
        folders (`Mapping[str, Path]`):
            By method, its folder; see `method_folders`.

    Raises:
        UserError: If a file of them is damaged.
    """
    return {method: _read(folder / METRICS, method) for method, folder in folders.items()}


def _read(path: Path, method: str) -> RunFacts:
    try:
        facts = RunFacts.from_dict(json.loads(path.read_text("utf-8"), parse_int=whole_number))
        content = json.dumps(vars(facts))
        _FACTS.validate_json(content, strict=True)  # strictly, only JSON makes a dataclass of a dict
        _Read.model_validate_json(content, strict=True)
        if facts.method == method and all(_fits(scores, len(facts.labels)) for scores in facts.scores.values()):
            return facts
        found = "it is of something else"
    except ValidationError as error:
        (first, *_) = error.errors()
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
    raise UserError(f"{path}: cannot be used ({found}); remove it, and {method} is scored from its last checkpoint.")


def _fits(scores: Mapping[str, Any], classes: int) -> bool:
    """Whether a domain has a number for each mean, and for each class."""
    known = metrics().values()
    return all(not isinstance(scores.get(metric.key), list) for metric in known) and all(
        len(scores[metric.name]) == classes for metric in known if metric.by_class and metric.name in scores
    )
