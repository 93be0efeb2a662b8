"""Folders of runs that were made before still belong to the same recipes."""

from pathlib import Path

import pytest

from deft_hf.comparison.plan import Plan, address
from deft_hf.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
# Streets in the place of data that is not here.
DRAWN = (
    "data.root=null",
    "data.labels=streets",
    "data.source=[{streets: clear, count: 8, weight: '1e0'}, {streets: dusk, count: 8, weight: 2}]",
    "data.validation=[{streets: clear, count: 4, seed: '1'}]",
    "data.unseen=[{streets: fog, count: 4}, {streets: clear, count: 4, seed: 1, corruption: snow, severity: 3}]",
)
METHOD = (
    "method.ema_decay=.999",
    "method.ema_decay_steps=1e4",
    "method.decoder_learning_rate='2e-3'",
    "method.component=usual",
    "method.distance_weight=0",
    "method.evaluate_usual=yes",
)
TRAINING = (
    "training.eval_strategy=no",
    "training.warmup_steps=10",
    "training.fp16=no",
    "training.adam_beta2=.99",
    "training.lr_scheduler_kwargs={power: 9e-1, steps: [1e3]}",
    "training.report_to=[tensorboard]",
    "training.neftune_noise_alpha=5",
    "training.accelerator_config={split_batches: false, even: 1e-1}",
    "training.ddp_timeout='1e3'",
    "training.debug=underflow_overflow",
)
PINNED = [
    ("quickstart", (), "9c30d5f76c9f"),
    ("quickstart", ("training.bf16=no",), "9c30d5f76c9f"),
    ("quickstart", METHOD, "c7c7fbe35818"),
    ("quickstart", TRAINING, "62512d7929a3"),
    ("street7_mobilenetv2", (*DRAWN, "model.checkpoint=a/b"), "4d3a9d28d010"),
    ("gtav_segformer_b0", (*DRAWN, *METHOD), "b223161f472c"),
    ("gtav_mask2former_swin_tiny", DRAWN, "b873804722d8"),
    ("gtav_upernet_dinov2", (*DRAWN, *TRAINING), "e2cd098a2c25"),
    ("gtav_deeplabv3plus_mobilenetv2", (*DRAWN, *METHOD, *TRAINING), "11dc8860ffa0"),
]


@pytest.mark.parametrize(("name", "overrides", "pinned"), PINNED)
def test_addresses_are_as_they_were(name: str, overrides: tuple[str, ...], pinned: str):
    assert address(Recipe.load(RECIPES / f"{name}.yaml", overrides)) == pinned


def test_the_address_of_a_rivals_run(tmp_path: Path):
    settings = {"method.name": "joint", "training.learning_rate": 3e-4, "method.distance_weight": 0.1}
    run = Plan(str(RECIPES / "quickstart.yaml"), METHOD, tmp_path, curve_points=4).run(settings, 3, curve=True)
    assert run.folder.name == "joint-s3-9d970b6c57a3"
