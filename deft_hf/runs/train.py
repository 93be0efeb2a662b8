"""Training as a recipe says: every method on the same data, then the report, the card and the page."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import BaseImageProcessor, EarlyStoppingCallback

from deft_hf.data.roles import Domains
from deft_hf.publish.facts import RunFacts
from deft_hf.publish.push import check_repository, push_folder
from deft_hf.recipe import ModelSection, Recipe
from deft_hf.recipe.data import DataSection
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.card import write_card
from deft_hf.runs.collapsed import warnings
from deft_hf.runs.data import evaluation_sets, load_domains, own_transform, training_set
from deft_hf.runs.evaluate import recipe_segmenter
from deft_hf.runs.extremes import OVERLAYS, draw_extremes
from deft_hf.runs.facts import collect_facts, read_facts
from deft_hf.runs.finish import finish
from deft_hf.runs.folder import claimed_folder, method_folders
from deft_hf.runs.forecast import Forecast
from deft_hf.runs.places import Findings, look_at, write_findings
from deft_hf.runs.provenance import Origin
from deft_hf.runs.report import write_report
from deft_hf.runs.same_data import claim_data
from deft_hf.runs.settle import settled
from deft_hf.runs.start import open_start
from deft_hf.runs.trackers import own_tracker_run
from deft_hf.scoring.metrics import further
from deft_hf.scoring.test_time import Views
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.console import is_main, say
from deft_hf.utils.files import METRICS, RECIPE
from deft_hf.utils.places import check_temporary


def train(recipe: Recipe, resume_anyway: bool = False) -> Path:
    """Train every method of a recipe, score it on every domain, export it, and write what there is to read.

    The model is pushed to the Hub where the recipe says so.

    A run that is done is left alone, one that was interrupted resumes from its last checkpoint. Every process of a
    launcher calls it.

    Args:
        recipe (`Recipe`):
            The recipe.
        resume_anyway (`bool`, *optional*, defaults to `False`):
            Resume a run of another recipe too, see `claimed_folder`.

    Returns:
        `Path`: the output folder, which is a plain Hub folder.

    Raises:
        UserError: If anything in data or output folder is wrong, before training starts, or a push failed.

    Example:

    ```python
    from deft_hf import Recipe
    from deft_hf.runs.train import train

    folder = train(Recipe.load("quickstart", ["training.seed=1"]))
    ```
    """
    recipe = settled(recipe)
    publish = recipe.publish
    repository = publish.repo_id if publish.push_to_hub else None
    if repository is not None and is_main():
        check_repository(repository, publish.private, revision=publish.revision)
    check_temporary()
    own_transform(recipe.data)  # refuses before any file is read
    with claimed_folder(recipe, resume_anyway) as folder:
        domains, origin = load_domains(recipe.data), Origin.of(recipe)
        folders = method_folders(folder, recipe.method)
        claim_data(folder, folders.values(), domains, resume_anyway, origin.transform)
        forecast = Forecast(method_arguments(recipe, method) for method in folders)
        for method in folders:
            args = method_arguments(recipe, method)
            with own_tracker_run(args, recipe.training.run_name or folder.resolve().name):
                early_stop = recipe.training.early_stop
                train_method(args, recipe.model, recipe.data, domains, origin, resume_anyway, early_stop, forecast)
        if is_main():
            facts = read_facts(folders)
            say_unscored(recipe, folders, facts)
            model = recipe.model
            table = write_report(folder, folders, facts, domains, recipe.data, model.encoder, model.trust_remote_code)
            if publish.best_and_worst:
                own = recipe.method.name
                segmenter = recipe_segmenter(str(folder), recipe, trust_remote_code=model.trust_remote_code)
                draw_extremes(folder / OVERLAYS, segmenter, domains.evaluated, facts[own].extremes or {})
            write_card(recipe, domains, facts, look_at_places(recipe, folders, domains))
            print(f"\nmean IoU in per cent\n\n{table}\n\nThe model, a plain Hub folder: {folder}")
            if repository is not None:
                address = push_folder(folder, repository, publish.private, revision=publish.revision)
                print(f"On the Hub: {address}")
    return folder


def say_unscored(recipe: Recipe, folders: Mapping[str, Path], facts: Mapping[str, RunFacts]) -> None:
    """Say which of `training.metrics` a method that was done before lacks, and how to get them.

    Args:
        recipe (`Recipe`):
            The recipe, which its output folder holds too.
        folders (`Mapping[str, Path]`):
            By method, its folder; see `method_folders`.
        facts (`Mapping[str, RunFacts]`):
            By method, what is known of it.
    """
    asked, saved = further(recipe.training.metrics or ()), Path(recipe.training.output_dir) / RECIPE
    for method, found in facts.items():
        missing = [one.name for one in asked if any(one.key not in scores for scores in found.scores.values())]
        if missing:
            command = shlex.join(
                ["deft-hf", "evaluate", str(folders[method]), str(saved), "--out", f"scores_{method}"]
            )
            say(f"{method}: was done without training.metrics {', '.join(missing)}; to have them: {command}")


def look_at_places(recipe: Recipe, folders: Mapping[str, Path], domains: Domains) -> list[Findings]:
    """What the finished methods make of the places without labels, written to the output folder.

    Args:
        recipe (`Recipe`):
            The recipe.
        folders (`Mapping[str, Path]`):
            By method, its folder; see `method_folders`.
        domains (`Domains`):
            The data, loaded.
    """
    if not domains.places:
        return []
    trust = recipe.model.trust_remote_code
    models = {
        method: recipe_segmenter(str(place), recipe, trust_remote_code=trust) for method, place in folders.items()
    }
    found = look_at(models, domains)
    write_findings(Path(recipe.training.output_dir).joinpath, found, domains.labels)
    return found


def train_method(
    args: DeFTTrainingArguments,
    model: ModelSection,
    data: DataSection,
    domains: Domains,
    origin: Origin,
    resume_anyway: bool = False,
    early_stop: int | None = None,
    forecast: Forecast | None = None,
) -> None:
    """Train one method, score it on every domain, export it.

    A method that is done is left alone, an interrupted one resumes.

    Args:
        args (`DeFTTrainingArguments`):
            Arguments of the method, including its folder (`output_dir`).
        model (`ModelSection`):
            What it starts from.
        data (`DataSection`):
            Sizes and augmentation.
        domains (`Domains`):
            The data, loaded.
        origin (`Origin`):
            What the run was started with, for its record.
        resume_anyway (`bool`, *optional*, defaults to `False`):
            Resume from a checkpoint of other settings too.
        early_stop (`int`, *optional*):
            End after so many evaluations of the last stage without a better score on source validation.
        forecast (`Forecast`, *optional*):
            Says what is ahead, and how long it takes.
    """
    folder = args.folder
    if (folder / METRICS).is_file():
        say(f"{args.method}: done before, in {folder}")
        return
    say(f"\n{args.method}: training in {folder}")
    trainer = make_trainer(args, model, data, domains)
    if early_stop is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stop))
    if forecast is not None:
        trainer.add_callback(forecast.watch(trainer, {domain.name: len(domain) for domain in domains.source}))
    facts = fit(trainer, data, domains, origin, resume_anyway=resume_anyway)
    finish(trainer, facts, model, data, domains)
    # Trainer and callbacks refer to each other: without a collection the next method would share the memory.
    del trainer
    gc.collect()
    torch.cuda.empty_cache()


def make_trainer(args: DeFTTrainingArguments, model: ModelSection, data: DataSection, domains: Domains) -> DeFTTrainer:
    """The trainer of a run, with a freshly opened model.

    Args:
        args (`DeFTTrainingArguments`):
            Arguments of the method.
        model (`ModelSection`):
            What it starts from.
        data (`DataSection`):
            Sizes and augmentation.
        domains (`Domains`):
            The data, loaded.

    Raises:
        UserError: If `open_start` or `DeFTTrainer` refuses something.
    """
    start = open_start(model, data, domains.labels, args.seed)
    assert args.data_seed is not None  # the arguments fill it in
    return DeFTTrainer(
        model=start.model,
        args=args,
        train_dataset=training_set(data, domains.source, start.processor, args.data_seed),
        eval_dataset=evaluation_sets(data, domains.evaluated, start.processor, data.images_while_training),
        processing_class=start.processor,
        encoder=model.encoder,
        window=data.window,
        stride=data.stride,
        views=Views(tuple(data.test_scales), data.test_flip),
    )


def fit(
    trainer: DeFTTrainer,
    data: DataSection,
    domains: Domains,
    origin: Origin,
    keep_images: bool = False,
    resume_anyway: bool = False,
) -> RunFacts:
    """Train to the end, from the last good checkpoint if there is one, and score every domain.

    Args:
        trainer (`DeFTTrainer`):
            Trainer returned by `make_trainer`, for the same data.
        data (`DataSection`):
            Sizes.
        domains (`Domains`):
            The data, loaded.
        origin (`Origin`):
            What the run was started with, for its record.
        keep_images (`bool`, *optional*, defaults to `False`):
            Leave each image's confusion matrix in `trainer.evaluator.image_counts`.
        resume_anyway (`bool`, *optional*, defaults to `False`):
            Resume from a checkpoint of other settings, see `DeFTTrainer.check_resumed`.
    """
    start = time.perf_counter()
    checkpoint = trainer.last_good_checkpoint()
    trainer.train(resume_from_checkpoint=checkpoint, resume_anyway=resume_anyway)
    seconds = time.perf_counter() - start
    assert isinstance(trainer.processing_class, BaseImageProcessor)
    trainer.eval_dataset = evaluation_sets(data, domains.evaluated, trainer.processing_class)
    trainer.choose_weights([domain.name for domain in domains.validation])
    trainer.evaluator.image_counts = {} if keep_images else None
    trainer.evaluate()
    facts = collect_facts(trainer, domains, origin, seconds, resumed=checkpoint is not None)
    for warning in warnings({facts.method: facts}, domains):
        say(f"warning: {warning}")
    return facts
