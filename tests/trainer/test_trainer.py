import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModelForSemanticSegmentation, EarlyStoppingCallback, TrainerCallback, TrainingArguments

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.sampling import EvaluationSet
from deft_hf.data.transforms import EvalTransform
from deft_hf.methods.core.batchnorm import batchnorm_modules
from deft_hf.trainer.trainer import DeFTTrainer, DeFTTrainingArguments
from deft_hf.utils.errors import TrainingDiverged, UserError
from tests import tiny


class Drawn(Dataset):
    """Random images; image i has its own share of ignored pixels, so that batches differ in valid pixels."""

    def __init__(self, count, seed=0, side=64):
        self.items = [tiny.batch(1, side, ignored=0.9 * i / count, seed=1000 * seed + i) for i in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return {name: value[0] for name, value in self.items[index].items()}


class Stream(IterableDataset):
    """The same without a length; images differ in size."""

    def __init__(self, count, seed=0, sides=(64, 48)):
        self.items = [Drawn(count, seed, sides[index % 2])[index] for index in range(count)]

    def __iter__(self):
        return iter(self.items)


def valid_pixels(items):
    return sum(int((item["labels"] != 255).sum()) for item in items)


def arguments(folder, **overrides):
    values = {
        "max_steps": 6,
        "decoder_warmup_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "batchnorm_batches": 2,
    }
    return DeFTTrainingArguments(output_dir=str(folder), **{**values, **overrides})


def trainer(folder, model=None, train=None, evaluate=None, callbacks=None, **overrides):
    return DeFTTrainer(
        model=tiny.build("segformer") if model is None else model,
        args=arguments(folder, **overrides),
        train_dataset=Drawn(8) if train is None else train,
        eval_dataset={"near": Drawn(3, seed=1), "far": Drawn(2, seed=2)} if evaluate is None else evaluate,
        callbacks=callbacks,
    )


def history(run, key):
    return [entry[key] for entry in run.state.log_history if key in entry]


def test_one_train_runs_both_stages(tmp_path):
    run = trainer(tmp_path)
    assert run.train().global_step == 10
    assert history(run, "stage") == [1] * 4 + [2] * 6
    assert len(history(run, "encoder_loss")) == 6 and len(history(run, "decoder_loss")) == 10
    decay = 0.9999 ** (80_000 / 6)
    # At the end of stage 1 the snapshot is new; after that one update a step.
    assert history(run, "encoder_initial_share") == pytest.approx([1.0] * 4 + [decay**t for t in range(1, 7)])
    assert history(run, "encoder_distance")[:4] == [0] * 4
    distances = history(run, "usual_encoder_distance")[4:]
    assert distances == sorted(distances) and len(set(distances)) == 6
    assert type(run.generalized_model) is type(run.pathways.usual)


@pytest.mark.parametrize(
    "method, steps, stages",
    [("joint", 6, ["joint"] * 6), ("frozen", 6, ["decoder"] * 6), ("lp_ft", 10, ["decoder"] * 4 + ["joint"] * 6)],
)
@pytest.mark.parametrize("average", [None, "none", "ema"])
def test_baselines_run_on_the_same_loop(tmp_path, method, steps, stages, average):
    if method == "frozen" and average == "ema":
        with pytest.raises(UserError, match="frozen has no average"):
            arguments(tmp_path, method=method, average=average)
        return
    run = trainer(tmp_path, method=method, average=average)
    start = {n: p.detach().clone() for n, p in run.pathways.usual.named_parameters()}
    assert run.train().global_step == steps
    figures = [entry for entry in run.state.log_history if "stage" in entry]
    assert [next(n for n in ("decoder", "joint") if f"{n}_loss" in entry) for entry in figures] == stages
    encoder_moved = any(
        not torch.equal(p, start[n]) for n, p in run.pathways.usual.named_parameters() if n.startswith("segformer.")
    )
    assert encoder_moved == (method != "frozen")
    assert run.pathways.averages == (average == "ema")


def test_schedule_restarts_at_the_second_stage(tmp_path):
    run = trainer(
        tmp_path,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 0.9, "lr_end": 0.0},
        encoder_learning_rate=1e-3,
        decoder_learning_rate=4e-3,
        decoder_warmup_learning_rate=2e-3,
    )
    run.train()
    poly = [(1 - t / 6) ** 0.9 for t in range(6)]
    assert history(run, "encoder_learning_rate") == pytest.approx([0.0] * 4 + [1e-3 * f for f in poly])
    assert history(run, "decoder_learning_rate") == pytest.approx(
        [2e-3 * f for f in poly[:4]] + [4e-3 * f for f in poly]
    )


