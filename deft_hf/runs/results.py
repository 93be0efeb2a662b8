"""What a run leaves behind: facts as JSON, a table, pictures, the model card, a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, BaseImageProcessor, PreTrainedModel

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.transforms import EvalTransform
from deft_hf.data.unreadable import Reader
from deft_hf.methods.core.pathways import PARTS
from deft_hf.models.families import resolve_family
from deft_hf.models.opening import open_model
from deft_hf.models.processor import open_processor
from deft_hf.publish.card import CardFacts, DataUse, render_card
from deft_hf.publish.figures import RunRecord, save_run_figures
from deft_hf.publish.page import render_page
from deft_hf.publish.terms import DATA, DRAWN, Terms
from deft_hf.recipe import Recipe
from deft_hf.recipe.data import Entry, HubEntry, StreetsEntry
from deft_hf.runs.provenance import data_lists, git_states, hardware, versions
from deft_hf.scoring.inference import predict
from deft_hf.scoring.report import domain_table, save_domain_bars, save_panels
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.evaluation import best_point
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError
from deft_hf.utils.integrity import step_of

RECIPE = "recipe.yaml"
METRICS = Path("results") / "metrics.json"
HISTORY = Path("results") / "history.json"
CONFUSIONS = Path("results") / "confusions.json"
DISTANCES = Path("results") / "layer_distances.json"
PAGE = "report.html"


@dataclass(frozen=True)
class Domains:
    """The data of a run: domains to train on, to choose a checkpoint on, and never to choose anything on."""

    source: list[Domain]
    validation: list[Domain]
    unseen: list[Domain]

    @property
    def labels(self) -> LabelSpace:
        return self.source[0].labels

    @property
    def evaluated(self) -> list[Domain]:
        return [*self.validation, *self.unseen]


def method_folder(recipe: Recipe, method: str) -> Path:
    """Where a method's model, checkpoints and results lie: the output folder, or one below it for a baseline."""
    folder = Path(recipe.training.output_dir)
    return folder if method == recipe.method.name else folder / "baselines" / method


def collect_facts(
    trainer: DeFTTrainer,
    recipe: Recipe,
    domains: Domains,
    seconds: float,
    resumed: bool,
    alphas: dict[float, float] | None = None,
) -> dict[str, Any]:
    """Everything about a finished method that a table, a card or a later reader may ask for."""
    args, pathways, last = trainer.args, trainer.pathways, trainer.spans[-1]
    best = trainer.state.best_model_checkpoint
    scores = {domain.name: trainer.scores[f"eval_{domain.name}"].to_dict() for domain in domains.evaluated}
    usual = {
        domain.name: trainer.scores[f"eval_{domain.name}_usual"].to_dict()
        for domain in domains.evaluated
        if f"eval_{domain.name}_usual" in trainer.scores
    }
    return {
        "method": args.method,
        "average": args.averages,
        "component": args.component,
        "seed": args.seed,
        "stages": [{"stage": span.stage, "steps": span.steps} for span in trainer.spans],
        "batch_size": trainer.get_total_train_batch_size(args),
        "learning_rates": args.learning_rates(),
        "weight_decays": args.weight_decays(),
        "decays": args.run_decays(last.steps) if args.averages not in (None, "swa") else None,
        "initial_share": dict.fromkeys(PARTS, 1 - best_point(alphas)) if alphas else pathways.share_left(),
        "distance": pathways.distances(pathways.exported),
        "batchnorm": args.batchnorm,
        **({"interpolation": {str(alpha): value for alpha, value in alphas.items()}} if alphas else {}),
        "best_checkpoint": step_of(best) if args.load_best_model_at_end and best is not None else None,
        "train_seconds": round(seconds, 1),
        "resumed": resumed,
        "processes": trainer.accelerator.num_processes,
        "hardware": hardware(),
        "versions": versions(),
        "git": git_states(recipe.path),
        "recipe": yaml.safe_load(recipe.to_yaml()),
        "recipes_before": sorted(path.name for path in Path(recipe.training.output_dir).glob("recipe.*.yaml")),
        "data": data_lists(source=domains.source, validation=domains.validation, unseen=domains.unseen),
        "unreadable": trainer.unreadable_images(),
        "labels": list(domains.labels.names),
        "scores": scores,
        **({"usual_scores": usual} if usual else {}),
    }


