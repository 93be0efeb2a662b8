"""The facts of a run: the format of `results/metrics.json`, of this version and of earlier ones."""

import json
from dataclasses import replace

import pytest

from deft_hf.publish.facts import RunFacts
from deft_hf.runs.facts import read_facts
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import METRICS
from tests.publish.test_card import RUN

# In the order of the file.
KEYS = [
    "method", "average", "component", "seed", "stages", "batch_size", "learning_rates", "weight_decays", "decays",
    "initial_share", "distance", "batchnorm", "best_checkpoint", "train_seconds", "resumed", "processes", "hardware",
    "versions", "git", "recipe", "recipes_before", "data", "unreadable", "labels", "scores",
]  # fmt: skip
DAY = RUN.scores["town"]


def write(folder, values):
    path = folder / METRICS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return {"deft": folder}


def test_what_is_written_is_read_again(tmp_path):
    assert list(RUN.to_dict()) == KEYS
    facts = replace(RUN, interpolation={"0.5": 0.4}, usual_scores=RUN.scores, layer_distances={"usual": {"a": 0.5}})
    keys = list(facts.to_dict())
    assert keys[11:14] == ["batchnorm", "interpolation", "best_checkpoint"]
    assert keys[-3:] == ["scores", "usual_scores", "layer_distances"]
    for written in (RUN, facts):
        values = json.loads(json.dumps(written.to_dict()))
        assert RunFacts.from_dict(values).to_dict() == values
        assert read_facts(write(tmp_path, values))["deft"].to_dict() == values
    assert list(replace(RUN, usual_scores={}).to_dict()) == KEYS  # what a run has none of is left out


def test_an_earlier_version_wrote_less(tmp_path):
    later = ("average", "component", "git", "recipe", "recipes_before", "data", "unreadable")
    old = {key: value for key, value in RUN.to_dict().items() if key not in later}
    facts = read_facts(write(tmp_path, {**old, "ema": True}))["deft"]
    assert (facts.average, facts.component) == ("ema", "generalized")
    assert facts.scores.keys() == RUN.scores.keys() and facts.git == {} and facts.unreadable == {}
    assert read_facts(write(tmp_path, {**old, "ema": False, "later": 1}))["deft"].average is None


@pytest.mark.parametrize(
    "values, found",
    [
        ({**RUN.to_dict(), "method": "joint"}, "it is of something else"),
        ({**RUN.to_dict(), "labels": ["one"]}, "it is of something else"),
        ({**RUN.to_dict(), "scores": 1}, "scores: Input should be an object"),
        ({**RUN.to_dict(), "scores": {"day": {}}}, "scores.day.mean_iou: Field required"),
        ({**RUN.to_dict(), "scores": {"day": {**DAY, "iou": "x"}}}, "scores.day.iou: Input should be a valid array"),
        ({**RUN.to_dict(), "scores": {"day": {**DAY, "mean_iou": [0.5]}}}, "scores.day.mean_iou: Input should be a"),
        ({**RUN.to_dict(), "scores": {"day": {**DAY, "absent": 3}}}, "scores.day.absent: Input should be a valid arr"),
        ({**RUN.to_dict(), "scores": {"day": {**DAY, "accuracy": [0.5]}}}, "it is of something else"),
        ({**RUN.to_dict(), "scores": {"day": {**DAY, "accuracy": 0.5}}}, "TypeError: "),
        ({**RUN.to_dict(), "scores": {"day": {**DAY, "mean_accuracy": [0.5]}}}, "it is of something else"),
        ({**RUN.to_dict(), "stages": None}, "stages: Input should be a valid array"),
        ({**RUN.to_dict(), "stages": [{}]}, "stages.0.stage: Field required"),
        ({**RUN.to_dict(), "stages": [{"stage": "joint", "steps": "3"}]}, "stages.0.steps: Input should be a valid"),
        ({**RUN.to_dict(), "git": {"deft_hf": {}}}, "git.deft_hf.commit: Field required"),
        ({**RUN.to_dict(), "intervals": {"domains": {"day": {"mean_iou": [0.5]}}}}, "intervals.domains.day.mean_iou"),
        ({**RUN.to_dict(), "extremes": {"day": {"best": {}}}}, "extremes.day.best.image: Field required"),
        ({**RUN.to_dict(), "data": {"unseen": [{"name": []}]}}, "data.unseen.0.name"),
        ({**RUN.to_dict(), "train_seconds": float("nan")}, "train_seconds: Input should be less than"),
        ({**RUN.to_dict(), "train_seconds": "x"}, "train_seconds: Input should be a valid number"),
        ({**RUN.to_dict(), "decays": {"encoder": 10**400}}, "ValueError: found the number 1000"),
        ({"scores": {}}, "TypeError: "),
        ([], "AttributeError: "),
    ],
)
def test_a_file_of_something_else_is_named_with_the_way_out(tmp_path, values, found):
    with pytest.raises(UserError, match=f"metrics.json: cannot be used .{found}.*remove it, and deft is scored"):
        read_facts(write(tmp_path, values))
