"""The steps of a run, each from a recipe: its data, its models, their training."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.collate import collate
from deft_hf.data.corruptions import corrupted
from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import load_layout
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.data.unreadable import Reader
from deft_hf.methods.core.batchnorm import batchnorm_modules, reestimate
from deft_hf.models.families import objective_of, resolve_family
from deft_hf.publish.export import export_generalized, verify_export
from deft_hf.recipe import Recipe
from deft_hf.recipe.data import Entry, FolderEntry, HubEntry
from deft_hf.runs.results import CONFUSIONS, DISTANCES, HISTORY, METRICS, Domains, collect_facts, method_folder
from deft_hf.runs.start import open_start
from deft_hf.scoring.report import save_json
from deft_hf.trainer.arguments import DeFTTrainingArguments, own_defaults
from deft_hf.trainer.evaluation import own_randomness
from deft_hf.trainer.optimizer import schedule_shape
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError
from deft_hf.utils.integrity import writing


def check_arguments(recipe: Recipe) -> None:
    """Build the arguments of every method, so that what they refuse comes out before any file is read.

    Raises:
        UserError: arguments that exclude each other, or that no schedule can be made of.
    """
    for method in [*recipe.method.baselines, recipe.method.name]:
        schedule_shape(method_arguments(recipe, method), steps=100)


def method_arguments(recipe: Recipe, method: str) -> DeFTTrainingArguments:
    """The Trainer's arguments for one of the recipe's methods; of what makes the recipe's own method another one, such
    as its average or a regulariser, a baseline has the defaults.
    """
    changes = {"method": method, **own_defaults()} if method != recipe.method.name else _pushing(recipe)
    return recipe.training_arguments(output_dir=str(method_folder(recipe, method)), **changes)


def _pushing(recipe: Recipe) -> dict[str, Any]:
    """Trainer's arguments for what is pushed while training; the finished run is pushed after it."""
    publish = recipe.publish
    if not (publish.push_to_hub and publish.every_save):
        return {}
    return {
        "push_to_hub": True,
        "hub_model_id": publish.repo_id,
        "hub_private_repo": publish.private,
        "hub_revision": publish.revision,
    }


# ---- data


def load_domains(recipe: Recipe) -> Domains:
    """The domains of a recipe, each decoded once (`data.check`) with a summary of what it holds.

    Raises:
        UserError: all that is wrong with the files of all domains.
    """
    data = recipe.data
    sections = [
        [_domain(entry, data.root, entry.label_space(data)) for entry in entries]
        for entries in (data.source, data.validation, data.unseen)
    ]
    domains = Domains(*sections)
    if data.check and PartialState().is_local_main_process:
        reports = [domain.check(progress=True) for section in sections for domain in section]
        problems = []
        for report in reports:
            print(report)
            try:
                report.raise_if_bad(skip_unreadable=data.unreadable == "skip")
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
    return domains


def _domain(entry: Entry, root: str | None, labels: LabelSpace) -> Domain:
    if entry.corruption is not None:
        clean = _domain(entry.model_copy(update={"corruption": None}), root, labels)
        return corrupted(clean, entry.corruption, entry.severity, name=entry.name)
    if isinstance(entry, FolderEntry) and entry.layout is not None:
        return load_layout(entry.layout, entry.resolved_folder(root), labels, entry.split, entry.name)
    if isinstance(entry, FolderEntry):
        options = entry.model_dump(include={"name", "images", "masks", "split", "image_suffix", "mask_suffix"})
        return Domain.from_folder(entry.resolved_folder(root), labels, **options)
    if isinstance(entry, HubEntry):
        options = entry.model_dump(include={"split", "name", "image_column", "mask_column", "config", "revision"})
        return Domain.from_hub(entry.hub, labels, **options)
    return Domain.from_streets(
        entry.streets, labels=labels, **entry.model_dump(include={"count", "seed", "size", "name"})
    )


# ---- training