def read_results(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The facts of every method of the recipe, baselines first.

    Raises:
        UserError: a file of them is damaged.
    """
    return {method: _read_facts(recipe, method) for method in [*recipe.method.baselines, recipe.method.name]}


def _read_facts(recipe: Recipe, method: str) -> dict[str, Any]:
    path = method_folder(recipe, method) / METRICS
    try:
        facts = json.loads(path.read_text("utf-8"))
        if facts["method"] == method and isinstance(facts["scores"], dict):
            return facts
        found = "it is of something else"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
    raise UserError(f"{path}: cannot be used ({found}); remove it, and {method} is scored from its last checkpoint.")


def report(recipe: Recipe, domains: Domains, facts: dict[str, dict[str, Any]]) -> str:
    """Table and pictures of all methods in the output folder; returns the table, mean IoU in per cent."""
    folder = Path(recipe.training.output_dir)
    scores = {method: fact["scores"] for method, fact in facts.items()}
    source, unseen = [domain.name for domain in domains.validation], [domain.name for domain in domains.unseen]
    table = domain_table(scores, source, unseen)
    (folder / "results" / "table.md").write_text(table + "\n")
    save_domain_bars(folder / "figures" / "domains.png", scores, source, unseen)
    save_panels(folder / "figures" / "panels.png", _panel_rows(recipe, domains), domains.labels)
    return table


def write_model_card(recipe: Recipe, domains: Domains, facts: dict[str, dict[str, Any]]) -> None:
    """README.md and report.html of the output folder, with their pictures, from what the methods left behind."""
    folder, own = Path(recipe.training.output_dir), facts[recipe.method.name]
    defaults = {field.name: field.default for field in fields(DeFTTrainingArguments)}
    chosen = recipe.method.model_dump(exclude={"name", "baselines"}) | recipe.training.model_dump(exclude_unset=True)
    settings = {name: value for name, value in chosen.items() if name != "output_dir" and value != defaults[name]}
    captions = {
        "domains.png": "Mean IoU of each method on each domain",
        "panels.png": "An image of each domain, its truth, and what each method makes of it",
        **save_run_figures(folder / "figures", _record(recipe, domains, facts)),
    }
    card_facts = CardFacts(
        model_name=folder.resolve().name,
        config=AutoConfig.from_pretrained(folder),
        base_model=recipe.model.pretrained,
        method=own["method"],
        component=own["component"],
        average=own["average"],
        settings=settings,
        stages=[(stage["stage"], stage["steps"]) for stage in own["stages"]],
        decays=own["decays"] or {},
        shares_left=own["initial_share"],
        distances=own["distance"],
        labels=own["labels"],
        source=[domain.name for domain in domains.validation],
        unseen=[domain.name for domain in domains.unseen],
        results={method: fact["scores"] for method, fact in facts.items()},
        recipe=recipe.to_yaml(),
        command=f"accelerate launch -m deft_hf.train {RECIPE}",
        versions=own["versions"],
        seed=own["seed"],
        hardware=own["hardware"],
        seconds=own["train_seconds"],
        unreadable={name: len(ids) for name, ids in own.get("unreadable", {}).items()},
        figures={f"figures/{name}": caption for name, caption in captions.items()},
        page=PAGE,
        data=_data_uses(recipe, domains),
        base_license=recipe.publish.base_license,
        license=recipe.publish.license,
        repo_id=recipe.publish.repo_id,
    )
    (folder / "README.md").write_text(render_card(card_facts), "utf-8")
    (folder / PAGE).write_text(render_page(card_facts, folder, _origin(own)), "utf-8")


def _record(recipe: Recipe, domains: Domains, facts: dict[str, dict[str, Any]]) -> RunRecord:
    # A run that an earlier version finished lacks what there was not: then these pictures are not drawn.
    def kept(method: str, name: Path, default: Any) -> Any:
        path = method_folder(recipe, method) / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else default

    own = recipe.method.name
    return RunRecord(
        method=own,
        stages=[(stage["stage"], stage["steps"]) for stage in facts[own]["stages"]],
        histories={method: kept(method, HISTORY, []) for method in facts},
        results={method: fact["scores"] for method, fact in facts.items()},
        confusions=kept(own, CONFUSIONS, {}),
        distances={method: kept(method, DISTANCES, {}) for method in facts},
        labels=domains.labels,
        source=[domain.name for domain in domains.validation],
        unseen=[domain.name for domain in domains.unseen],
    )


def _data_uses(recipe: Recipe, domains: Domains) -> list[DataUse]:
    sections = {
        "training": (recipe.data.source, domains.source),
        "validation": (recipe.data.validation, domains.validation),
        "unseen": (recipe.data.unseen, domains.unseen),
    }
    return [
        DataUse(domain.name, use, len(domain), _hub_name(entry), _terms(recipe, entry))
        for use, (entries, loaded) in sections.items()
        for entry, domain in zip(entries, loaded, strict=True)
    ]


def _hub_name(entry: Entry) -> str | None:
    return entry.hub if isinstance(entry, HubEntry) and not Path(entry.hub).exists() else None


def _terms(recipe: Recipe, entry: Entry) -> Terms | None:
    said = recipe.publish.data_licenses.get(entry.name)
    if said is not None:
        return Terms(said)
    return DRAWN if isinstance(entry, StreetsEntry) else DATA.get(getattr(entry, "layout", None))


def _origin(own: dict[str, Any]) -> dict[str, str]:
    """Commits and processes of a run, in words."""
    commits = {
        f"commit of {name}": state["commit"] + (", with changes" if state["dirty"] else "")
        for name, state in own.get("git", {}).items()
        if state
    }
    return {**commits, "processes": str(own["processes"]), "batch size": str(own["batch_size"])}


def _panel_rows(recipe: Recipe, domains: Domains) -> list[tuple]:
    """The middle image of each domain with every method's prediction, made by the exported models."""
    methods = [*recipe.method.baselines, recipe.method.name]
    models = {method: _exported(method_folder(recipe, method)) for method in methods}
    rows = []
    reader = Reader(domains.evaluated, recipe.data.unreadable)
    for index, domain in enumerate(domains.evaluated):
        image, truth, _ = reader.load(index, len(domain) // 2)
        predictions = {}
        for method, (model, processor) in models.items():
            prepared = EvalTransform(recipe.data.image_size, processor.image_mean, processor.image_std)(image, truth)
            family = resolve_family(model, recipe.model.encoder)
            classes = predict(
                model, family, prepared["pixel_values"][None], truth.shape, recipe.data.window, recipe.data.stride
            )
            predictions[method] = classes[0].numpy()
        rows.append((domain.name, image, truth, predictions))
    return rows


def _exported(folder: Path) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """An exported model in eval mode, and its processor."""
    return open_model(folder), open_processor(str(folder))
