"""`python -m deft_hf.compare`, from Python and from the command line, killed and restarted."""

import contextlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import deft_hf.compare as module
from deft_hf import train
from deft_hf.comparison import collect, cost, experiment, jobs, tuning
from deft_hf.comparison.checks import check_request
from deft_hf.comparison.jobs import execute
from deft_hf.comparison.outcomes import Comparison, Trial
from deft_hf.comparison.plan import Plan
from deft_hf.comparison.variants import parse_variants
from deft_hf.data.domains import Domain
from deft_hf.methods import variants as known_variants
from deft_hf.recipe import Recipe
from deft_hf.runs import places
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.data import load_domains
from deft_hf.runs.provenance import Origin, git_state
from deft_hf.runs.train import train_method
from deft_hf.utils.errors import UserError
from tests import processes
from tests.comparison.test_plan import write_recipe

ROOT = Path(module.__file__).parents[1]
DIVERGES = "deft:training.optim=sgd:training.learning_rate=1e30"
METHODS = ["joint", "joint_ema", "deft", DIVERGES]
OPTIONS = ["recipe.yaml", "--curve-points", "2", "--no-costs"]
WHOLE = [*OPTIONS, "--methods", ",".join(METHODS), "--seeds", "2", "--jobs", "2", "--baseline", "joint,deft"]
SMALL = [*OPTIONS, "--methods", "joint,deft", "--seeds", "1"]
RATES = ["method.encoder_learning_rate=1e-4", "method.decoder_learning_rate=1e-3"]
EPOCHS = ["training.max_steps=-1", "training.num_train_epochs=1"]
REPORT = ["README.md", "table.md", "comparison.json"]
AGAINST = [f"against_deft/{name}" for name in REPORT]
# What `deft_hf.train` would train beside DeFT, and a regulariser that a comparison is to keep from its rivals.
METHOD = {"baselines": ["lp_ft"], "distance_weight": 0.5}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in every run, whatever the machine has: sums of floats then round alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes.start_server()
        yield


