"""A step of both stages on a small DeepLabV3+ gives the figures that a script kept of segmentation_models_pytorch."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("deeplabv3plus_smp", ROOT / "benchmarks" / "deeplabv3plus_smp.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
KEPT = json.loads(script.RESULTS.read_text(encoding="utf-8"))


def test_a_step_of_both_stages_equals_segmentation_models_pytorch():
    *network, side = script.NETWORKS["tiny"]
    model = script.drawn(*network).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states, losses = script.our_steps(model, script.Items(side, torch.float64))
    kept = KEPT["tiny, float64"]
    assert losses == pytest.approx(kept["losses"], rel=1e-5)
    found = script.norms(states, dict.fromkeys(states, before))
    assert found == pytest.approx(kept["changes"], rel=1e-5) and len(found) == 8


def test_every_network_was_compared_and_agreed():
    for name in script.NETWORKS:
        for dtype in ("float32", "float64"):
            apart = KEPT[f"{name}, {dtype}"]["apart"]
            assert max(apart["logits"], apart["losses"], apart["tensors"]) < 1e-5
        assert apart["changes"] < 1e-10
    assert {"torch", "torchvision", "segmentation-models-pytorch", "transformers"} == set(KEPT["versions"])