def test_a_schedule_without_a_closed_form_needs_a_single_stage(tmp_path):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    settings["metric_for_best_model"] = "near_mean_iou"
    with pytest.raises(UserError, match="^lr_scheduler_type reduce_lr_on_plateau can neither restart at"):
        trainer(tmp_path, **settings).train()
    trainer(tmp_path, method="joint", **settings).train()


def test_parameter_groups(tmp_path):
    run = trainer(tmp_path, encoder_weight_decay=0.1, decoder_weight_decay=0.2)
    groups = run.create_optimizer().param_groups
    names = {id(p): n for n, p in run.pathways.usual.named_parameters()}
    seen = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    for group in groups:
        own = [names[id(p)] for p in group["params"]]
        assert {n.startswith("segformer.") for n in own} == {group["part"] == "encoder"}
        if group["weight_decay"] == 0:
            assert all("norm" in n or n.endswith("bias") for n in own)
        else:
            assert group["weight_decay"] == {"encoder": 0.1, "decoder": 0.2}[group["part"]]
            assert not any(n.endswith("bias") or "norm" in n for n in own)
    everything = trainer(tmp_path, weight_decay=0.3, decay_norm_and_bias=True).create_optimizer().param_groups
    assert {group["weight_decay"] for group in everything} == {0.3}


def without_batchnorm():
    """SegFormer whose output for an image does not depend on the rest of the batch."""
    model = tiny.build("segformer", **tiny.WITHOUT_DROPOUT["segformer"])
    model.decode_head.batch_norm = nn.GroupNorm(1, 16)
    return model


@pytest.mark.parametrize("method", ["deft", "split", "joint"])
def test_accumulation_equals_one_large_batch(tmp_path, method):
    runs = {}
    split = {"pathways": "split"} if method == "split" else {}
    for size, accumulation in ((8, 1), (4, 2) if split else (2, 4)):
        run = trainer(
            tmp_path / str(size),
            model=without_batchnorm(),
            train=Drawn(16),
            method="deft" if split else method,
            **split,
            max_steps=5,
            decoder_warmup_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.01,
            distance_weight=0.1,
            optim="sgd",
        )
        run.train()
        runs[accumulation > 1] = run
    for key in ("loss", "grad_norm"):
        assert history(runs[True], key) == pytest.approx(history(runs[False], key), rel=1e-5)
    for model in ("usual", "generalized"):
        expected = getattr(runs[False].pathways, model).state_dict()
        for name, value in getattr(runs[True].pathways, model).state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_batch_that_is_too_small_to_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="pathways is split: found 2 images in a batch, expected at least 4"):
        trainer(tmp_path, pathways="split").train()
    settings = {"pathways": "split", "save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path, per_device_train_batch_size=4, train=Drawn(7), **settings).train()  # an epoch ends with three
    smaller = trainer(tmp_path, gradient_accumulation_steps=2, train=Drawn(7), **settings)
    with pytest.raises(UserError, match="pathways is split: found 2 images in a batch"):
        smaller.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    with pytest.raises(UserError, match="pathways is 'half': expected one of both, split"):
        arguments(tmp_path, pathways="half")
    with pytest.raises(UserError, match="pathways is 'split': a setting of method deft alone; leave it out"):
        arguments(tmp_path, method="joint", pathways="split")


def test_logged_loss_is_the_mean_over_valid_pixels(tmp_path):
    model = tiny.build("segformer", **tiny.WITHOUT_DROPOUT["segformer"])
    data = Drawn(2)
    run = trainer(tmp_path, model=model, train=data, method="joint", max_steps=1)
    batch = {name: torch.stack([data[i][name] for i in range(2)]) for name in data[0]}
    expected = model.train()(**batch).loss.item()
    run.train()
    assert history(run, "loss") == history(run, "joint_loss") == pytest.approx([expected], rel=1e-5)


def test_a_batch_without_valid_pixels_breaks_nothing(tmp_path):
    class Ignored(Drawn):
        ignored = True

        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "labels": torch.full_like(item["labels"], 255)} if self.ignored else item

    images = Ignored(4)
    with pytest.raises(UserError, match="train_dataset: all of its 4 items have no pixel of a class"):
        trainer(tmp_path, train=images, optim="sgd")
    images.ignored = False
    run = trainer(tmp_path, train=images, optim="sgd")
    images.ignored = True  # as crops may be, though whole images are not
    start = {n: p.detach().clone() for n, p in run.pathways.usual.named_parameters()}
    run.train()
    assert history(run, "loss") == [0.0] * 10
    assert all(torch.equal(p, start[n]) for n, p in run.pathways.usual.named_parameters())


