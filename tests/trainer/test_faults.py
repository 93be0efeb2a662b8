"""What happens to long jobs: kills, full disks, dead workers, damaged checkpoints. Small runs, real faults."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from deft_hf.trainer.components import load_component
from deft_hf.trainer.trainer import DeFTTrainer
from deft_hf.utils import integrity
from deft_hf.utils.errors import UserError, run_command, workers_explained
from tests import tiny
from tests.trainer.test_trainer import Drawn, everything, history, trainer

SAVES = {"save_strategy": "steps", "save_steps": 2}


def same(one, two):
    expected, found = everything(one), everything(two)
    assert expected.keys() == found.keys()
    return [name for name in expected if not torch.equal(expected[name], found[name])] == []


def state(folder):
    return json.loads((folder / "trainer_state.json").read_text())


# ---- checkpoints


def test_a_checkpoint_lists_its_files_and_no_pickle_is_among_them_but_trainers_own(tmp_path):
    trainer(tmp_path, **SAVES).train()
    folder = tmp_path / "checkpoint-4"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) | {"manifest.json"} == {path.name for path in folder.iterdir()}
    assert listed["model.safetensors"]["size"] == (folder / "model.safetensors").stat().st_size
    pickles = {name for name in listed if Path(name).suffix in (".bin", ".pt", ".pth", ".pkl")}
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert integrity.damage(folder) is None


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_would_run_code_is_never_loaded(tmp_path, file, monkeypatch):
    """With a manifest that fits it: Trainer's loader is the last line."""
    trainer(tmp_path, **SAVES).train()
    folder = tmp_path / "checkpoint-10"
    torch.save({"state": Evil()}, folder / file)
    integrity.write_manifest(folder)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("the pickle was executed"))
    with pytest.raises(Exception, match="has a pickle that holds more than states of optimizer"):
        trainer(tmp_path, max_steps=8).train(resume_from_checkpoint=str(folder), resume_anyway=True)