@pytest.fixture(scope="module")
def finished(one_thread, tmp_path_factory):
    """A comparison that came to its end, what it wrote, and what it wrote and gave when it was asked for again."""
    place = tmp_path_factory.mktemp("finished")
    write_recipe(place, method=METHOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        module.main(WHOLE)
        first, trained = report(place, REPORT + AGAINST), touched(place)
        processes.shorten(patch)
        found = experiment.compare(
            "recipe.yaml",
            ",".join(METHODS),
            seeds=(0, 1),
            baselines=("joint", "deft"),
            curve_points=2,
            costs=False,
            command=f"python -m deft_hf.compare {shlex.join(WHOLE)}",
        )
        second = report(place, REPORT + AGAINST)
        assert touched(place) == trained
        module.main(SMALL)  # of which every run is there
        assert touched(place) == trained
    return SimpleNamespace(place=place, first=first, second=second, comparison=found, small=report(place))


def report(place, names=REPORT):
    return {name: (place / "out" / name).read_bytes() for name in names}


def touched(place):
    """When which file of a run was last written."""
    return {path: path.stat().st_mtime_ns for path in sorted((place / "out" / "runs").rglob("*")) if path.is_file()}


def folder_of(place, start):
    (found,) = (place / "out" / "runs").glob(f"{start}-*")
    return found


def alone(place, folder, seed):
    """Scores of plain joint, trained by what `deft_hf.train` calls."""
    overrides = [f"training.seed={seed}", f"training.output_dir={folder}"]
    recipe = Recipe.load(place / "recipe.yaml", [*overrides, "method.name=joint", "method.distance_weight=0"])
    args, domains = method_arguments(recipe, "joint"), load_domains(recipe.data)
    train_method(args, recipe.model, recipe.data, domains, Origin.of(recipe))
    return json.loads((folder / "results" / "metrics.json").read_text())["scores"]


def mean_iou(counts):
    """Of a confusion matrix: the mean over classes that are there or predicted."""
    true, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    return float(np.mean(true[union > 0] / union[union > 0]))


# ---- what comes of it


def test_places_without_labels_are_looked_at_without_another_run(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.place, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(places, "_SEVERITIES", (3,))
    monkeypatch.setattr(places, "CORRUPTIONS", ("fog", "contrast"))
    drawn = Domain.from_streets("night", count=3, seed=7, size=(64, 96))
    drawn.dataset.save_to_disk("saved")
    Path("client").mkdir()
    for index in range(3):
        drawn.load(index)[0].save(f"client/{index}.png")
    unseen = [
        {"streets": "night", "count": 4, "seed": 2, "size": [64, 96]},
        {"folder": "client", "labels": "none"},
        {"hub": "saved", "split": "train", "labels": "none"},
    ]
    trained = touched(Path())
    found = experiment.compare(
        "recipe.yaml", "joint,deft", seeds=(0,), curve_points=2, costs=False, overrides=[f"data.unseen={unseen}"]
    )
    assert touched(Path()) == trained
    assert found.unseen == ["night"] and found.places.keys() == {"client", "saved"}
    client, saved = found.places["client"], found.places["saved"]
    assert client.images == 3 and client.shares.keys() == {"joint", "deft"}
    assert saved.shares == client.shares and saved.estimates["deft"][0].keys() == client.estimates["deft"][0].keys()
    text = Path("out/README.md").read_text()
    assert "### client, 3 images" in text and "### saved, 3 images" in text and "estimated mean IoU" in text
    assert Path("out/to_label/saved.txt").read_text().split()[0].startswith("00000")
    assert Path("out/figures/places/client.png").is_file()


SOUPS = "joint,deft,deft_soup,deft_greedy_soup,deft_revt,joint_ema_soup"


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of the finished comparison, to go on in."""
    shutil.copytree(finished.place, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    processes.shorten(monkeypatch)
    return Path()


def again(methods, seeds=(0, 1), **options):
    return experiment.compare("recipe.yaml", methods, seeds=seeds, curve_points=2, costs=False, **options)


def made(mix, seed=0):
    """The weights of a soup of DeFT, the facts of it, and the weights that it is made of."""
    (folder,) = Path("out/soups").glob(f"deft-{mix}-s{seed}-*")
    facts = json.loads((folder / "results" / "metrics.json").read_text())
    weights = [load_file(Path("out/runs", name, "model.safetensors")) for name in facts["made_of"]]
    return load_file(folder / "model.safetensors"), facts, weights


def test_soups_are_made_of_the_runs_that_are_there(copied):
    trained = touched(copied)
    found = again(SOUPS)
    assert touched(copied) == trained
    assert {name: list(by_seed) for name, by_seed in found.outcomes.items()} == {
        "joint": [0, 1], "deft": [0, 1], "deft_soup": [0], "deft_greedy_soup": [0], "deft_revt": [0, 1],
        "joint_ema_soup": [0],
    }  # fmt: skip
    soup, facts, (one, two) = made("soup")
    parameters = {name for name in soup if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert 0 < len(parameters) < len(soup) and facts["batchnorm_batches"] == 1 and facts["seeds"] == [0, 1]
    for name in soup:
        mean = torch.equal(soup[name], (one[name] + two[name]) / 2)
        assert mean if name in parameters else not torch.equal(soup[name], one[name]) or "num" in name, name
    for seed in (0, 1):
        shared, facts, weights = made("revt", seed)
        head = {name for name in parameters if name.startswith("decode_head")}
        assert head and all(torch.equal(shared[name], weights[seed][name]) for name in head)
        assert all(torch.equal(shared[name], soup[name]) for name in parameters - head)
    _, facts, _ = made("greedy_soup")
    alone = [found.outcomes["deft"][seed].scores["clear"]["mean_iou"] for seed in (0, 1)]
    greedy = found.outcomes["deft_greedy_soup"][0].scores["clear"]["mean_iou"]
    assert (greedy == max(alone)) if len(facts["seeds"]) == 1 else (greedy >= max(alone))
    text = Path("out/README.md").read_text()
    assert "| 1, made of 2 |" in text and "| 2, made of 2 |" in text and "Without a result" not in text
    assert "`joint_ema_soup`: made of the models of all seeds, without training" in text

    before = {path: path.stat().st_mtime_ns for path in Path("out/soups").rglob("*")}
    assert again(SOUPS).outcomes.keys() == found.outcomes.keys()
    assert {path: path.stat().st_mtime_ns for path in Path("out/soups").rglob("*")} == before


def test_the_soup_of_one_seed_is_its_model_and_scores_as_that_did(copied):
    found = again("joint,deft,deft_soup,deft_revt", seeds=(1,))
    for mix in ("soup", "revt"):
        soup, facts, (member,) = made(mix, 1)
        assert facts["batchnorm_batches"] == 0 and soup.keys() == member.keys()
        assert all(torch.equal(value, member[name]) for name, value in soup.items())
        one, other = found.outcomes["deft"][1], found.outcomes[f"deft_{mix}"][1]
        assert one.scores == other.scores
        assert all(np.array_equal(one.counts[domain], other.counts[domain]) for domain in ("clear", "night"))


def test_a_soup_without_a_member_is_one_line_and_nothing_is_trained(copied):
    of_none = DIVERGES.replace("deft:", "deft_soup:")
    trained = touched(copied)
    found = again(f"joint,{of_none}")
    assert touched(copied) == trained and not found.outcomes[of_none]
    assert "made of the runs of all seeds, of which 0, 1 has no result" in Path("out/table.md").read_text()

    (folder,) = (path for path in Path("out/runs").glob("joint-s1-*"))
    (folder / "model.safetensors").unlink()
    found = again("joint,joint_ema_soup")
    assert not found.outcomes["joint_ema_soup"]
    assert "its model is gone; remove the folder, and it is run again" in Path("out/table.md").read_text()


@pytest.mark.parametrize(
    "methods, options, message",
    [
        ("joint,deft_soup", {"baselines": ["deft_soup"]}, "baselines: found deft_soup, which is made of the runs"),
        (
            "joint,deft_greedy_soup",
            {"overrides": ["data.validation=[]"]},
            "deft_greedy_soup: data.validation is missing, expected source data",
        ),
    ],
)
def test_what_soups_cannot_be_is_said_before_anything_is_trained(tmp_path, monkeypatch, methods, options, message):
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        again(methods, **options)
    assert not Path("out").exists()


def test_a_comparison_has_every_method_at_every_seed(finished):
    found = finished.comparison
    assert isinstance(found, Comparison)
    assert (found.seeds, found.source, found.unseen, found.baseline) == ([0, 1], ["clear"], ["night"], "joint")
    assert list(found.outcomes) == list(found.settings) == list(found.notes) == METHODS
    assert {name: sorted(by_seed) for name, by_seed in found.outcomes.items()} == {
        "joint": [0, 1], "joint_ema": [0, 1], "deft": [0, 1], DIVERGES: [],
    }  # fmt: skip
    assert found.settings[DIVERGES]["training.optim"] == "sgd"
    assert found.settings["joint"] == {"method.name": "joint"}  # another row is read from its run, which is no matter
    names = sorted(path.name.rsplit("-", 1)[0] for path in (finished.place / "out" / "runs").iterdir())
    assert names == ["deft-s0", "deft-s0", "deft-s1", "deft-s1", "joint-s0", "joint-s1"]  # and none of joint_ema
    different = [found.outcomes[name][seed].scores for name in ("joint", "joint_ema", "deft") for seed in (0, 1)]
    assert all(a != b for place, a in enumerate(different) for b in different[:place])


# At seed 0 the comparison looks at the run while it trains, which must not change it.
@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("seed", [0, 1])
def test_joint_read_from_its_averaged_run_is_joint(finished, tmp_path, seed):
    assert finished.comparison.outcomes["joint"][seed].scores == alone(finished.place, tmp_path / "alone", seed)


def test_deft_has_what_the_recipe_asks_for_and_joint_does_not(finished):
    recipes = [Recipe.load(folder_of(finished.place, start) / "recipe.yaml") for start in ("joint-s0", "joint-s1")]
    recipes += [Recipe.load(path) for path in (finished.place / "out" / "runs").glob("deft-*/recipe.yaml")]
    assert [recipe.method.distance_weight for recipe in recipes] == [0.0] * 2 + [0.5] * 4
    assert not any(recipe.method.baselines for recipe in recipes)


def test_counts_by_image_sum_to_the_scores(finished):
    for name in ("joint", "joint_ema", "deft"):
        for outcome in finished.comparison.outcomes[name].values():
            assert [len(outcome.counts[domain]) for domain in ("clear", "night")] == [2, 4]
            for domain, counts in outcome.counts.items():
                found = outcome.scores[domain]["mean_iou"]
                assert found == pytest.approx(mean_iou(counts.sum(0)), abs=1e-12) and 0 < found < 1


def test_only_the_first_seed_has_a_curve(finished):
    outcomes = finished.comparison.outcomes
    assert {name: {seed: sorted(found.curve) for seed, found in outcomes[name].items()} for name in outcomes} == {
        "joint": {0: [2, 4], 1: []}, "joint_ema": {0: [2, 4], 1: []}, "deft": {0: [2, 4, 5], 1: []}, DIVERGES: {},
    }  # fmt: skip
    assert outcomes["joint"][0].curve != outcomes["joint_ema"][0].curve


def test_a_curve_is_of_thinned_domains_and_the_scores_are_not(finished, tmp_path):
    plan = Plan(str(finished.place / "recipe.yaml"), (), tmp_path / "runs", curve_points=2, curve_images=2)
    run = plan.run(known_variants()["joint"].settings, 1, curve=True)
    assert execute([run], jobs=1) == {}
    for reading in ("exported", "usual"):
        found = collect.outcome(run, reading)
        # The last point is of the finished model, on every other of four images, and on both of two.
        thinned = {"clear": found.counts["clear"].sum(0), "night": found.counts["night"][::2].sum(0)}
        assert found.curve[4] == pytest.approx({domain: mean_iou(counts) for domain, counts in thinned.items()})
        assert found.curve[4]["night"] != pytest.approx(found.scores["night"]["mean_iou"])
        assert len(found.counts["night"]) == 4
    assert run.folder.name == folder_of(finished.place, "joint-s1").name


def test_layers_have_moved_and_the_average_less(finished):
    usual, average = (finished.comparison.outcomes[name][0].distances for name in ("joint", "joint_ema"))
    assert usual.keys() == average.keys() and len(usual) > 20
    assert all(0 < average[layer] < usual[layer] for layer in usual)


def test_a_run_that_diverges_is_reported_and_the_others_come_through(finished):
    failures = finished.comparison.failures
    assert [(failure.method, failure.seed) for failure in failures] == [(DIVERGES, 0), (DIVERGES, 1)]
    for failure in failures:
        assert failure.reason.startswith("TrainingDiverged: ") and " became nan between steps" in failure.reason
    page = finished.first["README.md"].decode()
    assert f"Without a result: `{DIVERGES}`, seeds 0, 1: TrainingDiverged: " in page
    assert "| joint |" in page and "| deft |" in page and "0 of 2" in page


def test_the_page_tells_each_method_by_what_it_differs_in(finished):
    lines = finished.first["README.md"].decode().splitlines()
    assert f'* `joint`: {known_variants()["joint"].note}. `method.name="joint"`' in lines
    (averaged,) = [line for line in lines if line.startswith("* `joint_ema`: ")]
    assert averaged.endswith('`method.name="joint"`, `method.average="ema"`, `method.evaluate_usual=true`')


def test_each_baseline_has_a_page(finished):
    pages = [json.loads(finished.first[f"{place}comparison.json"]) for place in ("", "against_deft/")]
    assert [page["baseline"] for page in pages] == ["joint", "deft"] and finished.comparison.baseline == "joint"
    (joint, deft), key = pages, "unseen mean"
    there, back = joint["methods"]["deft"]["differences"][key], deft["methods"]["joint"]["differences"][key]
    assert there["by_seed"] == {seed: -value for seed, value in back["by_seed"].items()} and any(there["by_seed"])
    assert joint["methods"]["joint"]["differences"] == deft["methods"]["deft"]["differences"] == {}
    ways = ("baseline", "methods")
    assert {k: v for k, v in joint.items() if k not in ways} == {k: v for k, v in deft.items() if k not in ways}
    assert "| difference to deft, over seeds |" in finished.first["against_deft/table.md"].decode()
    assert "| difference to joint, over seeds |" in finished.first["table.md"].decode()
    figures = [
        sorted(path.name for path in (finished.place / "out" / p / "figures").iterdir()) for p in (".", "against_deft")
    ]
    assert figures[0] == figures[1] and "differences.png" in figures[0]


def test_the_same_again_trains_nothing_and_writes_the_same_bytes(finished):
    assert finished.second == finished.first  # the fixture has seen that no file of a run was touched
    assert finished.small["README.md"] != finished.first["README.md"]


def test_a_finished_run_leaves_no_checkpoint(finished):
    assert not list((finished.place / "out").rglob("checkpoint-*"))
    assert {path.name for path in folder_of(finished.place, "joint-s0").iterdir()} == {
        ".lock", "config.json", "log.txt", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "results",
    }  # fmt: skip


def test_costs_stand_in_the_report(finished, monkeypatch):
    figures = {
        "joint": {"seconds": 1.0, "memory": 10, "flops": 100},
        "deft": {"seconds": 1.5, "memory": 12, "flops": 163},
    }

    def measured(run, plan, folder):
        assert folder == Path("out/costs") and run.recipe.method.average is None
        return {**figures[run.recipe.method.name], "joint_seconds": 1.0}

    monkeypatch.chdir(finished.place)
    monkeypatch.setattr(cost, "_measured", measured)
    found = experiment.compare("recipe.yaml", "joint,deft", seeds=1)
    assert {name: (c.time, c.memory, c.flops) for name, c in found.costs.items()} == {
        "joint": (1.0, 1.0, 1.0), "deft": (1.5, 1.2, 1.63),
    }  # fmt: skip
    assert "| 1.50 | 1.20 |" in Path("out/table.md").read_text()


# ---- which runs


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The runs that a comparison would train; it trains none."""
    found = []

    def execute(runs, jobs):
        found.extend(runs)
        return {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "execute", execute)
    write_recipe(tmp_path)
    return found


def test_equal_compute_is_run_at_its_length(asked):
    names = "joint,joint_equal,lp_ft_equal,deft"
    found = experiment.compare("recipe.yaml", names, seeds=1, costs=False)
    plan = Plan("recipe.yaml", (), Path("out/runs"))
    variants = cost.with_equal_compute(plan, parse_variants(names))
    assert [run.folder for run in asked] == [plan.run(variant.settings, 0).folder for variant in variants.values()]
    steps = {run.folder.name.split("-")[0]: run.recipe.training.max_steps for run in asked[1:]}
    assert 4 == steps["deft"] < steps["lp_ft"] < steps["joint"] == found.settings["joint_equal"]["training.max_steps"]


def test_a_page_against_a_method_with_settings_of_its_own(asked, capsys):
    slow = "deft:method.ema_decay_steps=40000"
    found = experiment.compare("recipe.yaml", f"joint,{slow}", seeds=1, baselines=[slow, "joint"], costs=False)
    assert found.baseline == slow
    assert json.loads(Path("out/against_joint/comparison.json").read_text())["baseline"] == "joint"
    assert f"Against joint: {Path('out/against_joint/README.md')}" in capsys.readouterr().out
    experiment.compare("recipe.yaml", f"joint,{slow}", seeds=1, baselines=["joint", slow], costs=False)
    place = Path("out/against_deft_method.ema_decay_steps=40000")
    assert json.loads((place / "comparison.json").read_text())["baseline"] == slow


def test_what_tuning_chose_is_run_at_every_seed(asked, monkeypatch):
    trials = [Trial("deft", {tuning.RATE: 3e-3}, 0.5, True)]

    def tune(plan, variants, rates, values, source, jobs):
        assert (rates, values, source, jobs) == ([1e-3, 3e-3], True, ["clear"], 2)
        return {"joint": {tuning.RATE: 1e-3}, "deft": {tuning.RATE: 3e-3, "method.ema_decay_steps": 20_000}}, trials

    monkeypatch.setattr(tuning, "tune", tune)
    argv = ["recipe.yaml", "--methods", "joint,deft", "--seeds", "2", "--tune", "1e-3,3e-3", "--tune-values"]
    module.main([*argv, "--jobs", "2", "--no-costs"])
    assert [run.recipe.training.learning_rate for run in asked] == [1e-3, 3e-3, 1e-3, 3e-3]
    assert [run.seed for run in asked] == [0, 0, 1, 1]
    assert {run.recipe.method.ema_decay_steps for run in asked[1::2]} == {20_000}
    found = json.loads(Path("out/comparison.json").read_text())
    assert found["methods"]["deft"]["settings"]["training.learning_rate"] == 3e-3
    assert [trial["method"] for trial in found["trials"]] == ["deft"]
    assert found["command"] == f"python -m deft_hf.compare {shlex.join(argv)} --jobs 2 --no-costs"


def test_equal_compute_is_counted_for_the_warmup_that_tuning_chose(asked, monkeypatch):
    warmup = "method.decoder_warmup_steps"
    monkeypatch.setattr(tuning, "tune", lambda plan, variants, *args: ({"lp_ft_equal": {warmup: 4}}, []))
    found = experiment.compare("recipe.yaml", "joint,lp_ft_equal", seeds=1, rates=[1e-3, 3e-3], costs=False)
    plan = Plan("recipe.yaml", (), Path("out/runs"))
    variants = cost.with_equal_compute(plan, parse_variants(f"lp_ft_equal:{warmup}=4,lp_ft_equal"))
    counted, untuned = (variant.settings["training.max_steps"] for variant in variants.values())
    assert asked[1].recipe.method.decoder_warmup_steps == 4
    assert asked[1].recipe.training.max_steps == counted < untuned
    assert found.settings["lp_ft_equal"][warmup] == 4


def test_the_page_shows_what_a_row_was_tuned_as(asked, monkeypatch):
    trials = [Trial("deft", {tuning.RATE: rate}, score, score == 0.5) for rate, score in ((1e-3, 0.4), (3e-3, 0.5))]
    monkeypatch.setattr(tuning, "tune", lambda plan, variants, *args: (dict.fromkeys(variants, {}), trials))
    experiment.compare("recipe.yaml", "joint,deft_slow", seeds=1, rates=[1e-3, 3e-3], costs=False)
    lines = Path("out/README.md").read_text().splitlines()
    rows = ["| `deft` `training.learning_rate=0.001` | 40.0 |", "| `deft` `training.learning_rate=0.003` | **50.0** |"]
    assert [line for line in lines if line.startswith("| `deft` ")] == rows


def test_seeds_may_be_named(asked):
    found = experiment.compare("recipe.yaml", "joint", seeds=[7, 3], costs=False)
    assert [run.seed for run in asked] == [7, 3] == found.seeds


# ---- mistakes


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--methods", "joint,dfet"], "methods: found 'dfet'; did you mean deft?"),
        (["--methods", "deft,lp_ft"], "baselines: found joint, expected among the methods, deft, lp_ft"),
        (["--baseline", "deft,frozen"], "baselines: found frozen, expected among the methods, joint, lp_ft, deft"),
        (["--methods", "joint,joint:method.average"], "methods: found 'method.average', expected key=value"),
        (["--methods", "joint,deft:method.average=none"], "deft:method.average=none: recipe.yaml: "),
        (["training.max_step=3"], "training.max_step: unknown key; did you mean max_steps?"),
        (["--seeds", "0"], "seeds: found 0, expected how many, 1 or more"),
        (["--jobs", "0"], "jobs: found 0, expected how many runs at once, 1 or more"),
        (["--curve-points", "-1"], "curve_points: found -1, expected how many, 0 or more"),
        (["--tune", "1e-3,0"], "rates: found 0.001, 0.0, expected learning rates above 0"),
        (["--tune", "nan"], "rates: found nan, expected learning rates above 0"),
        (["--tune-values"], "values: found without rates"),
        (["--tune", "1e-3", "data.validation=[]"], "data.validation: missing, expected source data, on which tuning"),
        (["--tune", "1e-3", *RATES], "rates: tuning tries values of training.learning_rate, but method.encoder"),
        (["--tune", "1e-3", "--tune-values", *EPOCHS], "training.max_steps: found -1, expected the length"),
        (["--methods", "joint,joint_equal", *EPOCHS], "training.max_steps: found -1, expected the length"),
        (["--curve-points", "2", *EPOCHS], "training.max_steps: found -1, expected the length"),
        (["training.output_dir=recipe.yaml"], "recipe.yaml exists and is no comparison of deft_hf; nothing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2_and_nothing_is_trained(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "execute", None)
    monkeypatch.setattr(tuning, "execute", None)
    write_recipe(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", "recipe.yaml", *arguments])
    with pytest.raises(SystemExit) as exit:
        module.run()
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == ["recipe.yaml"]
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file()]


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], [tuning.SEED]])
def test_seeds_are_told_apart_from_each_other_and_from_the_one_that_tunes(tmp_path, seeds):
    with pytest.raises(UserError, match="^seeds: found"):
        experiment.compare(write_recipe(tmp_path), "joint", seeds=seeds, rates=[1e-3])