class BreaksAt(TrainerCallback):
    def __init__(self, step, parameter):
        self.step, self.parameter = step, parameter

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                self.parameter.fill_(math.nan)


@pytest.mark.parametrize("logging_nan_inf_filter", [False, True])
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, logging_nan_inf_filter):
    model = tiny.build("segformer")
    run = trainer(
        tmp_path,
        model=model,
        callbacks=[BreaksAt(7, model.decode_head.classifier.weight)],
        save_strategy="steps",
        save_steps=3,
        save_total_limit=1,
        logging_steps=10,
        logging_nan_inf_filter=logging_nan_inf_filter,
    )
    with pytest.raises(TrainingDiverged, match=r"decoder_loss became nan between steps 0 and 9.*checkpoint-6"):
        run.train()
    (kept,) = tmp_path.glob("checkpoint-*")
    assert kept.name == "checkpoint-6"
    reloaded = AutoModelForSemanticSegmentation.from_pretrained(kept)
    assert all(torch.isfinite(p).all() for p in reloaded.parameters())


def test_parameters_that_broke_in_the_last_step_are_not_saved(tmp_path):
    model = tiny.build("segformer")
    run = trainer(
        tmp_path,
        model=model,
        callbacks=[BreaksAt(6, model.decode_head.classifier.weight)],
        save_strategy="steps",
        save_steps=3,
        save_total_limit=1,
    )
    with pytest.raises(TrainingDiverged, match="checkpoint-3"):
        run.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def everything(run):
    """All state that a resumed run must have in common with an unbroken one."""
    optimizer = run.optimizer.state_dict()["state"]
    return {
        **{f"usual.{n}": t for n, t in run.pathways.usual.state_dict().items()},
        **{f"generalized.{n}": t for n, t in run.pathways.generalized.state_dict().items()},
        **{f"initial.{n}": t for n, t in run.pathways.initial.items()},
        **{f"optimizer.{i}.{n}": t for i, state in optimizer.items() for n, t in state.items() if torch.is_tensor(t)},
        "updates": run.pathways.updates,
        "rates": torch.tensor(run.lr_scheduler.get_last_lr()),
    }


