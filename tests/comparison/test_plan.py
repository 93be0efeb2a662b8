import io
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import yaml

from deft_hf.comparison import plan as module
from deft_hf.comparison.collect import outcome
from deft_hf.comparison.experiment import against
from deft_hf.comparison.plan import Plan, Run
from deft_hf.methods import compose, identity_defaults
from deft_hf.methods import variants as known_variants
from deft_hf.methods.l2_sp import L2SP
from deft_hf.methods.variant import Mix
from deft_hf.runs.arguments import method_arguments
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import COUNTS, FAILURE, HISTORY, METRICS
from deft_hf.utils.places import name_problem

RECIPE = """\
model: {checkpoint: embedded}
method: {name: deft, decoder_warmup_steps: 1, batchnorm_batches: 1}
data:
  labels: streets
  source: [{streets: clear, count: 4, seed: 0, size: [64, 96]}]
  validation: [{streets: clear, count: 2, seed: 1, size: [64, 96]}]
  unseen: [{streets: night, count: 4, seed: 2, size: [64, 96]}]
  image_size: [64, 96]
  crop_size: [64, 64]
training:
  output_dir: out
  max_steps: 4
  per_device_train_batch_size: 2
  per_device_eval_batch_size: 8
  learning_rate: 1e-3
  logging_steps: 1
  save_steps: 2
  use_cpu: true
"""
JOINT = known_variants()["joint"].settings


def write_recipe(folder, **changes):
    """The tiny recipe of these tests, with changes by section; drawn streets, a run of 4 or 5 steps."""
    sections = yaml.safe_load(RECIPE)
    for name, values in changes.items():
        sections[name] |= values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


@pytest.fixture
def plan(tmp_path):
    return Plan(write_recipe(tmp_path), (), tmp_path / "out" / "runs")


def placed(plan, *overrides, settings=JOINT, seed=0, **kwargs):
    """The name of a run's folder."""
    return replace(plan, overrides=overrides).run(settings, seed, **kwargs).folder.name


# ---- what is run


def test_every_variant_is_a_run_whose_arguments_say_what_it_sets(plan):
    plan.check(known_variants())
    for name, variant in known_variants().items():
        recipe = plan.run(variant.settings, 7).recipe
        arguments = method_arguments(recipe, recipe.method.name)
        assert arguments.seed == 7 and arguments.output_dir == str(plan.run(variant.settings, 7).folder)
        for key, value in variant.settings.items():
            section, _, field = key.partition(".")
            field = "method" if key == "method.name" else field
            assert getattr(recipe.data if section == "data" else arguments, field) == value, (name, key)
        assert recipe.method.baselines == []


def test_every_value_that_tuning_tries_is_a_run(plan):
    for name, variant in known_variants().items():
        if variant.tries is not None:
            key, values = variant.tries(1e-3, plan.steps(variant.settings))
            tried = {f"{name} {value}": variant.settings | {key: value} for value in values}
            plan.check({spec: replace(variant, own=settings) for spec, settings in tried.items()})


@pytest.mark.parametrize("recolor, shared", [(False, "deft_no_recolor"), (True, "deft_recolor")])
def test_variants_share_a_run_where_one_is_read_from_the_other_and_nowhere_else(plan, recolor, shared):
    plan = replace(plan, overrides=(f"data.recolor={recolor}",))
    by_folder = {}
    for name, variant in known_variants().items():
        longer = {"training.max_steps": 6} if variant.compute_of else {}
        by_folder.setdefault(plan.run({**variant.settings, **longer}, 0).folder, []).append(name)
    # What the recipe does anyway makes no row of its own.
    same = {name: [name, f"{name}_recolor"] if recolor else [name] for name in ("joint", "lp_ft")}
    soups = {name: [f"{name}_{mix}" for mix in get_args(Mix)] for name in ("joint_ema", "lp_ft_ema", "deft")}
    assert {frozenset(names) for names in by_folder.values() if len(names) > 1} == {
        frozenset({*same["joint"], "joint_ema", *soups["joint_ema"]}),
        frozenset({*same["lp_ft"], "lp_ft_ema", *soups["lp_ft_ema"]}),
        frozenset({"deft", "deft_usual", shared, *soups["deft"]}),
    }
    assert (
        known_variants()["joint"].reading
        == known_variants()["lp_ft"].reading
        == known_variants()["deft_usual"].reading
        == "usual"
    )
    assert {known_variants()[name].reading for name in ("joint_ema", "lp_ft_ema", "deft", shared)} == {"exported"}


