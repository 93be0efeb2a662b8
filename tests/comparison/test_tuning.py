"""What tuning chooses, with trainings whose scores are written down by a formula."""

import json

import pytest

from deft_hf.comparison import tuning
from deft_hf.comparison.outcomes import Trial
from deft_hf.comparison.plan import Plan
from deft_hf.comparison.variants import parse_variants
from deft_hf.methods import variants as known_variants
from deft_hf.utils.files import METRICS
from tests.comparison.test_plan import write_recipe

RATE = "training.learning_rate"
RATES = [3e-4, 1e-3, 3e-3]


@pytest.fixture
def plan(tmp_path):
    return Plan(write_recipe(tmp_path), (), tmp_path / "runs")


@pytest.fixture
def trained(monkeypatch):
    """Lets a function of a recipe say the mean IoU by domain, exported and usual; returns what sets it, and runs."""
    ran = []

    def use(score):
        def execute(runs, jobs):
            for run in runs:
                ran.append(run)
                exported, usual = score(run.recipe)
                if exported is not None:
                    facts = {"scores": exported, "usual_scores": usual}
                    facts = {key: {d: {"mean_iou": v} for d, v in by.items()} for key, by in facts.items()}
                    (run.folder / METRICS).parent.mkdir(parents=True, exist_ok=True)
                    (run.folder / METRICS).write_text(json.dumps(facts))
            return {}

        monkeypatch.setattr(tuning, "execute", execute)

    use.runs = ran
    return use


def variants(*names):
    return {name: known_variants()[name] for name in names}


def by_rate(source, unseen=None):
    """Scores that hang on the learning rate alone, the same for both components."""

    def score(recipe):
        rate = recipe.training.learning_rate
        found = {"clear": source[rate], "night": 1 - source[rate] if unseen is None else unseen[rate]}
        return found, found

    return score


def test_the_rate_is_chosen_on_source_validation_and_not_on_what_is_unseen(plan, trained):
    source = dict(zip(RATES, (0.4, 0.6, 0.5), strict=True))
    trained(by_rate(source, unseen=dict(zip(RATES, (0.1, 0.2, 0.9), strict=True))))
    chosen, trials = tuning.tune(plan, variants("joint", "deft"), RATES, False, ["clear"], 1)
    assert chosen == {"joint": {RATE: 1e-3}, "deft": {RATE: 1e-3}}
    assert trials == [
        Trial(name, {RATE: rate}, score, rate == 1e-3) for name in ("joint", "deft") for rate, score in source.items()
    ]


def test_each_row_is_chosen_by_the_component_that_it_reports(plan, trained):
    exported, usual = dict(zip(RATES, (0.9, 0.1, 0.2), strict=True)), dict(zip(RATES, (0.3, 0.4, 0.5), strict=True))

    def score(recipe):
        return {"clear": exported[recipe.training.learning_rate]}, {"clear": usual[recipe.training.learning_rate]}

    trained(score)
    chosen, _ = tuning.tune(plan, variants("joint", "joint_ema"), RATES, False, ["clear"], 1)
    assert chosen == {"joint": {RATE: 3e-3}, "joint_ema": {RATE: 3e-4}}
    assert len({run.folder for run in trained.runs}) == 3  # which both rows are read from


def test_every_method_has_the_same_number_of_trials_at_a_seed_that_is_not_reported(plan, trained):
    trained(by_rate(dict(zip(RATES, (0.4, 0.6, 0.5), strict=True))))
    methods = variants(*[name for name, variant in known_variants().items() if variant.tries])
    chosen, trials = tuning.tune(plan, methods, RATES, True, ["clear"], 1)
    tried = {name: [trial for trial in trials if trial.method == name] for name in methods}
    assert {len(found) for found in tried.values()} == {6}
    assert {run.seed for run in trained.runs} == {run.recipe.training.seed for run in trained.runs} == {tuning.SEED}
    for name, found in tried.items():
        key, values = methods[name].tries(1e-3, plan.steps(methods[name].settings))
        assert [trial.settings for trial in found[:3]] == [{RATE: rate} for rate in RATES]
        assert [trial.settings for trial in found[3:]] == [{RATE: 1e-3, key: value} for value in values]
        assert [trial.chosen for trial in found].count(True) == 2
        assert chosen[name] == {RATE: 1e-3, key: values[0]}  # all the same: the first