@pytest.mark.parametrize(
    "model_type, method, average, stop",
    [
        ("segformer", "deft", None, 3),
        ("segformer", "deft", None, 5),
        ("segformer", "deft", None, 10),
        ("mobilenet_v2", "deft", None, 3),
        ("mobilenet_v2", "deft", None, 10),
        ("segformer", "lp_ft", "none", 10),
        ("mobilenet_v2", "joint", "ema", 3),
        ("mobilenet_v2", "split", None, 7),
    ],
)
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, model_type, method, average, stop):
    split = {"pathways": "split", "per_device_train_batch_size": 4} if method == "split" else {}
    settings = {
        **split,
        "method": "deft" if split else method,
        "average": average,
        "max_steps": 10 if method == "joint" else 8,
        "decoder_warmup_steps": 5,
        "save_strategy": "steps",
        "save_steps": stop,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "evaluate_usual": True,
        "lr_scheduler_type": "polynomial",
        "train": Drawn(10),
    }
    unbroken = trainer(tmp_path / "a", model=tiny.build(model_type), **settings)
    unbroken.train()
    resumed = trainer(tmp_path / "b", model=tiny.build(model_type), **settings)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
    expected, found = everything(unbroken), everything(resumed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    def figures(run):
        timing = ("runtime", "per_second", "total_flos", "train_loss")
        return [{k: v for k, v in e.items() if not k.endswith(timing)} for e in run.state.log_history]

    assert figures(resumed) == figures(unbroken)
    (whole,), (both,) = history(unbroken, "train_loss"), history(resumed, "train_loss")
    assert both == pytest.approx(whole, rel=1e-6) == pytest.approx(np.mean(history(unbroken, "loss")), rel=1e-6)


def test_workers_that_live_on_draw_what_new_ones_draw(tmp_path):
    settings = {"method": "joint", "average": "none", "max_steps": 8, "train": Drawn(6), "save_steps": 4}
    settings |= {"save_strategy": "steps"}
    persistent = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    resumed_from = str(tmp_path / "lives" / "checkpoint-4")
    runs = []
    for name, workers, start in (
        ("new", {}, None),
        ("lives", persistent, None),
        ("resumed", persistent, resumed_from),
    ):
        runs.append(trainer(tmp_path / name, **settings, **workers))
        runs[-1].train(resume_from_checkpoint=start)
    expected, *found = map(everything, runs)
    assert [name for name in expected for each in found if not torch.equal(expected[name], each[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder_warmup_steps": 1},
        {"method": "joint", "average": "none"},
        {"method": "joint", "average": "ema", "component": "usual"},
        {"method": "joint", "average": "swa", "model": "mobilenet_v2"},
    ],
)
def test_a_second_train_starts_from_the_exported_model_as_a_new_trainer_does(tmp_path, settings):
    model = tiny.build(settings.pop("model", "segformer"))
    run = trainer(tmp_path / "both", model=model, max_steps=2, **settings)
    run.train()
    exported = copy.deepcopy(run.generalized_model).requires_grad_(True)
    new = trainer(tmp_path / "new", model=exported, max_steps=2, **settings)
    for each in (new, run):
        torch.manual_seed(5)
        each.train()
    expected, found = everything(new), everything(run)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert history(run, "loss") == history(new, "loss")


def test_resume_true_takes_the_last_checkpoint(tmp_path):
    # A step that is saved before it is logged counts as well.
    whole = trainer(tmp_path, save_strategy="steps", save_steps=4, logging_steps=3).train()
    again = trainer(tmp_path, logging_steps=3).train(resume_from_checkpoint=True)
    assert again.global_step == 10 and again.training_loss == again.metrics["train_loss"]
    assert again.training_loss == pytest.approx(whole.training_loss, rel=1e-6)
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "lp_ft"}, "made with method deft, this run has lp_ft"),
        ({"method": "joint", "average": "ema"}, "made with method deft, this run has joint"),
        ({"decoder_warmup_steps": 7}, "made with stages .*'steps': 4.* this run has .*'steps': 7"),
        ({"ema_decay": 0.99}, "made with decays"),
        ({"seed": 7}, "made with seed 42, this run has 7"),
        ({"per_device_train_batch_size": 1}, "made with global_batch 2, this run has 1"),
        ({"model": "mobilenet_v2"}, "checkpoint-5 holds another model or is damaged"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    if "model" in changes:
        changes = {"model": tiny.build(changes["model"])}
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_the_checkpoint_too_many_that_a_kill_leaves_goes_at_resume(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    state = tmp_path / "checkpoint-10" / "deft_state.json"
    assert json.loads(state.read_text())["seed"] == 42
    kept = []
    run = trainer(tmp_path, save_strategy="no", save_total_limit=2, max_steps=6)
    check, run.checkpoints.check_resumed = run.checkpoints.check_resumed, lambda *args: kept.append(len(steps()))

    def steps():
        return sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*"))

    assert check and steps() == [2, 4, 6, 8, 10]
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))  # an earlier one, on purpose
    assert steps() == [2, 4, 6, 8, 10]
    run.train(resume_from_checkpoint=True)
    assert kept == [5, 5] and steps() == [8, 10]


