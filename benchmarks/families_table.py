"""Put every family of deft_hf through its tests, on tiny random models, and write the table of docs/models.md.

    python benchmarks/families_table.py

Takes two minutes on a CPU. It exits with 1 if a check fails.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
sys.path.insert(0, str(ROOT))

from deft_hf.methods.core.cost import step_flops  # noqa: E402
from deft_hf.methods.core.pathways import DualPathway, Stage  # noqa: E402
from deft_hf.models.families import FAMILIES, resolve_family  # noqa: E402
from tests import tiny  # noqa: E402

BEGIN, END = "<!-- families: written by benchmarks/families_table.py -->", "<!-- /families -->"
TESTS = ("tests/models/test_families.py::TestFamily", "tests/distributed/test_families.py")
CHECKS = {
    "split": ("test_each_parameter_is_in_exactly_one_part",),
    "stitched loss": ("test_equal_components_give_the_familys_own_loss",),
    "gradients": (
        "test_gradients_reach_exactly_the_right_part",
        "test_the_table_lists_exactly_what_gets_no_gradient",
    ),
    "20 steps": ("test_twenty_steps_equal_the_equations",),
    "export": ("test_export_reloads_with_equal_logits",),
    "resume": ("test_resumed_is_bit_equal_to_unbroken",),
    "2 processes": ("test_two_processes_agree",),
}
HEADER = ["family", "encoder", *CHECKS, "cost"]


def main() -> None:
    outcomes = Outcomes()
    pytest.main(["-q", "--rootdir", str(ROOT), *(str(ROOT / test) for test in TESTS)], plugins=[outcomes])
    logging.set_verbosity_error()
    rows = [row(model_type, outcomes.passed) for model_type in sorted(FAMILIES)]
    print(table(rows))
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    sys.exit(any("no" in cells for cells in rows))


class Outcomes:
    """A plugin of pytest that keeps whether each test of a family passed: its setup, its call and its end."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], bool] = defaultdict(lambda: True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, model_type = re.fullmatch(r".*::(\w+)\[(.+)\]", report.nodeid).groups()
        self.passed[test, model_type] &= report.passed


def row(model_type: str, passed: dict[tuple[str, str], bool]) -> list[str]:
    """What was found about a family, a cell for each column of `HEADER`. A test that did not run has not passed."""
    family = resolve_family(tiny.build(model_type))
    cells = ["yes" if all(passed.get((test, model_type)) for test in tests) else "no" for tests in CHECKS.values()]
    return [model_type, ", ".join(f"`{path}`" for path in family.encoders), *cells, cost(model_type)]


def cost(model_type: str) -> str:
    """Floating-point operations of a step of DeFT's second stage over those of a step of joint fine-tuning."""
    return f"{flops(model_type, 'decoupled') / flops(model_type, 'joint'):.2f}"


def flops(model_type: str, stage: Stage) -> int:
    model = tiny.build(model_type)
    pathways = DualPathway(model, resolve_family(model))
    pathways.enter(stage)
    return step_flops(pathways, tiny.with_masks(tiny.batch()))


def table(rows: list[list[str]]) -> str:
    rule = ["---"] * (len(HEADER) - 1) + ["---:"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [HEADER, rule, *rows])


def replaced(text: str, content: str) -> str:
    """`text` with `content` between the markers."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


if __name__ == "__main__":
    main()
