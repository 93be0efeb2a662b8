"""The end of a run: its model, exported and verified, and what later readers need of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.roles import Domains
from deft_hf.data.unreadable import Reader
from deft_hf.models.families import resolve_family
from deft_hf.publish.export import export_generalized, verify_export
from deft_hf.publish.facts import RunFacts
from deft_hf.recipe import ModelSection
from deft_hf.recipe.data import DataSection
from deft_hf.runs.start import open_start
from deft_hf.scoring.report import save_json
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.files import CONFUSIONS, COUNTS, DISTANCES, HISTORY, METRICS
from deft_hf.utils.integrity import writing


def finish(
    trainer: DeFTTrainer,
    facts: RunFacts,
    model: ModelSection,
    data: DataSection,
    domains: Domains,
    compared: bool = False,
) -> None:
    """Export the model of a run that is scored, verify it, and write what the run leaves in `results/`.

    `metrics.json` comes last: a run that has it is done. Every rank calls it.

    Args:
        trainer (`DeFTTrainer`):
            Trainer of the run.
        facts (`RunFacts`):
            Facts returned by `fit`.
        model (`ModelSection`):
            What the run started from.
        data (`DataSection`):
            Sizes.
        domains (`Domains`):
            The data, loaded.
        compared (`bool`, *optional*, defaults to `False`):
            Keep what a comparison draws on, each image's confusion matrix and the distances of both components,
            instead of what the figures of a single run are drawn from. The model is not verified in a fresh process
            then, which takes longer than a short run.
    """
    folder, exported = trainer.args.folder, trainer.generalized_model  # with every rank: it may be gathered
    processor = trainer.processing_class
    initial = trainer.pathways.whole_initial(keep=trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        before = starting_weights(model, data, domains, facts.seed, initial)
        with writing(folder, lambda: "The trained model is in the last checkpoint: make room and start again."):
            assert isinstance(exported, PreTrainedModel) and isinstance(processor, BaseImageProcessor)
            export_generalized(exported, folder, processor)
            save_json(folder / HISTORY, trainer.state.log_history)
            if compared:
                images = trainer.evaluator.image_counts or {}
                counts: dict[str, Any] = {key: found.numpy() for key, found in images.items()}
                np.savez_compressed(folder / COUNTS, **counts)
                components = {"exported": exported, "usual": trainer.pathways.usual}
                distances = {name: layer_distances(component, before) for name, component in components.items()}
                facts = replace(facts, layer_distances=distances)
            else:
                example, *_ = Reader(domains.evaluated, data.unreadable).load(0, 0)
                verify_export(folder, exported, example, size=data.window)
                confusions = {
                    domain.name: trainer.evaluator.confusions[f"eval_{domain.name}"] for domain in domains.evaluated
                }
                save_json(folder / CONFUSIONS, confusions)
                save_json(folder / DISTANCES, layer_distances(exported, before))
            save_json(folder / METRICS, facts.to_dict())
    trainer.accelerator.wait_for_everyone()


def starting_weights(
    model: ModelSection, data: DataSection, domains: Domains, seed: int, initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights that distances of trained parameters are measured from.

    They are those of the pretrained encoder, and of the rest as the last stage found it.

    Args:
        model (`ModelSection`):
            What the run started from; it is opened again.
        data (`DataSection`):
            Sizes.
        domains (`Domains`):
            Data of the run, for the classes.
        seed (`int`):
            Seed of the run.
        initial (`Mapping[str, Tensor]`):
            The weights that the last stage started from, of what it trained.
    """
    start = open_start(model, data, domains.labels, seed, announce=False).model
    family = resolve_family(start, model.encoder)
    before: dict[str, Tensor] = dict(start.named_parameters())
    before |= {name: value for name, value in initial.items() if name in before}
    return {name: value for name, value in before.items() if family.is_trained(name)}


@torch.no_grad()
def layer_distances(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, float]:
    """By layer, ||θ - θ_before|| / ||θ_before|| of its weight.

    Args:
        model (`nn.Module`):
            A trained model.
        before (`Mapping[str, Tensor]`):
            Weights returned by `starting_weights`.
    """
    distances = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name in before:
            there = before[name].to(parameter.device)
            distances[name.removesuffix(".weight")] = float((parameter - there).norm() / there.norm())
    return distances
