"""A model that predicts one class for every pixel is named wherever its scores are."""

import json

import numpy as np
import pytest
import torch

from deft_hf.recipe import Recipe
from deft_hf.runs.collapsed import only_class
from deft_hf.runs.train import train
from deft_hf.scoring.confusion import ConfusionMatrix
from tests.comparison.test_plan import write_recipe

LABELS = ["ground", "roof", "sky"]


def matrix(truth, predicted):
    counted = ConfusionMatrix(3)
    counted.update(torch.tensor(predicted), torch.tensor(truth))
    return counted.counts


@pytest.mark.parametrize(
    ("predicted", "found"),
    [([1, 1, 1, 1], "roof"), ([1, 1, 1, 0], None), ([1, 1, 1, 2], "roof"), ([0, 0, 0, 0], "ground")],
)
def test_the_only_class_that_is_predicted_on_valid_pixels(predicted, found):
    counts = matrix([0, 1, 2, 255], predicted) if predicted[3] == 2 else matrix([0, 1, 2, 0], predicted)
    assert only_class({"town": counts}, ["town", "gone"], LABELS) == found
    images = np.stack([counts.numpy()] * 2)
    assert only_class({"town": images, "coast": matrix([0], [2])}, ["town"], LABELS) == found
    assert only_class({"town": images, "coast": matrix([0], [2])}, ["town", "coast"], LABELS) is None


@pytest.mark.parametrize(("others", "found"), [(0, "ground"), (3, "ground"), (4, None), (300, None)])
def test_nearly_alone_is_alone(others, found):
    # Of 1000 valid pixels 300 are no ground, a hundredth of which are 3.
    truth = [0] * 700 + [1] * 200 + [2] * 100
    assert only_class({"town": matrix(truth, [0] * (1000 - others) + [1] * others)}, ["town"], LABELS) == found


def test_a_rare_class_that_is_found_is_none_that_is_missing():
    truth = [0] * 998 + [1] * 2
    assert only_class({"town": matrix(truth, truth)}, ["town"], LABELS) is None


def test_where_nothing_was_counted_nothing_is_said():
    assert only_class({}, ["town"], LABELS) is None
    assert only_class({"town": matrix([255], [1])}, ["town"], LABELS) is None


@pytest.mark.usefixtures("unverified")
def test_log_results_card_page_and_table_say_it(tmp_path, monkeypatch, capsys):
    path = write_recipe(tmp_path, method={"name": "joint"}, training={"output_dir": str(tmp_path / "out")})
    looked = []
    monkeypatch.setattr("deft_hf.runs.facts.only_class", lambda *given: looked.append(given) or "road")
    out = train(Recipe.load(path, ["training.max_steps=1", "training.save_strategy=no"]))
    ((confusions, domains, labels),) = looked
    assert domains == ["clear"] and set(confusions) == {"clear", "night"} and labels[0]
    assert json.loads((out / "results/metrics.json").read_text())["only_class"] == "road"
    said = "joint: the exported model predicts road for all or nearly all pixels of source validation"
    assert f"warning: {said}" in capsys.readouterr().out
    for name in ("README.md", "report.html", "results/table.md"):
        assert said in (out / name).read_text(), name