LEAKS = (
    "method.average=debiased_ema",
    "method.component=usual",
    "method.distance_weight=0.5",
    "method.decoder_distance_weight=0.25",
    "method.decoder_norm_weight=0.125",
    "method.projection_weight=0.75",
    "method.lora_alpha=3.0",
    "method.lora_init=smallest",
    "method.freeze_embedding=true",
    "method.gradient_projection_rate=0.5",
    "method.mixout_anchor=average",
    "method.mixout_period=3",
    "method.pathways=split",
)
OF_LDT = {"unstable_ratio": 0.4, "variance_steps": 5, "branches": "single"}
WITHOUT_DEFT = {"lora_rank": 4, "mixout_probability": 0.5}  # or not with all of these


def test_what_the_recipe_asks_of_deft_reaches_no_rival(plan):
    rivals = {name: variant for name, variant in known_variants().items() if variant.settings["method.name"] != "deft"}
    assert len(rivals) > 10
    assert {*identity_defaults()} == {leak.partition("=")[0].removeprefix("method.") for leak in LEAKS} | {
        *WITHOUT_DEFT,
        *OF_LDT,
    }
    of_ldt = [f"method.{name}={value}" for name, value in OF_LDT.items()]
    assert placed(plan, *of_ldt, settings=known_variants()["deft"].settings) == placed(
        plan, settings=known_variants()["deft"].settings
    )
    for name, rival in rivals.items():
        for settings in (rival.settings, rival.own):
            others = [f"method.{name}={value}" for name, value in WITHOUT_DEFT.items()]
            found = placed(plan, *LEAKS, *others, *of_ldt, settings=settings)
            assert found == placed(plan, settings=settings), name
    asking = replace(plan, overrides=LEAKS)
    joint = method_arguments(asking.run(known_variants()["joint"].own, 0).recipe, "joint")
    assert (joint.averages, joint.component, compose(joint).get(L2SP)) == (None, "generalized", None)
    assert (joint.decoder_norm_weight, joint.projection_weight) == (0.0, 0.0)
    deft = method_arguments(asking.run(known_variants()["deft"].settings, 0).recipe, "deft")
    assert (deft.averages, deft.component) == ("debiased_ema", "usual")
    assert compose(deft).get(L2SP).weights == {"encoder": 0.5, "decoder": 0.25}
    assert len({placed(plan, leak, settings=known_variants()["deft"].settings) for leak in LEAKS}) == len(LEAKS)


def test_a_rival_has_the_regulariser_that_is_asked_of_itself(plan):
    asked = JOINT | {"method.distance_weight": 0.3}
    run = replace(plan, overrides=("method.distance_weight=0.5",)).run(asked, 0)
    assert compose(method_arguments(run.recipe, "joint")).get(L2SP).weights == {"encoder": 0.3, "decoder": 0.3}


def test_a_recipe_with_baselines_has_runs_of_one_method_each(plan):
    several = replace(plan, overrides=("method.baselines=[joint, frozen, lp_ft]",), curve_points=2)
    several.check(known_variants(), values=True)
    assert several.steps(JOINT) == 4 and several.run({}, 0).recipe.method.baselines == []
    for name, variant in known_variants().items():
        run = several.run(variant.settings, 0, curve=True)
        assert run.recipe.method.baselines == [] and run.folder == plan.run(variant.settings, 0).folder, name


def test_the_runs_of_a_comparison_are_not_pushed(plan):
    pushed = ("publish.push_to_hub=true", "publish.every_save=true", "publish.repo_id=ana/town")
    run = replace(plan, overrides=pushed).run(known_variants()["deft"].settings, 0)
    assert not method_arguments(run.recipe, "deft").push_to_hub and not run.recipe.publish.push_to_hub


# ---- the address


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.output_dir=elsewhere",),
        ("training.eval_strategy=steps", "training.eval_steps=2"),
        ("training.logging_steps=3", "training.logging_strategy=steps"),
        ("training.save_strategy=no",),
        ("training.save_steps=1", "training.save_total_limit=1"),
        ("training.dataloader_num_workers=2", "training.per_device_eval_batch_size=1"),
        ("method.baselines=[lp_ft]", "data.check=true", "data.images_while_training=3"),
        ("publish.license=mit",),
        ("training.seed=9",),  # the plan's seeds are the comparison's
        ("method.name=frozen",),  # the variant says which
        ("method.swa_start=0.5", "data.scale=[0.5, 2.0]"),  # defaults, spelt out
        ("training.learning_rate=0.001", "training.max_steps=4"),
    ],
)
def test_what_makes_no_other_run_leaves_the_address(plan, overrides):
    assert placed(plan, *overrides) == placed(plan)


