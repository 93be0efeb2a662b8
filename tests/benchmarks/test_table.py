"""The table of a study gives back what its runs wrote."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "studies" / "table.py"
spec = importlib.util.spec_from_file_location("studies_table", SCRIPT)
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def facts(method, seed, iou):
    domain = {"mean_iou": iou, "iou": [iou, None], "accuracy": [0.1 + 0.2, None], "absent": [1], "pixels": 12}
    return {
        "method": method,
        "seed": seed,
        "labels": ["road", "sky"],
        "train_seconds": 1.5,
        "learning_rates": {"encoder": 1e-3, "decoder": 1e-3},
        "scores": {"day": domain, "dusk": domain},
        "usual_scores": {"dusk": domain} if method == "deft" else {},
    }


@pytest.fixture
def study(tmp_path):
    """Runs in both shapes, a fresh folder of each run and a file each, beside a report, a log and a model."""
    folder = tmp_path / "study"
    counts = {"eval_day": np.arange(12).reshape(2, 2, 3)}
    files = {
        "runs/deft-s0-0123/results/metrics.json": facts("deft", 0, 0.51234567890123456),
        "runs/deft-s0-0123/results/history.json": [{"step": 1, "loss": float("nan")}],
        "runs/deft-s0-0123/config.json": {"not": "evidence"},
        "runs/joint-s0-4567.json": facts("joint", 0, 0.5) | {"history": [{"step": 2}]},
        "comparison.json": {"title": "made up → here", "seeds": [0]},
        "against_deft/comparison.json": {"baseline": "deft"},
        "timings.json": {"deft": {"0": 1.5}},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    np.savez_compressed(folder / "runs/deft-s0-0123/results/image_counts.npz", **counts)
    (folder / "log.txt").write_text("100 %\r\nfinished → yes\n", newline="")
    return folder


def test_every_file_comes_back_equal(study, tmp_path):
    names = table.pack(study, tmp_path / "runs.jsonl.xz")
    assert len(names) == 8 and "runs/deft-s0-0123/config.json" not in names
    assert table.unpack(tmp_path / "runs.jsonl.xz", tmp_path / "again") == names
    assert table.differing(study, tmp_path / "runs.jsonl.xz") == (8, [])
    assert table.differing(tmp_path / "again", tmp_path / "runs.jsonl.xz") == (8, [])
    assert (tmp_path / "again/log.txt").read_bytes() == (study / "log.txt").read_bytes()

    before = (tmp_path / "runs.jsonl.xz").read_bytes()
    table.pack(tmp_path / "again", tmp_path / "runs.jsonl.xz")
    assert (tmp_path / "runs.jsonl.xz").read_bytes() == before


def test_a_changed_and_a_missing_file_are_named(study, tmp_path):
    table.pack(study, tmp_path / "runs.jsonl.xz")
    (study / "timings.json").write_text('{"deft": {"0": 1.6}}')
    (study / "runs/joint-s1-89ab.json").write_text("{}")
    assert table.differing(study, tmp_path / "runs.jsonl.xz") == (9, ["runs/joint-s1-89ab.json", "timings.json"])


def test_runs_scores_and_a_frame(study, tmp_path):
    table.pack(study, tmp_path / "runs.jsonl.xz")
    deft, joint = table.runs(tmp_path / "runs.jsonl.xz")
    assert (deft["run"], deft["history"][0]["step"]) == ("runs/deft-s0-0123", 1)
    assert (joint["run"], joint["history"]) == ("runs/joint-s0-4567", [{"step": 2}])

    rows = list(table.scores(tmp_path / "runs.jsonl.xz"))
    assert len(rows) == 2 * (3 + 2)
    usual = {"component": "usual", "domain": "dusk", "class": "road", "iou": 0.51234567890123456}
    assert [row for row in rows if usual.items() <= row.items()]

    frame = table.frame(tmp_path / "runs.jsonl.xz")
    assert list(frame["method"]) == ["deft", "joint"]
    assert frame.loc["runs/joint-s0-4567", "scores.dusk.mean_iou"] == 0.5
    assert frame.loc["runs/deft-s0-0123", "learning_rates.encoder"] == 1e-3


def test_the_commands(study, tmp_path):
    def call(*arguments):
        return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)

    assert "8 files" in call("pack", study, tmp_path / "t.jsonl.xz").stdout
    assert "8 of 8 files equal" in call("check", study, tmp_path / "t.jsonl.xz").stdout
    assert call("scores", tmp_path / "t.jsonl.xz").stdout.startswith("run,method,seed,component,domain,class,iou")
    (study / "timings.json").write_text("{}")
    wrong = call("check", study, tmp_path / "t.jsonl.xz")
    assert (wrong.returncode, wrong.stderr.strip()) == (1, "timings.json")
    (tmp_path / "empty").mkdir()
    assert "nothing to pack" in call("pack", tmp_path / "empty", tmp_path / "none.jsonl.xz").stderr
    assert "takes a folder and a table" in call("pack", study).stderr
    assert "does not exist" in call("scores", tmp_path / "missing").stderr