@pytest.mark.parametrize("part", RATES)
def test_rates_are_tuned_where_one_part_has_its_own(tmp_path, part):
    base = Recipe.load(write_recipe(tmp_path), [part])
    check_request(base, seeds=1, jobs=1, rates=[1e-3], values=False, curve_points=0)
    both = Recipe.load(write_recipe(tmp_path), RATES)
    check_request(both, seeds=1, jobs=1, rates=[], values=False, curve_points=0)  # nothing is tuned
    with pytest.raises(UserError, match="^rates: tuning tries values of training.learning_rate"):
        check_request(both, seeds=1, jobs=1, rates=[1e-3], values=False, curve_points=0)


def test_a_launcher_is_not_for_comparisons(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="found several processes of a launcher"):
        experiment.compare(write_recipe(tmp_path), "joint")


def test_the_help_names_every_method(capsys):
    with pytest.raises(SystemExit) as exit:
        module.main(["--help"])
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {name:22} {variant.note}" in lines for name, variant in known_variants().items())


@pytest.mark.parametrize(
    "files",
    [
        ["recipe.yaml", "README.md", "model.safetensors", "results/metrics.json", "figures/domains.png"],  # a training
        ["recipe.yaml", "checkpoint-3/model.safetensors", "runs/today/events.out.tfevents"],  # another, with its logs
        ["README.md"],
        ["notes/thesis.tex"],
    ],
)
def test_a_folder_of_something_else_is_not_touched(tmp_path, files):
    path = write_recipe(tmp_path)
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    with pytest.raises(UserError, match="out exists and is no comparison of deft_hf; nothing was touched"):
        experiment.compare(path, "joint", overrides=[f"training.output_dir={tmp_path / 'out'}"])
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in left) == sorted(files)
    assert all(path.read_text() == str(path.relative_to(tmp_path / "out")) for path in left)