def test_the_address_does_not_hang_on_order_place_or_spelling(plan, tmp_path):
    overrides = ("training.weight_decay=0.01", "method.ema_decay=0.99")
    assert placed(plan, *overrides) == placed(plan, *overrides[::-1])
    settings = JOINT | {"training.learning_rate": 3e-4}
    assert placed(plan, settings=settings) == placed(plan, settings=dict(reversed(settings.items())))
    assert placed(plan, settings=settings) == placed(plan, "training.learning_rate=3e-4")
    sections = yaml.safe_load(RECIPE)
    turned = {name: dict(reversed(sections[name].items())) for name in reversed(sections)}
    other = tmp_path / "turned.yaml"
    other.write_text(yaml.safe_dump(turned, sort_keys=False))
    assert placed(replace(plan, recipe=str(other), folder=tmp_path / "there")) == placed(plan)


def test_scoring_while_training_is_a_matter_of_looking(plan):
    often = replace(plan, curve_points=2, curve_images=3)
    assert placed(often, curve=True) == placed(plan)
    looked, plain = often.run(JOINT, 0, curve=True).recipe, often.run(JOINT, 0).recipe
    assert (looked.training.eval_strategy, looked.training.eval_steps) == ("steps", 2)
    assert looked.data.images_while_training == 3
    assert plain.training.eval_strategy == "no" and plain.data.images_while_training is None
    assert placed(replace(plan, curve_points=100), curve=True) == placed(plan)  # more points than steps


def test_whatever_else_differs_makes_another_run(plan, monkeypatch):
    runs = [
        placed(plan),
        placed(plan, seed=1),
        placed(plan, settings=known_variants()["deft"].settings),
        placed(plan, settings=JOINT | {"training.max_steps": 5}),
        placed(plan, settings=JOINT | {"method.ema_decay_steps": 40_000}),
        placed(plan, settings={"method.name": "joint"}),
        placed(plan, "training.learning_rate=2e-3"),
        placed(plan, "data.source.0.count=5"),
        placed(plan, "data.source.0.seed=5"),
        placed(plan, "data.unseen.0.streets=fog"),
        placed(plan, "data.crop_size=[48, 64]"),
        placed(plan, "model.config={classifier_dropout_prob: 0.0}"),
    ]
    monkeypatch.setattr(module, "_SAME_NUMBERS_SINCE", "99")
    runs.append(placed(plan))
    assert len({name.rpartition("-")[2] for name in runs}) == len(runs)
    assert runs[1].startswith("joint-s1-") and runs[2].startswith("deft-s0-")


# ---- what is refused


def test_what_a_variant_makes_wrong_is_said_with_its_name(plan):
    wrong = replace(known_variants()["frozen"], own={"method.name": "frozen", "method.average": "ema"})
    with pytest.raises(UserError, match="(?s)^frozen: .*has no average"):
        plan.check({"joint": known_variants()["joint"], "frozen": wrong})
    misspelt = replace(known_variants()["deft"], own={"method.name": "deft", "method.ema_decai": 1.0})
    with pytest.raises(UserError, match="^deft: .*ema_decai.*ema_decay"):
        plan.check({"deft": misspelt})


def test_a_checkpoint_chosen_by_one_component_is_refused(plan):
    chosen = (
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=clear_mean_iou",
        "training.eval_strategy=steps",
        "training.eval_steps=2",
    )
    with pytest.raises(UserError, match="^joint: training.load_best_model_at_end: found true.*last step"):
        replace(plan, overrides=chosen).check({"joint": known_variants()["joint"]})