def truncate(folder):
    path = folder / "usual.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(folder):
    path = folder / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add_a_pickle(folder):
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "damage, problem",
    [
        (truncate, "usual.safetensors is not the .* bytes"),
        (flip_a_bit, "optimizer.pt is not what was written"),
        (add_a_pickle, "pytorch_model.bin is not in its manifest"),
        (lambda folder: (folder / "initial.safetensors").unlink(), "initial.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {'), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, damage, problem):
    unbroken = trainer(tmp_path, **SAVES)
    unbroken.train()
    damage(tmp_path / "checkpoint-10")
    resumed = trainer(tmp_path, **SAVES)
    resumed.train(resume_from_checkpoint=True)
    (line,) = [record.getMessage() for record in caplog.records if "is damaged and skipped" in record.getMessage()]
    assert "checkpoint-10 is damaged" in line
    assert re.search(problem, line)
    assert same(unbroken, resumed)
    assert integrity.damage(tmp_path / "checkpoint-10") is None, "written anew on the way"
    damage(tmp_path / "checkpoint-10")
    with pytest.raises(UserError, match="checkpoint-10 is damaged"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_without_a_whole_checkpoint_there_is_none(tmp_path, caplog):
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    for folder in tmp_path.glob("checkpoint-*"):
        truncate(folder)
    assert integrity.last_good_checkpoint(tmp_path) is None
    assert "None of the 2 checkpoints" in caplog.text


def test_rotation_keeps_what_was_just_written_and_the_best(tmp_path):
    for step in (1, 2, 3, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    # 10 and 11 are of a run whose end was damaged: however late their numbers, they go first.
    integrity.rotate(tmp_path / "checkpoint-3", limit=2, best=str(tmp_path / "checkpoint-1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-10").mkdir()
    integrity.rotate(tmp_path / "checkpoint-3", limit=3, best=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    integrity.rotate(tmp_path / "checkpoint-3", limit=None, best=None)
    integrity.rotate(tmp_path / "checkpoint-3", limit=1, best=None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_crash_while_a_checkpoint_is_replaced_loses_none(tmp_path, monkeypatch):
    def written(text):
        partial = tmp_path / ".checkpoint-2.partial"
        partial.mkdir()
        (partial / "file").write_text(text)
        return partial

    folder = tmp_path / "checkpoint-2"
    integrity.put_in_place(written("old"), folder)
    moves, replace = [], os.replace

    def killed(*args):
        moves.append(args)
        if len(moves) == 2:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        integrity.put_in_place(written("new"), folder)
    monkeypatch.undo()
    integrity.clear_leftovers(tmp_path)
    assert (folder / "file").read_text() == "old" and integrity.damage(folder) is None
    integrity.put_in_place(written("new"), folder)
    assert (folder / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_leftovers_of_a_killed_run_are_cleared_and_nothing_else(tmp_path):
    for name in (".checkpoint-4.partial", ".cache", "checkpoint-2"):
        (tmp_path / name).mkdir()
    trainer(tmp_path).last_good_checkpoint()
    assert {path.name for path in tmp_path.iterdir()} == {".cache", "checkpoint-2"}


def test_other_settings_are_gone_on_from_when_told_and_another_method_is_not(tmp_path, caplog):
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    checkpoint = str(tmp_path / "checkpoint-5")
    changes = {"max_steps": 8, "ema_decay": 0.999, "distance_weight": 0.1}
    with pytest.raises(UserError, match="resume with the same arguments"):
        trainer(tmp_path, **changes).train(resume_from_checkpoint=checkpoint)
    assert trainer(tmp_path, **changes).train(checkpoint, resume_anyway=True).global_step == 12
    for key in ("stages", "decays", "distance_weight"):
        assert f"Resumed anyway: the checkpoint was made with {key}" in caplog.text
    for other in ({"method": "lp_ft"}, {"decoder_warmup_steps": 7}):
        with pytest.raises(UserError, match="cannot be resumed"):
            trainer(tmp_path, **other).train(checkpoint, resume_anyway=True)


def test_a_checkpoint_of_the_model_alone_is_not_gone_on_from(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=5, save_only_model=True).train()
    with pytest.raises(UserError, match="no optimizer.pt and no scheduler.pt, since save_only_model .* Leave save_"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


@pytest.fixture
def worse_and_worse(monkeypatch):
    """Lets each evaluation while training be worse than the one before."""

    def evaluate(run, *args):
        run.control.should_evaluate = False
        return {"eval_near_mean_iou": 1 / run.state.global_step}

    monkeypatch.setattr(DeFTTrainer, "_evaluate", evaluate)


@pytest.mark.parametrize("kept", [True, False])
def test_the_best_checkpoint_of_a_run_that_was_moved_is_found(tmp_path, worse_and_worse, kept):
    choosing = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    settings = {**SAVES, **choosing, "metric_for_best_model": "near_mean_iou"}
    trainer(tmp_path / "here", **settings).train()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for step in (10,) if kept else (6, 10):
        shutil.rmtree(tmp_path / "there" / f"checkpoint-{step}")
    moved = trainer(tmp_path / "there", **settings)
    moved.train(resume_from_checkpoint=True)
    best = Path(moved.state.best_model_checkpoint)
    assert best == tmp_path / "there" / ("checkpoint-6" if kept else "checkpoint-10")
    assert moved.pathways.stage == "decoupled"  # the best is never of the warm-up


# ---- SIGTERM


class SignalAt(TrainerCallback):
    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("save_strategy, step", [("no", 2), ("steps", 3), ("steps", 6), ("no", 9)])
def test_sigterm_saves_the_step_and_the_next_start_ends_as_if_nothing_had_been(tmp_path, save_strategy, step):
    settings = {"save_strategy": save_strategy, "save_steps": 2, "train": Drawn(10)}
    before = signal.getsignal(signal.SIGTERM)
    killed = trainer(tmp_path / "killed", callbacks=[SignalAt(step)], **settings)
    with pytest.raises(SystemExit) as leaving:
        killed.train()
    assert leaving.value.code == 143 and killed.state.global_step == step + 1
    assert signal.getsignal(signal.SIGTERM) is before
    checkpoint = integrity.last_good_checkpoint(tmp_path / "killed")
    assert checkpoint.endswith(f"checkpoint-{step + 1}")
    resumed = trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    unbroken = trainer(tmp_path / "unbroken", **settings)
    unbroken.train()
    assert same(unbroken, resumed)


@pytest.mark.parametrize("step, goes_on", [(5, True), (9, False)])
def test_sigterm_does_not_wait_for_batchnorm_statistics_that_the_run_takes_anyway(
    tmp_path, monkeypatch, caplog, step, goes_on
):
    def reestimated(settings, **kwargs):
        run, calls = trainer(tmp_path, model=tiny.build("mobilenet_v2"), **settings, **kwargs), []
        batches = run.loaders.source_batches
        monkeypatch.setattr(run.loaders, "source_batches", lambda data: calls.append(1) or batches(data))
        return run, calls

    run, calls = reestimated({}, callbacks=[SignalAt(step)])
    with pytest.raises(SystemExit):
        run.train()
    checkpoint = tmp_path / f"checkpoint-{step + 1}"
    assert json.loads((checkpoint / "deft_state.json").read_text())["batchnorm_due"] == goes_on
    assert len(calls) == (0 if goes_on else 1)
    load_component(checkpoint)
    assert ("export it with --bn reestimate" in caplog.text) == goes_on
    run.save_model(str(tmp_path / "after"))  # whoever lives on
    assert len(calls) == 1

    resumed, calls = reestimated({})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(calls) == (1 if goes_on else 0)
    monkeypatch.undo()
    unbroken = trainer(tmp_path / "unbroken", model=tiny.build("mobilenet_v2"))
    unbroken.train()
    exported = unbroken.generalized_model.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in resumed.generalized_model.state_dict().items())


def test_sigterm_waits_for_statistics_of_a_model_that_is_not_resumed(tmp_path):
    run = trainer(tmp_path, callbacks=[SignalAt(5)], save_only_model=True)
    with pytest.raises(SystemExit):
        run.train()
    assert not run.batchnorm.is_due(6)


def test_sigterm_keeps_its_checkpoint_where_only_the_best_is_to_be_left(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True}
    run = trainer(tmp_path, callbacks=[SignalAt(6)], metric_for_best_model="near_mean_iou", **SAVES, **settings)
    with pytest.raises(SystemExit):
        run.train()
    assert (tmp_path / "checkpoint-7").is_dir() and Path(run.state.best_model_checkpoint).is_dir()


class SignalsAll(Drawn):
    """The process that makes the first item, and its parent, are sent SIGTERM."""

    def __getitem__(self, index):
        if index == 0 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getppid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


@pytest.mark.parametrize("where", ["train", "evaluate"])
def test_sigterm_to_the_processes_that_load_images_is_left_to_the_one_that_trains(tmp_path, where):
    run = trainer(
        tmp_path, **{where: SignalsAll(8)}, dataloader_num_workers=1, eval_strategy="steps", eval_steps=2, **SAVES
    )
    with pytest.raises(SystemExit) as leaving:
        run.train()
    assert leaving.value.code == 143
    assert integrity.last_good_checkpoint(tmp_path).endswith(f"checkpoint-{run.state.global_step}")


def test_workers_end_on_sigterm_where_nobody_waits_for_it(tmp_path):
    run = trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    loader = run.get_train_dataloader()
    next(iter(loader))
    (worker,) = loader.base_dataloader._iterator._workers
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0


@pytest.mark.parametrize("step", [3, 7, 9])
def test_sigterm_in_the_last_step_of_an_epoch_loses_no_evaluation(tmp_path, step):
    """Epochs have four steps; the run ends within one."""
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    settings["metric_for_best_model"] = "near_mean_iou"
    with pytest.raises(SystemExit):
        trainer(tmp_path / "killed", callbacks=[SignalAt(step)], **settings).train()
    resumed = trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    unbroken = trainer(tmp_path / "unbroken", **settings)
    unbroken.train()
    assert history(resumed, "eval_near_mean_iou") == history(unbroken, "eval_near_mean_iou")
    assert Path(resumed.state.best_model_checkpoint).name == Path(unbroken.state.best_model_checkpoint).name
    assert same(unbroken, resumed)


def test_sigterm_saves_where_only_a_best_step_would_be(tmp_path, worse_and_worse):
    settings = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(tmp_path, callbacks=[SignalAt(5)], metric_for_best_model="near_mean_iou", **settings)
    with pytest.raises(SystemExit):
        run.train()
    assert run.state.global_step == 6 and (tmp_path / "checkpoint-6").is_dir()


def test_sigterm_after_the_last_step_is_not_swallowed(tmp_path, monkeypatch):
    class Late(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    heard = []
    before = signal.signal(signal.SIGTERM, lambda *args: heard.append(args))
    try:
        assert trainer(tmp_path, callbacks=[Late()]).train().global_step == 10
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(heard) == 1


def test_transformers_own_saving_on_sigterm_is_refused(tmp_path):
    with pytest.raises(UserError, match="enable_jit_checkpoint would save in the middle of a step"):
        trainer(tmp_path, enable_jit_checkpoint=True)


# ---- the disk


@pytest.fixture
def small_files():
    """Lets no file of this process grow beyond some bytes: native writers fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [20_000, 60_000, 100_000])
def test_a_disk_that_takes_no_more_is_one_message_and_nothing_is_lost(tmp_path, small_files, size):
    class Fills(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                small_files(size)

    run = trainer(tmp_path, callbacks=[Fills()], logging_steps=100, **SAVES)
    message = r"could not be written \(.*MiB are free.*good checkpoint is .*checkpoint-4;"
    try:
        with pytest.raises(UserError, match=message):
            run.train()
    finally:
        small_files(resource.RLIM_INFINITY)
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoint-4").iterdir())
    assert size < largest, "the limit would have hit nothing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    resumed = trainer(tmp_path, **SAVES)
    resumed.train(resume_from_checkpoint=True)
    unbroken = trainer(tmp_path / "unbroken", **SAVES)
    unbroken.train()
    assert same(unbroken, resumed)


def test_a_folder_that_cannot_be_written_to_is_known_before_training(tmp_path, monkeypatch):
    run = trainer(tmp_path)

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(integrity.tempfile, "NamedTemporaryFile", read_only)
    with pytest.raises(UserError, match="cannot be written to .Read-only file system.; nothing was trained"):
        run.train()
    assert run.state.global_step == 0


# ---- data-loader workers


class DiesAt(Drawn):
    """Item 5 kills the process that makes it."""

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_one_message_and_the_run_goes_on_later(tmp_path):
    settings = {"dataloader_num_workers": 1, **SAVES}
    with pytest.raises(UserError, match="process that loads images died.*dataloader_num_workers.*last checkpoint"):
        trainer(tmp_path, train=DiesAt(8), **settings).train()
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=resumed.last_good_checkpoint())
    unbroken = trainer(tmp_path / "unbroken", **settings)
    unbroken.train()
    assert same(unbroken, resumed)


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_the_same_message():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(UserError, match="process that loads images died or hangs .EOFError.*dataloader_num_workers"):
        with workers_explained():
            ours.recv()
    with pytest.raises(FileNotFoundError), workers_explained():
        open("nowhere")  # what a data set raises is its own


def test_what_a_worker_refuses_is_one_line(tmp_path, capsys):
    class Refuses(Drawn):
        def __getitem__(self, index):
            if index == 5:
                raise UserError("night/5.png: cannot be read")
            return super().__getitem__(index)

    def main():
        trainer(tmp_path, train=Refuses(8), dataloader_num_workers=1).train()

    with pytest.raises(SystemExit) as leaving:
        run_command(main, "")
    assert leaving.value.code == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "night" in line] == [
        "error: night/5.png: cannot be read"
    ]


def test_a_signal_to_the_group_does_not_reach_the_workers(tmp_path):
    class Looks(Drawn):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "pixel_values": torch.tensor([os.getpgrp()])}

    def collator(items):
        return {"pixel_values": torch.cat([item["pixel_values"] for item in items])}

    run = trainer(tmp_path, dataloader_num_workers=1)
    run.train_dataset, run.data_collator = Looks(4), collator
    loaders = [run.get_train_dataloader(), run.get_eval_dataloader(run.train_dataset)]
    for loader in (*loaders, run.loaders.source_batches(run.train_dataset)):
        groups = torch.cat([batch["pixel_values"] for batch in loader]).tolist()
        assert len(groups) == 4 and os.getpgrp() not in groups