@pytest.mark.parametrize(
    "files", [[], ["runs/joint-s0-0123/recipe.yaml", "README.md"], ["comparison.json", "README.md"]]
)
def test_a_comparisons_own_folder_is_gone_on_with(asked, files):
    for name in files:
        Path("out", name).parent.mkdir(parents=True, exist_ok=True)
        Path("out", name).write_text('{"methods": {}}')
    Path("out/runs/deft-s0-4567").mkdir(parents=True)  # as measuring a step leaves it
    experiment.compare("recipe.yaml", "joint", seeds=1, costs=False)
    assert len(asked) == 1 and Path("out/README.md").read_text().startswith("# recipe")


@pytest.mark.parametrize("section, place", [("source", "clear"), ("unseen", "night")])
def test_runs_on_other_images_are_not_set_beside_new_ones(finished, tmp_path, monkeypatch, section, place):
    shutil.copytree(finished.place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "execute", None)  # nothing is trained
    path = next(Path("out/runs").glob("deft-s0-*/results/metrics.json"))
    facts = json.loads(path.read_text())
    facts["data"][section][0]["images"] -= 1
    path.write_text(json.dumps(facts))
    now = facts["data"][section][0]["images"] + 1
    message = f"data.{section}: {place} has {now} images now and had {now - 1}, or others, when {path.parents[1]} ran"
    with pytest.raises(UserError, match=re.escape(message)):
        module.main(SMALL)
    for left in Path("out/runs").iterdir():
        shutil.rmtree(left)
    with pytest.raises(TypeError):  # nothing to compare with: it would train
        module.main(SMALL)


