"""Numbers, words and packages that Trainer does not check: one message each, before any file is read."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.trainer.checks import check_names
from deft_hf.trainer.limits import LIMITS, check_optimizer
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils.errors import UserError, batches_explained
from tests import tiny
from tests.trainer.test_trainer import arguments, trainer


@pytest.mark.parametrize(
    "name, values",
    [
        ("seed", (-1, 2**32, 1.5, "3", True)),
        ("data_seed", (-1, 2**32)),
        ("per_device_train_batch_size", (0, -1, 2.5, 10**400)),
        ("per_device_eval_batch_size", (0,)),
        ("gradient_accumulation_steps", (0, -1)),
        ("max_steps", (0, -2, 1.5, 10**5000)),
        ("num_train_epochs", (0, -1.0, math.nan, math.inf)),
        ("learning_rate", (0, -1e-4, math.nan, math.inf, "1e-4")),
        ("weight_decay", (-0.1,)),
        ("encoder_weight_decay", (-0.1,)),
        ("adam_beta1", (2, 1, -0.1, math.nan)),
        ("adam_beta2", (2, 1)),
        ("adam_epsilon", (-1e-8,)),
        ("max_grad_norm", (-1,)),
        ("warmup_steps", (-1, 1.5)),
        ("logging_steps", (0, -1, 2.5)),
        ("eval_steps", (0, -1)),
        ("save_steps", (0, -1, 10**400)),
        ("save_total_limit", (0, -1)),
        ("eval_delay", (-1,)),
        ("dataloader_num_workers", (-1, 100_000)),
        ("dataloader_prefetch_factor", (0,)),
        ("ddp_timeout", (0,)),
    ],
)
def test_numbers_out_of_range_are_refused_by_key(tmp_path, name, values):
    for value in values:
        with pytest.raises(UserError, match=rf"(?m)^{name}: found .*, expected ") as error:
            arguments(tmp_path, **{name: value})
        assert len(str(error.value)) < 300


def test_every_mistake_is_named_and_every_default_holds(tmp_path):
    with pytest.raises(UserError, match=r"seed: found -1.*\nadam_beta1: found 2"):
        arguments(tmp_path, seed=-1, adam_beta1=2)
    args = DeFTTrainingArguments(str(tmp_path))
    assert all(hasattr(args, name) for name in LIMITS)
    arguments(
        tmp_path, learning_rate=np.float64(1e-3), seed=np.int64(3), warmup_steps=0.1, save_steps=0.5, max_steps=-1
    )


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"report_to": ["nope"]}, "report_to: found 'nope', expected none or one of"),
        ({"accelerator_config": {"nope": 1}}, "TrainingArguments: .*nope"),
        ({"fsdp": "full_shard"}, "fsdp: found in a single process; start it with accelerate launch"),
        ({"torch_compile_backend": "nope"}, "torch_compile_backend: found 'nope', expected one of .*inductor"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha is noise on the embeddings of words"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length, and images have none: leave it out"),
        ({"debug": "underflow_overflow"}, "underflow_overflow, which does not know the two components of a step"),
        ({"deepspeed": "nope.json"}, "TrainingArguments: "),
        ({"parallelism_config": {}}, "parallelism_config: found no ParallelismConfig"),
    ],
)
def test_words_that_trainer_stumbles_over_later(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **overrides)


def test_packages_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.is_wandb_available", lambda: False)
    with pytest.raises(UserError, match="report_to: found wandb, which is not installed.*pip install wandb"):
        arguments(tmp_path, report_to="wandb")
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="optim: found adamw_bnb_8bit, whose package is not installed"):
        DeFTTrainer(tiny.build("segformer"), arguments(tmp_path, optim="adamw_bnb_8bit"))
    for optim_args in ("a", "momentum=x"):
        with pytest.raises(UserError, match="optim: found sgd with optim_args .*KEY=VALUE"):
            check_optimizer(arguments(tmp_path, optim="sgd", optim_args=optim_args))
    check_optimizer(arguments(tmp_path, optim="sgd", optim_args="momentum=0.9"))


def test_a_compiler_that_is_missing(tmp_path, monkeypatch):
    def compiled(function, **settings):
        def run(*args):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

        return run if settings == {"backend": "inductor", "mode": None} else function

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(UserError, match=r"^torch_compile: found true, but .*\(.*No working C\+\+ .* found\); install"):
        DeFTTrainer(tiny.build("segformer"), arguments(tmp_path, torch_compile=True))
    DeFTTrainer(tiny.build("segformer"), arguments(tmp_path, torch_compile=True, torch_compile_backend="eager"))
    DeFTTrainer(tiny.build("segformer"), arguments(tmp_path))


def test_models_that_are_none_yet(tmp_path):
    with pytest.raises(UserError, match="model: found a type, expected a model that is loaded"):
        DeFTTrainer(nn.Linear, arguments(tmp_path))


@pytest.mark.parametrize("names", [["clear", "clear_usual"], ["b", "a_usual", "a"], [1, "1"]])
def test_names_whose_metrics_would_have_one_key_are_refused(names):
    with pytest.raises(UserError, match="eval_dataset: the metrics of .* have the keys of another data set's"):
        check_names(names)
    check_names(["clear", "usual", "clear_usually", "usual_clear"])


def test_a_stream_without_an_item_is_one_message(tmp_path):
    class Nothing(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(UserError, match="train_dataset: the stream ended without an item"):
        trainer(tmp_path, train=Nothing(), max_steps=2, decoder_warmup_steps=1).train()


def test_a_step_that_does_not_fit_into_the_device_is_one_message():
    with pytest.raises(
        UserError, match=r"too small for a step \(CUDA out of memory.*halve per_device_train_batch_size"
    ):
        with batches_explained():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
