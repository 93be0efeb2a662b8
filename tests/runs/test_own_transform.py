"""A run with a transform of the user's own: tried before anything is read, on record, and the same after a restart."""

import json
from pathlib import Path

import pytest

from deft_hf.comparison.plan import address
from deft_hf.recipe import Recipe
from deft_hf.runs.several import train_each
from deft_hf.runs.train import train
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import DATA_LISTS, METRICS

pytestmark = pytest.mark.usefixtures("unverified")
RECIPE = """
model: {checkpoint: embedded}
method: {name: joint}
data:
  labels: streets
  source: [{streets: clear, count: 2, size: [32, 32]}]
  validation: [{streets: clear, count: 1, size: [32, 32], seed: 1}]
  crop_size: [32, 32]
  check: false
  transform: own_upside_down:flipped
training: {output_dir: out, max_steps: 1, per_device_train_batch_size: 2, report_to: none}
"""
SOURCE = "def flipped(image, mask):\n    return image[::-1], mask[::-1]\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_upside_down", raising=False)
    (tmp_path / "own_upside_down.py").write_text(SOURCE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_a_run_records_it_and_does_not_go_on_with_another_source(place: Path):
    recipe = Recipe.load("recipe.yaml")
    folder = train(recipe)
    facts = json.loads((folder / METRICS).read_text())
    assert facts["transform"]["name"] == "own_upside_down:flipped" and len(facts["transform"]["sha256"]) == 64
    assert json.loads((folder / DATA_LISTS).read_text())["transform"] == [facts["transform"]]
    before = address(recipe)
    train(recipe)  # done
    (place / "own_upside_down.py").write_text(f"{SOURCE}# changed\n")
    with pytest.raises(UserError, match="own_upside_down:flipped of transform has other source code"):
        train(recipe)
    assert address(recipe) != before, "a comparison runs it again"


@pytest.mark.parametrize(
    "source, told",
    [
        ("def flip(image, mask): ...", "own_upside_down has no flipped; did you mean flip?"),
        ("def flipped(image, mask): return image[:8], mask[:8]", r"an array of uint8 \(8, 32, 3\), expected"),
        ("def flipped(image): return image", "flipped failed: TypeError: "),
    ],
)
def test_what_does_not_work_is_refused_before_anything_is_read(place: Path, source: str, told: str):
    (place / "own_upside_down.py").write_text(source)
    for start in (lambda: train(Recipe.load("recipe.yaml")), lambda: train_each("recipe.yaml", dry_run=True)):
        with pytest.raises(UserError, match=told):
            start()
    assert not (place / "out").exists()