def test_a_batch_may_be_made_up_in_another_way(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    made_up = trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert made_up.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5")).global_step == 10


def test_losses_of_an_interval_with_two_stages_are_means_of_their_own_steps(tmp_path):
    run = trainer(tmp_path, learning_rate=1e-12, decoder_warmup_steps=3, max_steps=3, logging_steps=2)
    run.train()
    (second,) = [entry for entry in run.state.log_history if entry["step"] == 4 and "loss" in entry]
    assert second["encoder_loss"] == pytest.approx(second["decoder_loss"], rel=0.02)


def test_activation_checkpointing_changes_nothing_but_memory(tmp_path):
    weights = []
    for folder, checkpointing in (("plain", False), ("checkpointed", True)):
        model = tiny.build("segformer", **tiny.WITHOUT_DROPOUT["segformer"])
        run = trainer(tmp_path / folder, model=model, activation_checkpointing=checkpointing, optim="sgd")
        run.train()
        weights.append(run.generalized_model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_a_last_batch_of_one_image_is_left_out_of_training_and_of_nothing_else(tmp_path):
    run = trainer(
        tmp_path, model=tiny.build("mobilenet_v2"), train=Drawn(5), evaluate=Drawn(3), per_device_eval_batch_size=2
    )
    run.train()
    metrics = run.evaluate()
    assert run.scores["eval"].pixels == valid_pixels(map(Drawn(3).__getitem__, range(3)))
    assert metrics["eval_mean_iou"] > 0


def test_a_checkpoint_is_a_hub_folder_at_any_time(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=3)
    seen = {}

    class Remember(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            images = tiny.batch()["pixel_values"]
            run.generalized_model.eval()
            seen[state.global_step] = run.generalized_model(images).logits.detach()

    run.add_callback(Remember())
    run.train()
    for step in (3, 6, 9):
        folder = tmp_path / f"checkpoint-{step}"
        model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
        torch.testing.assert_close(model(tiny.batch()["pixel_values"]).logits, seen[step], rtol=0, atol=0)
        assert {"usual.safetensors", "initial.safetensors", "trainer_state.json"} <= {p.name for p in folder.iterdir()}
        assert json.loads((folder / "deft_state.json").read_text())["stage"] == (
            "warmup" if step == 3 else "decoupled"
        )
    assert not list(tmp_path.glob(".*"))


def test_a_crash_while_saving_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path, save_strategy="steps", save_steps=3)

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "_save_rng_state", lambda folder: full_disk() if "checkpoint-6" in folder else None)
    with pytest.raises(UserError, match="No space left on device; .* MiB.*last good checkpoint is .*checkpoint-3;"):
        run.train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    assert trainer(tmp_path, save_strategy="steps", save_steps=3).train(resume_from_checkpoint=True).global_step == 10


def test_save_model_leaves_a_plain_model_and_no_pickle(tmp_path):
    run = trainer(tmp_path / "run")
    run.train()
    run.save_model(tmp_path / "final")
    assert sorted(p.name for p in (tmp_path / "final").iterdir()) == ["config.json", "model.safetensors"]
    reloaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "final").state_dict()
    for name, value in run.generalized_model.state_dict().items():
        torch.testing.assert_close(reloaded[name], value, rtol=0, atol=0)


