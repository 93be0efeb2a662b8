"""Check every family of deft_hf on a tiny random model, and write what was found into the README's table.

    python benchmarks/families_table.py

Takes a minute on a CPU. It exits with 1 if a check fails.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deft_hf.method.cost import step_flops  # noqa: E402
from deft_hf.method.families import FAMILIES, Objective, SegmentationFamily, resolve_family  # noqa: E402
from deft_hf.method.pathways import DualPathway, Stage  # noqa: E402
from deft_hf.scoring.inference import semantic_logits  # noqa: E402
from tests import models  # noqa: E402

BEGIN, END = "<!-- families: written by benchmarks/families_table.py -->", "<!-- /families -->"
CHECKS = ("split", "stitched loss", "gradients", "export reloads")
HEADER = ["family", "encoder", *CHECKS, "cost of DeFT / joint"]


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for model_type in sorted(FAMILIES):
        rows.append(row(model_type))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    sys.exit(any("no" in found for found in rows))


def row(model_type: str) -> list[str]:
    """What was found about a family, a cell for each column of `HEADER`."""
    family = resolve_family(models.build(model_type))
    checks = [
        split_is_exact(models.build(model_type), family),
        stitched_loss_is_the_models_own(model_type, family),
        gradients_reach_what_is_trained(model_type, family),
        export_reloads(models.build(model_type), family),
    ]
    flops = {
        stage: step_flops(pathways(model_type, family, stage), batch(model_type)) for stage in ("decoupled", "joint")
    }
    cost = f"{flops['decoupled'] / flops['joint']:.2f}"
    encoder = ", ".join(f"`{path}`" for path in family.encoders)
    return [model_type, encoder, *("yes" if passed else "no" for passed in checks), cost]


def batch(model_type: str) -> dict:
    """A batch for a family."""
    return models.with_masks(models.batch())


def pathways(model_type: str, family: SegmentationFamily, stage: Stage) -> DualPathway:
    both = DualPathway(models.build(model_type), family)
    both.enter(stage)
    return both


def split_is_exact(model: nn.Module, family: SegmentationFamily) -> bool:
    """Every parameter is in one part, and both parts have some."""
    encoder = {id(parameter) for path in family.encoders for parameter in model.get_submodule(path).parameters()}
    parts = {"encoder": set(), "decoder": set()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts[family.part_of(name)].add(id(parameter))
    return parts["encoder"] == encoder and bool(parts["decoder"]) and not parts["encoder"] & parts["decoder"]


def stitched_loss_is_the_models_own(model_type: str, family: SegmentationFamily) -> bool:
    """While both components are one, each pathway has the loss of the unstitched model."""
    losses = {}
    for stage in ("joint", "decoupled"):
        both = pathways(model_type, replace(family, objective=Seeded(family.objective)), stage).eval()
        both.training = True  # losses, but no dropout
        losses |= both(**batch(model_type))
    own = losses["joint_loss"]
    return all(torch.allclose(losses[f"{part}_loss"], own, rtol=1e-6) for part in ("encoder", "decoder"))


class Seeded:
    """An objective whose losses all draw the same random numbers, for those that sample points."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def loss(self, *args: Any) -> Tensor:
        torch.manual_seed(0)
        return self.objective.loss(*args)


def gradients_reach_what_is_trained(model_type: str, family: SegmentationFamily) -> bool:
    """One backward gives a gradient to every trained parameter of the usual component and to nothing else."""
    both = pathways(model_type, family, "decoupled").train()
    torch.manual_seed(0)
    both(**batch(model_type))["loss"].backward()
    reached = {name for name, parameter in both.usual.named_parameters() if parameter.grad is not None}
    trained = {name for name, _ in both.usual.named_parameters() if family.is_trained(name)}
    return reached == trained and all(parameter.grad is None for parameter in both.generalized.parameters())


def export_reloads(model: nn.Module, family: SegmentationFamily) -> bool:
    """The saved folder opens through the Auto class of its kind, with equal logits."""
    autos = (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation)
    auto = next(auto for auto in autos if type(model.config) in auto._model_mapping)
    images = models.batch()["pixel_values"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.eval().save_pretrained(folder)
        again = auto.from_pretrained(folder, dtype=torch.float32).eval()
        found, expected = (semantic_logits(m, family, images, (models.SIDE, models.SIDE)) for m in (again, model))
    return type(again) is type(model) and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


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
