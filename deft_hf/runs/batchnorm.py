"""BatchNorm statistics of a finished model, re-estimated."""

from __future__ import annotations

from itertools import islice

import torch
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from deft_hf.data.collate import collate
from deft_hf.methods.core.batchnorm import batchnorm_modules, reestimate
from deft_hf.models.families import objective_of
from deft_hf.recipe.data import DataSection
from deft_hf.runs.data import load_domains, training_set
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.randomness import own_randomness


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
        batches = (batch["pixel_values"] for batch in islice(loader, args.batchnorm_batches))
        reestimate(model, batches, objective_of(model.config.model_type).forward)
    return min(len(loader), args.batchnorm_batches)
