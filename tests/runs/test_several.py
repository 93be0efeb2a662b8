"""Several recipes of one command line."""

from pathlib import Path

import pytest

from deft_hf import train
from deft_hf.recipe.shipped import split_recipes
from deft_hf.runs import several
from deft_hf.utils.errors import UserError

RECIPE = """\
model: {checkpoint: embedded}
data:
  labels: streets
  source: [{streets: clear, count: 2, seed: 0, size: [48, 64]}]
  validation: [{streets: clear, count: 2, seed: 1, size: [48, 64]}]
  crop_size: [32, 32]
training: {output_dir: out, max_steps: 2, per_device_train_batch_size: 2}
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What was trained, in a folder with the recipes a, b (unknown key) and c."""
    for name in "abc":
        text = RECIPE.replace("output_dir: out", f"output_dir: out/{name}")
        (tmp_path / f"{name}.yaml").write_text(text + ("nonsense: 1\n" if name == "b" else ""))
    monkeypatch.chdir(tmp_path)
    found = []
    monkeypatch.setattr(several, "train", lambda recipe, anyway: found.append((recipe.training.output_dir, anyway)))
    return found


def test_overrides_stand_before_and_after_options(trained):
    train.main(["a.yaml", "training.seed=1", "--resume-anyway", "training.max_steps=3"])
    train.main(["--dry-run", "a.yaml", "training.seed=1"])
    assert trained == [("out/a", True)]
    with pytest.raises(UserError, match="training.max_steps: found"):
        train.main(["a.yaml", "--dry-run", "training.max_steps=x"])
    with pytest.raises(UserError, match="override oops: found no '='"):
        train.main(["a.yaml", "--dry-run", "oops"])


def test_recipes_are_trained_in_order_and_the_failed_ones_are_named(trained, capsys):
    with pytest.raises(UserError, match="1 of 3 recipes failed, see above: b.yaml$"):
        train.main(["a.yaml", "b.yaml", "c.yaml", "training.seed=1"])
    assert trained == [("out/a", False), ("out/c", False)]
    told = capsys.readouterr()
    assert "b.yaml: nonsense: unknown key" in told.err and told.out.count("seed: 1") > 1


def test_a_bug_in_one_does_not_hold_up_the_others(trained, monkeypatch, capsys):
    def fail(recipe, anyway):
        trained.append(recipe.training.output_dir)
        raise KeyError("a bug")

    monkeypatch.setattr(several, "train", fail)
    with pytest.raises(UserError, match="2 of 2 recipes failed, see above: a.yaml, c.yaml"):
        train.main(["a.yaml", "c.yaml"])
    assert trained == ["out/a", "out/c"] and capsys.readouterr().err.count("KeyError: 'a bug'") == 2
    with pytest.raises(KeyError):  # of one alone, as it is
        train.main(["a.yaml"])


def test_what_is_wrong_with_the_arguments_is_said_by_a_dry_run(trained):
    for override, message in (
        ("training.seed=-1", "a.yaml: training.seed: found -1, expected"),
        ("method.ema_decay=2", "a.yaml: method.ema_decay is 2.0: expected"),
        ("training.fsdp=full_shard", "a.yaml: training.fsdp: found in a single process"),
        ("training.torch_compile_mode=fast", "a.yaml: training.torch_compile_mode: found 'fast'"),
        ("training.optim=lomo", "a.yaml: training.optim: found lomo, whose package is not installed"),
        ("training.max_steps=0x" + "f" * 5000, "found an integer of 20000 bits, expected at most 64"),
    ):
        with pytest.raises(UserError, match=message):
            train.main(["a.yaml", "--dry-run", override])


def test_recipes_are_told_from_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x=1.yaml").touch()
    words = ["quickstart", "x=1.yaml", "training.output_dir=b.yaml", "missing.yaml", "data.root=" + "a" * 5000]
    assert split_recipes(words) == (["quickstart", "x=1.yaml", "missing.yaml"], [words[2], words[4]])
