"""The documentation's table of families is what its script writes, and has every family and every check."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

from deft_hf.models.families import FAMILIES
from tests.distributed import test_families as two_processes
from tests.models.test_families import TestFamily as Family

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("families_table", ROOT / "benchmarks" / "families_table.py")
families_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families_table)


def test_the_table_has_a_row_that_passed_for_every_family():
    text = families_table.PAGE.read_text(encoding="utf-8")
    _, rest = text.split(families_table.BEGIN)
    header, _, *rows = rest.split(families_table.END)[0].strip().splitlines()
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in rows}
    assert header.strip("| ").split(" | ") == families_table.HEADER
    assert sorted(cells) == sorted(FAMILIES), "run benchmarks/families_table.py"
    assert all(set(row[2:-1]) == {"yes"} and 4 / 3 < float(row[-1]) < 1.7 for row in cells.values())
    assert cells["segformer"][-1] == families_table.cost("segformer")  # anew: the table is not typed


def test_every_test_of_a_family_is_in_a_column():
    tests = [name for cls in (Family, two_processes) for name in vars(cls) if name.startswith("test_")]
    assert sorted(tests) == sorted(name for names in families_table.CHECKS.values() for name in names)


def test_a_check_that_failed_or_did_not_run_is_a_no():
    outcomes = families_table.Outcomes()
    names = [name for names in families_table.CHECKS.values() for name in names]
    for name in names[:-1]:
        for phase in ("setup", "call", "teardown"):
            passed = not (phase == "call" and "twenty" in name)
            report = SimpleNamespace(nodeid=f"tests/a.py::TestFamily::{name}[data2vec-vision]", passed=passed)
            outcomes.pytest_runtest_logreport(report)
    found = dict(zip(families_table.HEADER, families_table.row("data2vec-vision", outcomes.passed), strict=True))
    assert {name for name, cell in found.items() if cell == "no"} == {"20 steps", "2 processes"}
