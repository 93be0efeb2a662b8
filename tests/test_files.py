"""The table of files: what is published of a run, and what stays."""

import pytest

from deft_hf.utils import files


@pytest.mark.parametrize(
    "name",
    [
        files.CONFIG, files.WEIGHTS, "model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.onnx",
        files.CARD, files.PAGE, files.RECIPE, "recipe.1.yaml", files.METRICS, files.HISTORY, files.CONFUSIONS,
        files.DISTANCES, files.TABLE, files.COUNTS, "figures/panels.png",
    ],
)  # fmt: skip
def test_the_model_and_what_is_told_of_it_are_published(name):
    assert files.is_published(name) is True


@pytest.mark.parametrize(
    "name",
    [
        files.USUAL, files.GENERALIZED, files.INITIAL, files.STATE, files.MANIFEST, files.TRAINER_STATE, files.LOCK,
        files.MARKER, files.FAILURE, files.LOG, "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin",
        "checkpoint-3/model.safetensors", "baselines/joint/README.md", ".checkpoint-3.partial/config.json",
        "runs/a/events.out.tfevents.1",
    ],
)  # fmt: skip
def test_what_only_training_needs_is_not(name):
    assert files.is_published(name) is False


def test_a_file_of_others_has_no_row():
    assert files.is_published("notes.txt") is None
