"""The page of all CPU benchmarks is made from their JSON."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("benchmarks_cpu", ROOT / "benchmarks" / "cpu.py")
script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
spec.loader.exec_module(script)

START = {"device": "made up", "first_start_s": 9.5, "tiny_predict_images_per_s": 21.25, "images": 100}


def found():
    """The figures of the full versions, those of `start.py` made up, and one that failed."""
    entries = {}
    for benchmark in script.BENCHMARKS:
        kept = ROOT / "benchmarks" / "results" / f"{benchmark.read.__name__}.json"
        result = START if benchmark.read is script.start else json.loads(kept.read_text(encoding="utf-8"))
        entries[benchmark.script] = {"arguments": "--quick --out FILE", "seconds": 12.4, "result": result}
    entries["pipeline.py"]["result"]["missing"] = ["albumentations"]
    entries["row_loss.py"] = {"arguments": "--out FILE", "seconds": 1.0, "failure": "status 1: no room"}
    facts = {"device": "CPU (a drawn one)", "cores": 2, "load": 0.5, "seconds": 120.0, "benchmarks": entries}
    return facts | {"commit": {"commit": "0123456789abcdef", "dirty": False}, "versions": {"torch": "2.0"}}


def test_the_page_names_device_tables_failures_and_the_full_commands():
    given = found()
    page = script.page(given)
    assert "**CPU (a drawn one)**" in page.partition("##")[0] and "2.0 minutes here" in page
    assert "6 of 7 benchmarks" in page and "| row_loss.py | status 1: no room |" in page
    assert "Not installed, and left out: albumentations." in page
    assert "| first start | 9.50 |" in page and "| tiny predict | 21.25 |" in page
    of = {name: entry.get("result") for name, entry in given["benchmarks"].items()}
    large, step = of["large_picture.py"], of["step_cost.py"][0]
    assert f"| 12000 x 9000 | {large['seconds']} | {large['peak_mib']} |" in page
    assert f"| torchmetrics | {of['pipeline.py']['ms a map of 1024 x 2048, 19 classes']['torchmetrics']:.1f} |" in page
    assert f"| {step['model']} | {step['deft']:.2f} | {step['parts']:.2f} | " in page
    assert page.endswith("deft_hf at 0123456789ab: torch 2.0.\n")
    for benchmark in script.BENCHMARKS:
        assert f"## {benchmark.title}\n" in page
        assert f"    python benchmarks/{benchmark.script} {benchmark.full}\n" in page


@pytest.mark.parametrize("status", [0, 3])
def test_a_script_that_fails_is_a_row_and_the_status(tmp_path, monkeypatch, capsys, status):
    def call(command, **_):
        if status == 0:
            name, out = Path(command[1]).name, Path(command[command.index("--out") + 1])
            out.write_text(json.dumps(found()["benchmarks"][name].get("result", {"rows": []})))
        return subprocess.CompletedProcess(command, status, stdout="", stderr="first\nthe reason\n")

    monkeypatch.setattr(script.subprocess, "run", call)
    monkeypatch.setattr("deft_hf.runs.provenance.git_state", lambda folder: None)
    monkeypatch.setattr(script.os, "environ", dict(script.os.environ))
    assert script.main(["--out", str(tmp_path / "out")]) == (status > 0)
    kept = json.loads((tmp_path / "out" / "cpu.json").read_text())["benchmarks"]
    assert list(kept) == [benchmark.script for benchmark in script.BENCHMARKS]
    assert all(("failure" in entry) == (status > 0) for entry in kept.values())
    page = (tmp_path / "out" / "README.md").read_text()
    assert page.count("status 3: the reason") == (7 if status else 0)
    assert "[7/7] start.py --quick" in capsys.readouterr().out