def test_the_value_is_chosen_at_the_rate_that_was(plan, trained):
    def score(recipe):
        best = {20_000: 0.1, 80_000: 0.2, 320_000: 0.3}[recipe.method.ema_decay_steps]
        # At the lowest rate another value would be the best, which nobody looks at.
        value = 0.9 - best if recipe.training.learning_rate == 3e-4 else best + (recipe.training.learning_rate == 1e-3)
        return {"clear": value}, {"clear": 0.0}

    trained(score)
    chosen, trials = tuning.tune(plan, variants("deft"), RATES, True, ["clear"], 1)
    assert chosen == {"deft": {RATE: 1e-3, "method.ema_decay_steps": 320_000}}
    assert len(trials) == 3 + 3


def like_deft(recipe):
    """Best at the highest rate and the shortest horizon for DeFT itself; every other method is best at the lowest."""
    rate, horizon = recipe.training.learning_rate, recipe.method.ema_decay_steps
    value = 1e2 * rate + 1e4 / horizon if recipe.method.name == "deft" else 1e-2 - rate
    return {"clear": value}, {"clear": value}


@pytest.mark.parametrize("asked", [("deft",), ()])
def test_a_row_like_another_takes_what_was_chosen_for_that_one(plan, trained, asked):
    trained(like_deft)
    rows = ("joint", "deft_usual", "deft_debiased", "deft_slow", "deft_distance", "joint_recolor")
    chosen, trials = tuning.tune(plan, variants(*asked, *rows), RATES, True, ["clear"], 1)
    best = {RATE: 3e-3, "method.ema_decay_steps": 20_000}
    joint = {RATE: 3e-4, "method.encoder_learning_rate": 3e-5}
    assert chosen == {name: best for name in asked} | {
        "joint": joint,
        "deft_usual": best,
        "deft_debiased": best,
        "deft_slow": {RATE: 3e-3},  # whose horizon is what it is about
        "deft_distance": best,
        "joint_recolor": joint,
    }
    assert {trial.method for trial in trials} == {"joint", "deft"}
    assert len(trials) == len(trained.runs) == 2 * 6
    tried = [run.recipe for run in trained.runs if run.recipe.method.name == "deft"]
    assert {(recipe.method.average, recipe.method.distance_weight) for recipe in tried} == {(None, 0.0)}


def test_what_a_name_sets_is_left_at_that(plan, trained):
    trained(like_deft)
    own = parse_variants(
        "deft:method.ema_decay_steps=40000,deft_encoder_only:training.learning_rate=2e-3,"
        "l2_sp:method.distance_weight=0.5,spd:training.learning_rate=5e-4"
    )
    chosen, trials = tuning.tune(plan, own, RATES, True, ["clear"], 1)
    value = {"method.projection_weight": 0.3}
    assert [*chosen.values()] == [{RATE: 3e-3}, {"method.ema_decay_steps": 20_000}, {RATE: 3e-4}, value]
    tried = [len([trial for trial in trials if trial.method == name]) for name in own]
    assert tried == [3, 0, 3, 1 + 3]  # and six for deft, which deft_encoder_only is tuned as
    for name, variant in own.items():
        recipe = plan.run({**variant.settings, **chosen[name]}, 0).recipe
        key, _, value = name.partition(":")[2].partition("=")
        section, _, field = key.partition(".")
        assert getattr(getattr(recipe, section), field) == float(value)


