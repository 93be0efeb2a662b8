"""The notebooks run from top to bottom."""

import ast
import json
from pathlib import Path

import pytest

from deft_hf.runs import places

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def cells(path):
    found = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def run(source, names):
    """Executes a cell; returns the value of an expression at its end, which a notebook would show."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["own_data", "trainer"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, unverified):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "_CALIBRATED_ON", 2)
    monkeypatch.setattr(places, "_SEVERITIES", (3,))
    names = {"__name__": "__main__"}
    shown = [run(source, names) for source in cells(path)]
    assert any(value is not None for value in shown)
    for value in shown:
        if hasattr(value, "_repr_html_"):
            assert "<table" in value._repr_html_()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_results(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