def train_method(recipe: Recipe, method: str, domains: Domains, resume_anyway: bool = False) -> None:
    """Train one method, score it on every domain, export it; a method that is done is left alone, a broken one
    resumed; with `resume_anyway`, from a checkpoint of other settings too.
    """
    folder = method_folder(recipe, method)
    if (folder / METRICS).is_file():
        say(f"{method}: done before, in {folder}")
        return
    say(f"\n{method}: training in {folder}")
    trainer = make_trainer(recipe, method, domains)
    facts = fit(trainer, recipe, domains, resume_anyway=resume_anyway)
    model = trainer.generalized_model  # with every rank: it may be gathered
    initial = trainer.pathways.whole_initial(keep=trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        with writing(folder, lambda: "The trained model is in the last checkpoint: make room and start again."):
            export_generalized(model, folder, trainer.processing_class)
            example, *_ = Reader(domains.evaluated, recipe.data.unreadable).load(0, 0)
            verify_export(folder, model, example, size=recipe.data.window)
            save_json(folder / HISTORY, trainer.state.log_history)
            confusions = {domain.name: trainer.confusions[f"eval_{domain.name}"] for domain in domains.evaluated}
            save_json(folder / CONFUSIONS, confusions)
            save_json(folder / DISTANCES, layer_distances(recipe, domains, model, initial))
            save_json(folder / METRICS, facts)
    trainer.accelerator.wait_for_everyone()
    # Trainer and callbacks refer to each other: without a collection the next method would share the memory.
    del trainer, model
    gc.collect()
    torch.cuda.empty_cache()


def make_trainer(recipe: Recipe, method: str, domains: Domains) -> DeFTTrainer:
    """The trainer of one of the recipe's methods, with a freshly loaded model.

    Raises:
        UserError: what `open_start` and `DeFTTrainer` refuse.
    """
    args, data = method_arguments(recipe, method), recipe.data
    model, processor, _ = open_start(recipe.model, data, domains.labels, args.seed)
    return DeFTTrainer(
        model=model,
        args=args,
        train_dataset=_training_set(recipe, domains, processor, args.data_seed),
        eval_dataset=_evaluation_sets(recipe, domains, processor, data.images_while_training),
        processing_class=processor,
        encoder=recipe.model.encoder,
        window=data.window,
        stride=data.stride,
    )


def _training_set(recipe: Recipe, domains: Domains, processor: BaseImageProcessor, seed: int | None) -> TrainingSet:
    data = recipe.data
    look = {"mean": processor.image_mean, "std": processor.image_std}
    transform = TrainTransform(
        crop=data.crop_size,
        scale=data.scale,
        flip=data.flip,
        jitter=data.color_jitter,
        blur=data.blur,
        max_class_share=data.max_class_share,
        recolor=data.recolor,
        resize=data.image_size,
        **look,
    )
    weights = None if data.source[0].weight is None else [entry.weight for entry in data.source]
    return TrainingSet(domains.source, transform, weights=weights, seed=seed, unreadable=data.unreadable)


def reestimate_batchnorm(model: PreTrainedModel, recipe: Recipe, processor: BaseImageProcessor) -> int:
    """Take the BatchNorm statistics of a model anew, in place, on source images of the recipe's first epoch, as
    `batchnorm: reestimate` does while training.

    Returns:
        How many batches they were taken on; 0: the model has no BatchNorm.

    Raises:
        UserError: the data cannot be read.
    """
    if not batchnorm_modules(model):
        return 0
    args = recipe.training_arguments()
    alone = recipe.data.model_copy(update={"validation": [], "unseen": [], "check": False})
    domains = load_domains(recipe.model_copy(update={"data": alone}))
    images = _training_set(recipe, domains, processor, args.data_seed)
    loader = DataLoader(
        images,
        batch_size=args.train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(args.seed),
        collate_fn=collate,
        drop_last=len(images) % args.train_batch_size == 1 < len(images),  # BatchNorm has no variance of one
    )
    with own_randomness(args.seed, model.device):
        batches = (batch["pixel_values"] for batch in islice(loader, args.batchnorm_batches))
        reestimate(model, batches, objective_of(model.config.model_type).forward)
    return min(len(loader), args.batchnorm_batches)


def _evaluation_sets(
    recipe: Recipe, domains: Domains, processor: BaseImageProcessor, images: int | None
) -> dict[str, EvaluationSet]:
    prepared = EvalTransform(size=recipe.data.image_size, mean=processor.image_mean, std=processor.image_std)
    return {
        domain.name: EvaluationSet(_thinned(domain, images), prepared, recipe.data.unreadable)
        for domain in domains.evaluated
    }


def _thinned(domain: Domain, images: int | None) -> Domain:
    """`images` of the domain, evenly spaced: neighbouring frames of a drive are alike."""
    if images is None or images >= len(domain):
        return domain
    return domain.select([index * len(domain) // images for index in range(images)])


def fit(
    trainer: DeFTTrainer, recipe: Recipe, domains: Domains, keep_images: bool = False, resume_anyway: bool = False
) -> dict[str, Any]:
    """Train to the end, from the last good checkpoint if there is one, and score every domain; returns the facts.

    Args:
        trainer: from `make_trainer`, of the same recipe and domains.
        keep_images: leave each image's confusion matrix in `trainer.image_counts`.
        resume_anyway: go on from a checkpoint of other settings, see `DeFTTrainer.check_resumed`.
    """
    start = time.perf_counter()
    checkpoint = trainer.last_good_checkpoint()
    trainer.train(resume_from_checkpoint=checkpoint, resume_anyway=resume_anyway)
    seconds = time.perf_counter() - start
    trainer.eval_dataset = _evaluation_sets(recipe, domains, trainer.processing_class, images=None)
    alphas = None
    if trainer.args.component == "interpolated":
        alphas = trainer.interpolate([domain.name for domain in domains.validation])
    trainer.image_counts = {} if keep_images else None
    trainer.evaluate()
    return collect_facts(trainer, recipe, domains, seconds, resumed=checkpoint is not None, alphas=alphas)


@torch.no_grad()
def layer_distances(
    recipe: Recipe, domains: Domains, model: nn.Module, initial: Mapping[str, Tensor]
) -> dict[str, float]:
    """By layer, ||θ - θ_init|| / ||θ_init|| of its weight: from the pretrained encoder and from `initial`, where the
    last stage started, of the decoder.
    """
    start, *_ = open_start(recipe.model, recipe.data, domains.labels, recipe.training.seed, announce=False)
    family = resolve_family(start, recipe.model.encoder)
    before = dict(start.named_parameters())
    before |= {name: value for name, value in initial.items() if name in before}
    distances = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name in before and family.is_trained(name):
            there = before[name].to(parameter.device)
            distances[name.removesuffix(".weight")] = float((parameter - there).norm() / there.norm())
    return distances