@pytest.mark.parametrize("name", ["recipe.yaml", "results/metrics.json"])
@pytest.mark.parametrize("content", ["", "[1]", '{"scores": '])
def test_a_damaged_run_is_named_before_anything_is_trained(asked, name, content):
    run = Path("out/runs/joint-s0-0123")
    (run / "results").mkdir(parents=True)
    for file, text in {"recipe.yaml": "data: {}", "results/metrics.json": "{}", name: content}.items():
        (run / file).write_text(text)
    with pytest.raises(UserError, match=r"joint-s0-0123: cannot be read \(.*; remove it, and it is run again"):
        experiment.compare("recipe.yaml", "joint", seeds=1, costs=False)
    assert not asked


def test_the_report_names_the_code_of_its_runs(finished):
    found = [SimpleNamespace(folder=name, done=True, facts={"git": {"deft_hf": state}}) for name, state in (
        ("a", {"commit": "12ab", "dirty": False}), ("b", {"commit": "12ab", "dirty": True}), ("c", None),
    )]  # fmt: skip
    missing = SimpleNamespace(folder="d", done=False)
    table = {"joint": {0: found[0], 1: missing}, "joint_ema": {0: found[0]}, "deft": {0: found[1], 1: found[2]}}
    words = "12ab (1), 12ab with changes (1), unknown (1)"
    assert collect.commits(table) == {"runs by commit of deft_hf": words}
    assert collect.commits({"deft": {1: found[2]}}) == {}  # installed from a package
    state = git_state(Path(collect.__file__).parents[1])
    assert (finished.comparison.versions.get("runs by commit of deft_hf") is None) == (state is None)


