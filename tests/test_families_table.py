"""The README's table of families is what its script writes, and has every family."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch

from deft_hf.method.families import FAMILIES
from deft_hf.method.pathways import DualPathway

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


def test_checks_can_fail(monkeypatch):
    build, family = families_table.models.build, FAMILIES["dpt"]
    assert not families_table.gradients_reach_what_is_trained("dpt", replace(family, never_trained=()))
    half = replace(FAMILIES["segformer"], encoder="segformer.stages")
    monkeypatch.setattr(families_table, "semantic_logits", lambda model, *_: torch.rand(2))
    assert not families_table.export_reloads(build("segformer"), half)
    assert families_table.stitched_loss_is_the_models_own("segformer", half)
    monkeypatch.setattr(DualPathway, "pathway", lambda self, encoder, decoder: torch.nn.Conv2d(3, 7, 1))
    assert not families_table.stitched_loss_is_the_models_own("segformer", half)
    monkeypatch.setattr(type(half), "part_of", lambda self, name: "decoder")
    assert not families_table.split_is_exact(build("segformer"), half)