def plain_mean_iou(model, data):
    counts = np.zeros((tiny.NUM_LABELS, tiny.NUM_LABELS), dtype=np.int64)
    for index in range(len(data)):
        image, truth = data[index]["pixel_values"][None], data[index]["labels"].numpy()
        logits = model(image).logits
        found = nn.functional.interpolate(logits, size=truth.shape, mode="bilinear").argmax(1)[0].numpy()
        np.add.at(counts, (truth[truth != 255], found[truth != 255]), 1)
    hits = np.diag(counts)
    with np.errstate(invalid="ignore"):
        return np.nanmean(hits / (counts.sum(0) + counts.sum(1) - hits))


def test_domains_are_scored_by_name_at_the_labels_own_size(tmp_path):
    domains = {"near": Drawn(3, seed=1), "far": Drawn(5, seed=2)}
    run = trainer(tmp_path, evaluate=domains, evaluate_usual=True, per_device_eval_batch_size=2)
    run.train()
    metrics = run.evaluate()
    for model, prefix in ((run.pathways.generalized.eval(), ""), (run.pathways.usual.eval(), "usual_")):
        with torch.no_grad():
            for name, data in domains.items():
                assert metrics[f"eval_{name}_{prefix}mean_iou"] == pytest.approx(plain_mean_iou(model, data), abs=1e-9)
    assert run.scores["eval_far"].mean_iou == metrics["eval_far_mean_iou"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_images_of_several_sizes_is_scored(tmp_path, workers):
    data = Stream(5)
    run = trainer(tmp_path, evaluate=data, per_device_eval_batch_size=2, dataloader_num_workers=workers)
    metrics = run.evaluate()
    assert run.scores["eval"].pixels == valid_pixels(data)
    assert metrics["eval_samples_per_second"] > 0
    assert run.evaluation_loop(run.get_eval_dataloader(), "").num_samples == 5


def test_predict_gives_class_ids(tmp_path):
    run = trainer(tmp_path)
    run.train()
    data = Drawn(3, seed=5)
    output = run.predict(data)
    assert [p.shape for p in output.predictions] == [(64, 64)] * 3
    truth = np.stack([data[i]["labels"].numpy() for i in range(3)])
    hits = np.stack(output.predictions) == truth
    assert output.metrics["test_pixel_accuracy"] == pytest.approx(hits[truth != 255].mean())


def test_best_model_early_stopping_and_rotation(tmp_path):
    run = trainer(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="near_mean_iou",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=50)],
    )
    run.train()
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 3
    scores = dict(zip(range(2, 11, 2), history(run, "eval_near_mean_iou"), strict=True))
    best = max(scores, key=scores.get)
    assert Path(run.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert run.evaluate()["eval_near_mean_iou"] == scores[best]
    decay = run.composition.rule(6).encoder
    assert run.pathways.share_left()["encoder"] == pytest.approx(decay ** max(best - 4, 0))


@pytest.mark.parametrize("metric", [None, "near_miou", "loss"])
def test_the_best_model_needs_a_metric_that_there_is(tmp_path, metric):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    with pytest.raises(UserError, match="expected one of near_mean_iou, near_mean_accuracy"):
        trainer(tmp_path, load_best_model_at_end=True, metric_for_best_model=metric, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"metric_for_best_model": "mean_iou"},
        {"method": "joint", "lr_scheduler_type": "reduce_lr_on_plateau"},
        {"method": "joint", "lr_scheduler_type": "greedy"},
    ],
)
def test_whatever_looks_at_a_metric_needs_one_that_there_is(tmp_path, settings):
    with pytest.raises(UserError, match="metric_for_best_model is '(mean_iou|loss)': expected one of near_mean_iou"):
        trainer(tmp_path, eval_strategy="steps", eval_steps=2, **settings)
    trainer(tmp_path, evaluate=Drawn(2), eval_strategy="steps", **settings | {"metric_for_best_model": "mean_iou"})


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_by_score_waits_for_it_to_rise(tmp_path, kind):
    settings = {"method": "joint", "eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": kind}
    run = trainer(tmp_path, metric_for_best_model="near_mean_iou", lr_scheduler_kwargs={"patience": 3}, **settings)
    run.train()
    assert (run.lr_scheduler.mode, run.lr_scheduler.patience) == ("max", 3)
    assert arguments(tmp_path, lr_scheduler_kwargs={"mode": "min"}, **settings).lr_scheduler_kwargs["mode"] == "min"