def test_a_training_does_not_go_into_a_comparison(finished, monkeypatch):
    monkeypatch.chdir(finished.place)
    before = report(finished.place)
    with pytest.raises(UserError, match="out exists and is no run of deft_hf; nothing was touched"):
        train.main(["recipe.yaml"])
    assert report(finished.place) == before


# ---- killed and restarted


@pytest.fixture
def command(finished, tmp_path, monkeypatch):
    """The small comparison in a process group of its own, in another place; both are killed in the end."""
    write_recipe(tmp_path, method=METHOD)
    monkeypatch.chdir(tmp_path)
    environment = {"PYTHONPATH": str(ROOT)}
    process = processes.Started("deft_hf.compare", *SMALL, cwd=tmp_path, env=environment, start_new_session=True)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition, process=None, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "ended before its time"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def trains(place, start):
    """Whether a run has come to a checkpoint and not to its end."""
    return lambda: any((place / "out" / "runs").glob(f"{start}-*/checkpoint-*"))


def left(process):
    """Whether anything of its group still lives; zombies, which wait to be taken note of, do not."""
    for other in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@pytest.mark.usefixtures("unverified")
def test_killed_with_its_runs_and_restarted_it_ends_as_if_it_had_not_been(finished, command, tmp_path):
    wait_for(trains(tmp_path, "deft-s0"), command)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    wait_for(lambda: not left(command))
    broken = folder_of(tmp_path, "deft-s0")
    assert not (broken / "results" / "metrics.json").exists() and not (tmp_path / "out" / "README.md").exists()
    assert (folder_of(tmp_path, "joint-s0") / "results" / "metrics.json").exists()
    module.main(SMALL)
    assert json.loads((broken / "results" / "metrics.json").read_text())["resumed"]
    assert report(tmp_path) == finished.small
    # The same seed in two folders, once broken off and once not, one run at a time and two: the same weights.
    for run in (tmp_path / "out" / "runs").iterdir():
        model = finished.place / run.relative_to(tmp_path) / "model.safetensors"
        assert (run / "model.safetensors").read_bytes() == model.read_bytes()


@pytest.mark.usefixtures("unverified")
def test_killed_alone_its_run_goes_on_and_is_waited_for(finished, command, tmp_path):
    wait_for(trains(tmp_path, "joint-s0"), command)
    command.kill()
    command.wait()
    run = folder_of(tmp_path, "joint-s0")
    assert not (run / "results" / "metrics.json").exists() and left(command)
    module.main(SMALL)
    assert (run / "log.txt").read_text().count("train_runtime") == 1  # trained once, by the one that was left
    assert report(tmp_path) == finished.small


def test_an_interrupt_leaves_no_process_and_a_folder_to_go_on_with(finished, tmp_path, monkeypatch, capsys):
    def sleep(seconds):
        wait_for(trains(tmp_path, "joint-s0"))
        signal.raise_signal(signal.SIGINT)

    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", *SMALL])
    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep))
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with pytest.raises(SystemExit) as exit:
        module.run()
    signal.signal(signal.SIGINT, ours)
    assert exit.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command resumes with what is missing\n")
    assert not multiprocessing.active_children()
    run = folder_of(tmp_path, "joint-s0")
    with FileLock(run / ".lock", timeout=0):  # nobody holds it
        assert not (run / "results" / "metrics.json").exists() and not (run / "failure.json").exists()