def test_epochs_do_where_nothing_goes_by_steps(plan):
    epochs = replace(plan, overrides=("training.max_steps=-1", "training.num_train_epochs=2"))
    epochs.check({"joint": known_variants()["joint"]})
    with pytest.raises(UserError, match="training.max_steps: found -1, expected the length in optimizer steps"):
        replace(epochs, curve_points=2).check({"joint": known_variants()["joint"]})
    with pytest.raises(UserError, match="^deft: training.max_steps: found -1.*tuned values go"):
        epochs.check({"deft": known_variants()["deft"]}, values=True)
    with pytest.raises(UserError, match="^joint_equal: training.max_steps: found -1.*equal compute"):
        epochs.check({"joint_equal": known_variants()["joint_equal"]})
    assert plan.steps(JOINT | {"training.max_steps": 9}) == 9


# ---- what lies in a folder


def test_a_run_knows_from_its_folder_what_became_of_it(tmp_path):
    run = Run(None, 0, tmp_path)
    assert not run.done and run.failure is None
    (tmp_path / "failure.json").write_text(json.dumps({"reason": "the loss became nan"}))
    assert run.failure == "the loss became nan"
    (tmp_path / "results").mkdir()
    found = {"scores": {"clear": {"mean_iou": 0.5}}, "usual_scores": {"clear": {"mean_iou": 0.4}}}
    (tmp_path / "results" / "metrics.json").write_text(json.dumps(found))
    assert run.done and run.failure is None
    assert run.scores("exported")["clear"]["mean_iou"] == 0.5
    assert run.scores("usual")["clear"]["mean_iou"] == 0.4


def test_the_usual_component_is_the_exported_one_where_nothing_is_averaged(tmp_path):
    (tmp_path / "results").mkdir()
    found = {"scores": {"clear": {"mean_iou": 0.5}}}
    (tmp_path / "results" / "metrics.json").write_text(json.dumps(found))
    assert Run(None, 0, tmp_path).scores("usual") == found["scores"]


def test_the_recipe_in_the_folder_is_the_runs_own(plan):
    run = plan.run(known_variants()["joint_recolor"].settings, 5)
    run.prepare()
    again = Plan(str(run.folder / "recipe.yaml"), (), plan.folder).run({}, 5)
    assert again.folder == run.folder and again.recipe.data.recolor


# ---- what came of a run


@pytest.fixture
def done(plan):
    """A run that looks finished."""
    run = plan.run(JOINT, 0)
    run.prepare()
    (run.folder / "results").mkdir()
    scores = {"night": {"mean_iou": 0.5}}
    facts = {"scores": scores, "layer_distances": {"exported": {}}, "train_seconds": 1.0}
    (run.folder / METRICS).write_text(json.dumps(facts))
    (run.folder / HISTORY).write_text("[]")
    np.savez_compressed(run.folder / COUNTS, eval_night=np.ones((2, 7, 7), np.int64))
    assert outcome(run, "exported").counts["night"].shape == (2, 7, 7)
    return replace(run)


def saved(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "name, content",
    [
        (METRICS, b""), (METRICS, b"[]"), (METRICS, b"{}"), (METRICS, b'{"scores": {"night": 1}}'),
        (METRICS, b'{"scores": {"night": {"mean_iou": 0.5}}}'), (METRICS, b"\xff"),
        (HISTORY, b"["), (HISTORY, b"5"), (HISTORY, b'["a"]'), (HISTORY, b'[{"eval_night_mean_iou": 1}]'),
        (COUNTS, b""), (COUNTS, b"torn"), (COUNTS, saved(other=np.ones(3))), (COUNTS, saved(eval_night=np.ones(3))),
        (COUNTS, saved(eval_night=np.ones((2, 7, 7), np.int64))[:150]),
        (COUNTS, saved(eval_night=np.array([{}], object))),
    ],
)  # fmt: skip
def test_damaged_results_of_a_run_are_one_message(done, name, content):
    (done.folder / name).write_bytes(content)
    with pytest.raises(UserError, match="remove (it|.*), and it is run again"):
        outcome(done, "exported")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"reason": 5}'])
def test_a_damaged_note_of_a_failure_is_one_message(plan, content):
    run = plan.run(JOINT, 0)
    run.prepare()
    (run.folder / FAILURE).write_text(content)
    with pytest.raises(UserError, match="failure.json: cannot be used .*; remove it, and it is run again"):
        assert run.failure


def test_names_of_baselines_choose_no_folder():
    assert (
        against("deft") == "against_deft" and against("deft:method.average=none") == "against_deft_method.average=none"
    )
    for name in ("joint:model.checkpoint=../../x", "a/b", "x" * 300):
        assert name_problem(against(name)) is None and "/" not in against(name)
