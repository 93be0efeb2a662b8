"""BatchNorm statistics of a finished model, re-estimated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.collate import collate
from deft_hf.data.places import Place
from deft_hf.methods.core.batchnorm import batchnorm_modules, reestimate
from deft_hf.models.families import objective_of
from deft_hf.recipe.data import DataSection
from deft_hf.runs.data import load_domains, training_set
from deft_hf.runs.segmenter import Segmenter
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.randomness import own_randomness

_BATCH = 8


def reestimate_batchnorm(
    model: PreTrainedModel, processor: BaseImageProcessor, data: DataSection, args: DeFTTrainingArguments
) -> int:
    """Re-estimate the BatchNorm statistics of a model in place, as `batchnorm: reestimate` does during training.

    The batches are source images of the first epoch of training.

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`BaseImageProcessor`):
            Image processor, for mean and deviation.
        data (`DataSection`):
            Data section, whose source domains are read.
        args (`DeFTTrainingArguments`):
            Batch size, seeds, and how many batches (`batchnorm_batches`).

    Returns:
        `int`: how many batches they were taken on; 0: the model has no BatchNorm.

    Raises:
        UserError: If the data cannot be read.
    """
    if not batchnorm_modules(model):
        return 0
    alone = data.model_copy(update={"validation": [], "unseen": [], "check": False})
    assert args.data_seed is not None  # the arguments fill it in
    images = training_set(data, load_domains(alone).source, processor, args.data_seed)
    loader = DataLoader(
        images,
        batch_size=args.train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(args.seed),
        collate_fn=collate,
        # BatchNorm has no variance of one image.
        drop_last=len(images) > 1 and len(images) % args.train_batch_size == 1,
    )
    with own_randomness(args.seed, model.device):
        batches = (batch["pixel_values"].to(model.device) for batch in islice(loader, args.batchnorm_batches))
        reestimate(model, batches, objective_of(model.config.model_type).forward)
    return min(len(loader), args.batchnorm_batches)


def reestimate_on_place(segmenter: Segmenter, place: Place, most: int = 256) -> float:
    """Re-estimate the BatchNorm statistics of a model in place on the images of a place without labels.

    Statistics of the target's own images instead of the source's are what adaptive BatchNorm takes (Li et al., 2016,
    https://arxiv.org/abs/1603.04779; Schneider et al., NeurIPS 2020, https://arxiv.org/abs/2006.16971, for corrupted
    images). They may help or hurt.

    Args:
        segmenter (`Segmenter`):
            The model; images reach it as they do in prediction.
        place (`Place`):
            The images.
        most (`int`, *optional*, defaults to `256`):
            How many of them to take at most, evenly spaced.

    Returns:
        `float`: the share of the pixels whose class changed, over the images taken; NaN for a model without BatchNorm.

    Raises:
        UserError: An image cannot be read, or the model takes none of its size.
    """
    if not batchnorm_modules(segmenter.model):
        return math.nan
    chosen = range(len(place)) if len(place) <= most else [index * len(place) // most for index in range(most)]
    before = [segmenter.classes(place.load(index)) for index in chosen]
    forward = objective_of(segmenter.model.config.model_type).forward
    reestimate(segmenter.model, _batches(segmenter, (place.load(index) for index in chosen)), forward)
    changed = sum(
        int((segmenter.classes(place.load(index)) != ids).sum()) for index, ids in zip(chosen, before, strict=True)
    )
    return changed / sum(ids.size for ids in before)


def _batches(segmenter: Segmenter, images: Iterable[Image.Image]) -> Iterator[Tensor]:
    """Images of one size together, as far as they follow one another: one alone has less variance than many."""
    waiting: list[Tensor] = []
    for image in images:
        pixels = segmenter.pixels(image)
        if waiting and (waiting[0].shape != pixels.shape or len(waiting) == _BATCH):
            yield torch.cat(waiting)
            waiting = []
        waiting.append(pixels)
    yield torch.cat(waiting)