def test_equal_compute_is_tuned_as_what_it_is_compared_with(plan, trained):
    trained(by_rate(dict(zip(RATES, (0.4, 0.6, 0.5), strict=True))))
    chosen, trials = tuning.tune(plan, variants("joint_equal", "lp_ft_equal"), RATES, True, ["clear"], 1)
    assert chosen["joint_equal"] == {RATE: 1e-3, "method.encoder_learning_rate": 1e-4}
    assert chosen["lp_ft_equal"] == {RATE: 1e-3, "method.decoder_warmup_steps": 1}
    assert {trial.method for trial in trials} == {"joint", "lp_ft"}
    assert {run.recipe.training.max_steps for run in trained.runs} == {4}


def test_a_trial_is_scored_on_source_data_alone_and_is_the_run_that_it_was_before(plan, trained):
    trained(by_rate(dict(zip(RATES, (0.4, 0.6, 0.5), strict=True))))
    tuning.tune(plan, variants("deft"), RATES, True, ["clear"], 1)
    assert len(trained.runs) == 6
    assert not [run for run in trained.runs if run.recipe.data.unseen]
    whole = plan.run({**known_variants()["deft"].settings, RATE: 1e-3}, tuning.SEED)
    assert whole.recipe.data.unseen and whole.folder in {run.folder for run in trained.runs}


def test_a_rate_that_a_name_sets_in_yamls_spelling_is_a_number_for_the_values(plan, trained):
    trained(lambda recipe: ({"clear": 0.5}, {"clear": 0.5}))
    chosen, trials = tuning.tune(plan, parse_variants(f"joint:{RATE}=5e-4"), RATES, True, ["clear"], 1)
    assert [trial.settings.get("method.encoder_learning_rate") for trial in trials] == [None, 5e-5, 1.5e-4, 5e-4]


@pytest.mark.parametrize("own, tried", [((), RATES), (("method.decoder_learning_rate=2e-3",), [5e-4])])
def test_rates_are_not_searched_where_they_move_nothing(tmp_path, trained, own, tried):
    trained(lambda recipe: ({"clear": 0.5}, {"clear": 0.5}))
    plan = Plan(write_recipe(tmp_path), (*own, f"{RATE}=5e-4"), tmp_path / "runs")
    _, trials = tuning.tune(plan, variants("frozen", "lp_ft"), RATES, False, ["clear"], 1)
    by_method = {name: [t.settings[RATE] for t in trials if t.method == name] for name in ("frozen", "lp_ft")}
    assert by_method == {"frozen": tried, "lp_ft": RATES}


def test_several_source_domains_weigh_the_same(plan, trained):
    found = {3e-4: {"clear": 0.9, "dusk": 0.1}, 1e-3: {"clear": 0.6, "dusk": 0.5}, 3e-3: {"clear": 0.2, "dusk": 0.8}}
    trained(lambda recipe: (found[recipe.training.learning_rate],) * 2)
    chosen, trials = tuning.tune(plan, variants("deft"), RATES, False, ["clear", "dusk"], 1)
    assert chosen == {"deft": {RATE: 1e-3}}
    assert [trial.source_mean_iou for trial in trials] == pytest.approx([0.5, 0.55, 0.5])


def test_a_trial_that_came_to_nothing_is_listed_and_not_chosen(plan, trained):
    def score(recipe):
        diverged = recipe.method.name == "joint" or recipe.training.learning_rate > 5e-4
        return (None, None) if diverged else ({"clear": 0.0}, {"clear": 0.0})

    trained(score)
    chosen, trials = tuning.tune(plan, variants("joint", "deft"), RATES[::-1], False, ["clear"], 1)
    assert chosen["deft"] == {RATE: 3e-4}  # though its score is nothing
    assert [(trial.source_mean_iou, trial.chosen) for trial in trials if trial.method == "deft"] == [
        (None, False), (None, False), (0.0, True),
    ]  # fmt: skip
    assert chosen["joint"] == {RATE: 3e-3}  # all failed: the first that was tried
