"""Trains a tiny model on all ranks, once in each folder; the last rank gets SIGTERM at a step; rank 0 writes."""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from tests.trainer.test_trainer import Drawn, trainer

torch.set_num_threads(1)


class SignalAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(step: int, *folders: str) -> None:
    for folder in folders:
        run = trainer(Path(folder), train=Drawn(12), callbacks=[SignalAt(step)], per_device_train_batch_size=1)
        run.train(resume_from_checkpoint=run.last_good_checkpoint())
        if run.is_world_process_zero():
            save_file(dict(run.pathways.usual.state_dict()), Path(folder, "usual.safetensors"))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