@pytest.mark.parametrize("saves", [{"save_steps": 4}, {"save_steps": 3}, {"save_strategy": "epoch"}])
def test_the_best_model_is_one_that_was_saved(tmp_path, saves):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    choosing = {"load_best_model_at_end": True, "metric_for_best_model": "near_mean_iou"}
    with pytest.raises(UserError, match=r"^load_best_model_at_end loads .* eval_steps 2 and save_strategy .*the same"):
        arguments(tmp_path, **{**settings, **choosing, **saves})
    assert arguments(tmp_path, **{**settings, **choosing, "save_strategy": "best", "save_steps": 4})


def test_the_stage_of_the_best_model_is_that_of_its_folder(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=3)
    run.train()
    run.state.best_global_step, run.state.best_model_checkpoint = 8, str(tmp_path / "checkpoint-3")
    run._load_best_model()
    assert run.pathways.stage == "warmup"


@pytest.mark.parametrize("count, sizes", [(5, [2, 2]), (4, [2, 2]), (1, [1])])
def test_no_statistics_are_taken_on_an_image_alone(tmp_path, count, sizes):
    run = trainer(tmp_path, train=Drawn(count))
    run.args.dataloader_drop_last = False  # as with several ranks, whose own loader fills up the last batch
    assert [len(batch["labels"]) for batch in run.loaders.source_batches(run.train_dataset)] == sizes


def test_batchnorm_statistics_follow_the_policy(tmp_path):
    statistics = {}
    for policy in ("reestimate", "reference"):
        run = trainer(tmp_path / policy, model=tiny.build("mobilenet_v2"), batchnorm=policy)
        run.train()
        statistics[policy] = [m.running_mean.clone() for m in batchnorm_modules(run.generalized_model).values()]
        if policy == "reestimate":
            before = torch.random.get_rng_state()
            run.batchnorm.refresh(run.state.global_step, changed=True)
            again = [m.running_mean for m in batchnorm_modules(run.generalized_model).values()]
            assert all(torch.equal(a, b) for a, b in zip(again, statistics[policy], strict=True))
            assert torch.equal(before, torch.random.get_rng_state())
    assert not all(torch.equal(a, b) for a, b in zip(*statistics.values(), strict=True))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"method": "deftt"}, "method is 'deftt': expected one of deft, joint"),
        ({"average": "none"}, "deft needs an average"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5: expected 0 to 1"),
        ({"batchnorm": "swa"}, "batchnorm is 'swa'"),
        ({"encoder_learning_rate": 0.0}, "encoder_learning_rate is 0.0: expected a positive"),
        ({"bf16_full_eval": True}, "bf16_full_eval and fp16_full_eval are not supported, evaluation is in float32"),
        ({"fp16_full_eval": True}, "bf16_full_eval and fp16_full_eval are not supported, evaluation is in float32"),
        ({"remove_unused_columns": True}, "remove_unused_columns would drop what training takes"),
        (
            {"decoder_warmup_steps": -1, "distance_weight": -1.0},
            r"decoder_warmup_steps.*\ndistance_weight is -1",
        ),
    ],
)
def test_wrong_arguments_get_one_message(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **overrides)


