"""The README's table of families is what its script writes, and has every family."""

import importlib.util
from pathlib import Path

from deft_hf.method.families import FAMILIES

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("families_table", ROOT / "benchmarks" / "families_table.py")
families_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families_table)


def test_the_readme_has_a_row_that_passed_for_every_family():
    text = (ROOT / "README.md").read_text()
    _, rest = text.split(families_table.BEGIN)
    header, _, *rows = rest.split(families_table.END)[0].strip().splitlines()
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in rows}
    assert header.strip("| ").split(" | ") == families_table.HEADER
    assert sorted(cells) == sorted(FAMILIES), "run benchmarks/families_table.py"
    assert all(row[2:6] == ["yes"] * 4 and 4 / 3 < float(row[6]) < 1.7 for row in cells.values())
    # One of them anew: the table is not typed.
    assert cells["segformer"] == families_table.row("segformer")


def test_a_check_that_fails_says_no(monkeypatch):
    whole = families_table.models.build
    family = FAMILIES["segformer"]
    monkeypatch.setitem(FAMILIES, "segformer", type(family)("segformer", ("decode_head.classifier.*",)))
    found = dict(zip(families_table.HEADER, families_table.row("segformer"), strict=True))
    assert found["gradients"] == "yes" and found["split"] == "yes"  # frozen by the table, and so it is
    monkeypatch.setattr(families_table.models, "build", lambda kind: whole(kind).requires_grad_(True))
    monkeypatch.setattr(type(family), "part_of", lambda self, name: "decoder")
    assert dict(zip(families_table.HEADER, families_table.row("segformer"), strict=True))["split"] == "no"
