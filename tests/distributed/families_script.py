"""Trains a tiny model of every family in as many processes as there are; rank 0 writes how far apart the ranks end."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.utils import gather
from transformers.utils import logging

from tests import tiny
from tests.trainer.test_trainer import Drawn, trainer

torch.set_num_threads(1)


def trained(model_type: str, folder: str) -> dict[str, float]:
    """After both stages: the largest difference between ranks in either component, and how far training went."""
    run = trainer(
        Path(folder),
        model=tiny.build(model_type),
        train=Drawn(12),
        evaluate=Drawn(2, seed=1),
        max_steps=2,
        decoder_warmup_steps=1,
        distance_weight=0.1,
        optim="sgd",
    )
    run.train()
    run.evaluate()  # statistics of BatchNorm are taken anew, once for all ranks
    usual, generalized = run.pathways.usual, run.pathways.generalized
    start = dict(tiny.build(model_type).named_parameters())
    return {
        "processes": run.args.world_size,
        "usual": apart(usual.parameters()),
        "generalized": apart([*generalized.parameters(), *generalized.buffers()]),
        "trained": max(float((value.detach() - start[n]).abs().max()) for n, value in generalized.named_parameters()),
    }


def apart(tensors) -> float:
    """The largest difference between what the ranks hold."""
    differences = [0.0]
    for tensor in tensors:
        held = gather(tensor.detach().double().reshape(1, -1))
        differences.append(float((held.amax(0) - held.amin(0)).max()))
    return max(differences)


def main(path: str) -> None:
    logging.set_verbosity_error()
    found = {}
    for model_type in sorted(tiny.BUILDERS):
        with tempfile.TemporaryDirectory() as folder:
            found[model_type] = trained(model_type, folder)
    Path(path).write_text(json.dumps(found))  # the same from every rank


if __name__ == "__main__":
    main(sys.argv[1])