def test_more_classes_in_the_data_than_in_the_model(tmp_path):
    class Wider(Drawn):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "labels": item["labels"].masked_fill(item["labels"] == 3, 12)}

    with pytest.raises(UserError, match="its first item: labels hold the value 12, but the model has 7"):
        trainer(tmp_path, train=Wider(2))
    domain = Domain.from_streets(
        "clear", LabelSpace(("a", "b"), ids={i: i % 2 for i in range(7)}), count=1, size=(32, 32)
    )
    with pytest.raises(UserError, match="near: domain clear has 2 classes, but the model has 7.*num_labels"):
        trainer(tmp_path, evaluate={"near": EvaluationSet(domain, EvalTransform(size=None))})


def test_trackers_get_the_figures(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    trainer(tmp_path, report_to=["tensorboard"], eval_strategy="steps", eval_steps=5).train()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = {"train/encoder_loss", "train/decoder_loss", "train/encoder_distance", "train/decoder_initial_share"}
    assert names | {"eval/far_mean_iou"} <= set(events.Tags()["scalars"])


def test_arguments_without_meaning_are_refused(tmp_path):
    with pytest.raises(UserError, match="args are TrainingArguments: build them as DeFTTrainingArguments"):
        DeFTTrainer(model=tiny.build("segformer"), args=TrainingArguments(output_dir=str(tmp_path), report_to=[]))
    with pytest.raises(UserError, match="leave `compute_loss_func` out"):
        DeFTTrainer(model=tiny.build("segformer"), args=arguments(tmp_path), compute_loss_func=lambda *_: 0)
    with pytest.raises(UserError, match=r"keeps no logits, expected .* compute_metrics\(scores, confusion\)"):
        DeFTTrainer(model=tiny.build("segformer"), args=arguments(tmp_path), compute_metrics=lambda prediction: {})
    with pytest.raises(UserError, match="needs a model"):
        DeFTTrainer(args=arguments(tmp_path))


def test_other_accelerators_of_the_machine_are_left_alone(tmp_path, monkeypatch, recwarn):
    """Looking after the random states of all of them, torch warns and asks to be told which."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    trainer(tmp_path).evaluate()
    assert not [warning for warning in recwarn if "fork" in str(warning.message)]


def test_a_run_that_is_scored_while_training_equals_one_that_is_not(tmp_path):
    """Dropout draws from the same generator that a loader draws its base seed from."""
    blind = trainer(tmp_path / "blind")
    blind.train()
    seeing = trainer(tmp_path / "seeing", eval_strategy="steps", eval_steps=2, evaluate_usual=True)
    seeing.train()
    # The usual component's BatchNorm statistics are taken anew only where it is scored.
    for found, expected in (
        (dict(seeing.pathways.named_parameters()), dict(blind.pathways.named_parameters())),
        (seeing.generalized_model.state_dict(), blind.generalized_model.state_dict()),
    ):
        assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


def test_an_optimizer_of_the_callers_is_used_as_it_is(tmp_path):
    model = tiny.build("segformer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    args = arguments(tmp_path, method="joint", max_steps=1)
    run = DeFTTrainer(model, args, train_dataset=Drawn(2), optimizers=(optimizer, schedule))
    run.train()
    assert run.optimizer.optimizer is optimizer and run.lr_scheduler is schedule
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    factory = {"optimizers": (optimizer, None), "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5})}
    with pytest.raises(UserError, match="^found both `optimizers` and `optimizer_cls_and_kwargs`: pass one of them"):
        DeFTTrainer(model, args, **factory)
