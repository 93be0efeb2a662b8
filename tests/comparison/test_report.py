import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deft_hf.comparison import figures
from deft_hf.comparison.outcomes import Cost, Failure, Trial
from deft_hf.comparison.report import headline, main_table, write_report
from deft_hf.comparison.statistics import SOURCE_MEAN, UNSEEN_MEAN, summarize
from tests.comparison.test_statistics import compared, plain, random_runs

NAN = math.nan
PICTURES = ["curves.png", "differences.png", "distances.png", "domains.png", "tradeoff.png"]


def whole():
    """Three methods, three seeds, and everything that a comparison can know."""
    runs = random_runs(("joint", "lp_ft", "deft"), seeds=(1, 2, 3))
    runs = {
        method: {
            seed: replace(
                outcome,
                distances={"encoder.0": 0.01 * seed, "decoder": 0.0 if method == "lp_ft" else 0.4},
                curve={step: {"day": 0.5, "rain": step / 100, "fog": 0.1 * seed} for step in (10, 5)},
                seconds=12.5 + seed,
            )
            for seed, outcome in outcomes.items()
        }
        for method, outcomes in runs.items()
    }
    return compared(
        runs,
        settings={"deft": {"method.name": "deft", "training.learning_rate": 6e-5}},
        costs={"joint": Cost(1.0, 1.0, 1.0), "deft": Cost(1.52, NAN, 1.5)},
        trials=[
            Trial("deft", {"training.learning_rate": 6e-5}, 0.5, True),
            Trial("deft", {"training.learning_rate": 1e-3}, None, False),
        ],
        versions={"torch": "2.13.0", "hardware": "CPU"},
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    return folder, write_report(whole(), folder)


def known_values():
    """Differences of joint and deft: 1, 2, 3 points unseen, always the same on the source."""
    joint = {s: plain(day=0.8, rain=0.2 + s / 100, fog=0.4) for s in (1, 2, 3)}
    deft = {s: plain(day=0.7, rain=0.2 + 3 * s / 100, fog=0.4) for s in (1, 2, 3)}
    return compared({"joint": joint, "deft": deft})


def table_of(comparison):
    return main_table(comparison, summarize(comparison)).splitlines()


def test_all_files_are_there(written):
    folder, _ = written
    files = ["README.md", "comparison.json", "table.md", "timings.json", *(f"figures/{name}" for name in PICTURES)]
    assert sorted(contents(folder)) == sorted(files)
    for name in PICTURES:
        width, height = Image.open(folder / "figures" / name).size
        assert width > 600 and height > 250


def test_main_table_holds_means_differences_and_seeds():
    assert table_of(known_values()) == [
        "| method | day (source) | rain | fog | unseen mean | difference to joint, over seeds | over seeds and images "
        "| seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        # t(0.975, 2) = 4.303: half a point of standard deviation over three seeds is 1.2 points, one point is 2.5.
        "| joint | 80.0 ± 0.0 | 22.0 | 40.0 | 31.0 ± 1.2 | baseline |  | 3 |",
        "| deft | 70.0 ± 0.0 | 26.0 | 40.0 | **33.0** ± 3.7 | +2.0 [-0.5, +4.5] | - | 3 |",
    ]


def test_what_is_made_of_all_seeds_has_means_and_no_interval(tmp_path):
    known = known_values()
    soup = {1: plain(day=0.7, rain=0.5, fog=0.4)}
    outcomes = {**known.outcomes, "deft_soup": soup, "deft_revt": known.outcomes["deft"]}
    notes = {name: name for name in outcomes}
    comparison = replace(
        known, outcomes=outcomes, notes=notes, settings={}, pooled={"deft_soup": [1], "deft_revt": [1, 2, 3]}
    )
    *_, one, shared = table_of(comparison)
    assert one == "| deft_soup | 70.0 | 50.0 | 40.0 | **45.0** | +14.0 | - | 1, made of 3 |"
    assert shared == "| deft_revt | 70.0 | 26.0 | 40.0 | 33.0 | +2.0 | - | 3, made of 3 |"
    said = headline(comparison, summarize(comparison))
    assert "no interval: `deft_soup` (+14.0), `deft_revt` (+2.0)." in said and "No seed in common" not in said
    assert "Without a result" not in write_report(comparison, tmp_path)
    assert "`deft_soup`, `deft_revt`: made of the models of all seeds" in (tmp_path / "README.md").read_text()
    gone = replace(comparison, outcomes=known.outcomes)
    assert "Without a result: `deft_soup`, seed 1: not run" in write_report(gone, tmp_path)


def test_main_table_shows_costs_where_they_are_known():
    header, _, joint, lp_ft, deft = table_of(whole())
    assert header.endswith("| seeds | step time | memory |")
    assert joint.endswith("| 3 | 1.00 | 1.00 |")
    assert lp_ft.endswith("| 3 | - | - |")
    assert deft.endswith("| 3 | 1.52 | - |")


def test_main_table_with_bootstrap_has_its_bounds():
    comparison = whole()
    found = summarize(comparison)["deft"].differences[UNSEEN_MEAN]
    bounds = f"[{100 * found.bootstrap.low:+.1f}, {100 * found.bootstrap.high:+.1f}]"
    assert f"| {found.interval.in_points()} | {bounds} | 3 |" in table_of(comparison)[-1]


def test_main_table_names_several_source_domains_by_their_mean():
    runs = {"joint": {1: plain(day=0.8, noon=0.6, rain=0.3)}}
    header, _, row = table_of(compared(runs, source=["day", "noon"], unseen=["rain"]))
    assert header.startswith("| method | source mean | rain |") and row.startswith("| joint | 70.0 | 30.0 |")


def test_missing_runs_and_failures_are_told(tmp_path):
    comparison = known_values()
    deft = {seed: outcome for seed, outcome in comparison.outcomes["deft"].items() if seed != 2}
    comparison = replace(
        comparison,
        notes=comparison.notes | {"lora": "adapters"},
        outcomes=comparison.outcomes | {"deft": deft},
        failures=[Failure("lora", 3, "out of\n  memory"), Failure("lora", 1, "out of memory")],
    )
    table = write_report(comparison, tmp_path)
    *rows, _, missing = table.splitlines()
    assert rows[-2] == "| deft | 70.0 ± 0.0 | 26.0 | 40.0 | **33.0** ± 19.1 | +2.0 [-10.7, +14.7] | - | 2 of 3 |"
    assert rows[-1] == "| lora | - | - | - | - | - | - | 0 of 3 |"
    assert missing.startswith(
        "Without a result: `deft`, seed 2: not run; `lora`, seeds 1, 3: out of memory; `lora`, seed 2: not run."
    )
    assert (tmp_path / "table.md").read_text() == table + "\n"
    assert table in (tmp_path / "README.md").read_text()
    facts = json.loads((tmp_path / "comparison.json").read_text())
    assert facts["failures"][0] == {"method": "lora", "seed": 1, "reason": "out of memory"}
    assert facts["methods"]["lora"]["seeds"] == {}
    assert facts["methods"]["lora"]["means"][UNSEEN_MEAN] == {"mean": None, "low": None, "high": None}


def test_a_difference_over_fewer_seeds_than_the_mean_says_so():
    comparison = known_values()
    joint = {seed: outcome for seed, outcome in comparison.outcomes["joint"].items() if seed != 2}
    comparison = replace(comparison, outcomes=comparison.outcomes | {"joint": joint})
    assert "| +2.0 [-10.7, +14.7] (2 seeds) | - | 3 |" in table_of(comparison)[-1]


def test_nan_scores_are_dashes_and_null(tmp_path):
    outcomes = {"joint": {1: plain(day=0.5, rain=0.4)}, "deft": {1: plain(day=0.5, rain=NAN)}}
    table = write_report(compared(outcomes, unseen=["rain"]), tmp_path)
    assert table.splitlines()[2:] == [
        "| joint | 50.0 | 40.0 | **40.0** | baseline |  | 1 |",
        "| deft | 50.0 | - | - | - | - | 1 |",
    ]
    method = json.loads((tmp_path / "comparison.json").read_text())["methods"]["deft"]
    assert method["seeds"]["1"]["scores"]["rain"]["mean_iou"] is None
    assert method["seeds"]["1"]["means"] == {"day": 0.5, SOURCE_MEAN: 0.5, "rain": None, UNSEEN_MEAN: None}
    assert method["differences"]["rain"]["by_seed"] == {}


def test_headline_says_what_is_clear_and_what_is_not():
    def runs(*differences):
        return {seed: plain(day=0.5, rain=0.4 + value) for seed, value in enumerate(differences)}

    methods = {
        "joint": runs(0, 0, 0),
        "up": runs(0.01, 0.012, 0.011),
        "down": runs(-0.05, -0.06, -0.055),
        "open": runs(-0.01, 0.05, 0.02),
        "single": runs(0.09),
        "gone": {},
    }
    comparison = compared(methods, unseen=["rain"])
    text = headline(comparison, summarize(comparison))
    assert "`joint` reaches 40.0 %, the highest is `single` with 49.0 %" in text
    assert "* **Above `joint`**, clear of zero: `up` (+1.1 [+0.9, +1.3])." in text
    assert "* **Below `joint`**, clear of zero: `down` (-5.5 [-6.7, -4.3])." in text
    assert "* **Not distinguishable from `joint`**, the interval contains zero: `open` (+2.0 [-5.5, +9.5])." in text
    assert "* **One seed only**, which cannot tell a difference from chance: `single` (+9.0)." in text
    assert "* **No seed in common with `joint`**: `gone`." in text
    assert "3 methods have an interval" in text and "an expected 0.15 of them" in text


def test_headline_without_a_baseline_or_unseen_domains():
    lonely = compared({"joint": {}, "deft": {1: plain(day=0.5)}}, unseen=[])
    text = headline(lonely, summarize(lonely))
    assert "No domain is unseen" in text and "The baseline `joint` has no source mean" in text
    both = compared({"joint": {1: plain(day=0.5)}, "deft": {1: plain(day=0.4)}}, unseen=[])
    text = headline(both, summarize(both))
    assert "Source mean of mean IoU: `joint` reaches 50.0 %, the highest of all." in text
    assert "t interval" not in text and "`deft` (-10.0)" in text
    alone = compared({"joint": {1: plain(day=0.5)}}, unseen=[])
    assert headline(alone, summarize(alone)).endswith("`joint` reaches 50.0 %, the highest of all.")


def test_page_has_all_that_a_reader_needs(written):
    folder, table = written
    page = (folder / "README.md").read_text()
    assert page.startswith("# weathers\n") and table in page
    for name in PICTURES:
        assert f"](figures/{name})" in page
    for text in [
        "```sh\npython -m deft_hf.compare recipes/weathers.yaml\n```",
        "```yaml\nmodel: {checkpoint: tiny}\n```",
        '* `deft`: what deft is. `method.name="deft"`, `training.learning_rate=6e-05`',
        "| `deft` `training.learning_rate=6e-05` | **50.0** |",
        "| `deft` `training.learning_rate=0.001` | - |",
        "* torch: 2.13.0",
        "Seeds 1, 2, 3. Source: day. Unseen: rain, fog.",
    ]:
        assert text in page
    assert not (folder / "table.md").read_text().startswith("#")


def test_models_that_predict_one_class_are_named(tmp_path, written):
    comparison, below = whole(), "Models that predict one class for all or nearly all pixels of source validation"
    assert below not in written[1]
    outcome = comparison.outcomes["deft"][2]
    collapsed = {name: counts.copy() for name, counts in outcome.counts.items()}
    only = len(comparison.labels) - 1
    for counts in collapsed.values():
        counts[..., only] = counts.sum(-1)
        counts[..., :only] = 0
    comparison.outcomes["deft"][2] = replace(outcome, counts=collapsed)
    assert f"{below}: `deft`, seed 2: {comparison.labels[only]}." in write_report(comparison, tmp_path)
    seeds = json.loads((tmp_path / "comparison.json").read_text())["methods"]["deft"]["seeds"]
    assert [seeds[seed].get("only_class") for seed in "123"] == [None, comparison.labels[only], None]


def test_json_has_every_score_and_no_counts(written):
    folder, _ = written
    comparison, text = whole(), (folder / "comparison.json").read_text()
    facts = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    summary, deft = summarize(comparison)["deft"], facts["methods"]["deft"]
    outcome = comparison.outcomes["deft"][2]
    assert deft["seeds"]["2"]["scores"]["fog"]["iou"] == outcome.scores["fog"]["iou"]
    assert deft["seeds"]["2"]["distances"] == outcome.distances
    assert deft["seeds"]["2"]["curve"] == {str(step): found for step, found in outcome.curve.items()}
    assert deft["means"][UNSEEN_MEAN]["mean"] == summary.means[UNSEEN_MEAN].mean
    difference = summary.differences[UNSEEN_MEAN]
    assert deft["differences"][UNSEEN_MEAN]["over_seeds"]["low"] == difference.interval.low
    assert deft["differences"][UNSEEN_MEAN]["over_seeds_and_images"]["high"] == difference.bootstrap.high
    assert facts["methods"]["joint"]["differences"] == {}
    assert deft["cost"] == {"time": 1.52, "memory": None, "flops": 1.5}
    assert [trial["chosen"] for trial in facts["trials"]] == [True, False]
    assert (facts["recipe"], facts["command"]) == (comparison.recipe, comparison.command)
    assert facts["versions"] == comparison.versions and facts["labels"] == comparison.labels
    assert '"counts"' not in text


def test_a_resumed_comparison_ends_with_the_same_bytes(written, tmp_path):
    """Runs come in another order and take other times; nothing but the timings may tell."""
    folder, _ = written
    comparison = whole()
    outcomes = {
        method: {seed: replace(outcome, seconds=99.0) for seed, outcome in reversed(by_seed.items())}
        for method, by_seed in reversed(comparison.outcomes.items())
    }
    write_report(replace(comparison, outcomes=outcomes), tmp_path)
    first, again = contents(folder), contents(tmp_path)
    assert json.loads(first.pop("timings.json"))["deft"] == {"1": 13.5, "2": 14.5, "3": 15.5}
    assert json.loads(again.pop("timings.json"))["deft"] == {"1": 99.0, "2": 99.0, "3": 99.0}
    assert first == again


def test_pictures_are_left_out_where_there_is_nothing_to_draw(tmp_path):
    write_report(compared({"joint": {1: plain(day=0.5)}}, unseen=[]), tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["domains.png"]
    assert (tmp_path / "README.md").read_text().count("](figures/") == 1


def test_nothing_came_through_and_it_is_told(tmp_path):
    table = write_report(compared({"joint": {}, "deft": {}}, seeds=[1]), tmp_path)
    assert "`joint`, seed 1: not run; `deft`, seed 1: not run" in table
    assert not (tmp_path / "figures").exists()


def test_differences_are_drawn_where_they_are():
    comparison = known_values()
    figure = figures.draw_differences(comparison, summarize(comparison))
    (axes,) = figure.axes
    lines = [tuple(map(float, line.get_xdata())) for line in axes.lines]
    assert pytest.approx((0, 0)) in lines  # the zero line
    assert pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3) in lines
    assert pytest.approx((2,)) in lines and pytest.approx((1, 2, 3)) in lines
    assert [text.get_text() for text in axes.texts] == ["+2.0 [-0.5, +4.5]"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["deft"]
    assert "percentage points" in axes.get_xlabel()


def test_curves_are_means_over_seeds_at_common_steps():
    comparison = whole()
    shorter = replace(comparison.outcomes["deft"][1], curve={10: {"day": 0.5, "rain": 0.3, "fog": 0.5}})
    deft = comparison.outcomes["deft"] | {1: shorter}
    comparison = replace(comparison, outcomes=comparison.outcomes | {"deft": deft})
    figure = figures.draw_curves(comparison, summarize(comparison, resamples=10))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert [*lines["deft"].get_xdata()] == [10]
    assert lines["deft"].get_ydata() == pytest.approx([(40 + 15 + 20) / 3])
    assert [*lines["joint"].get_xdata()] == [5, 10]
    assert lines["joint"].get_ydata() == pytest.approx([12.5, 15])


def test_distances_are_means_over_seeds_and_grey_where_nothing_moved():
    comparison = whole()
    odd = replace(comparison.outcomes["deft"][1], distances={"encoder.0": None, "decoder": 0.4})
    comparison = replace(comparison, outcomes=comparison.outcomes | {"deft": comparison.outcomes["deft"] | {1: odd}})
    figure = figures.draw_distances(comparison, summarize(comparison, resamples=10))
    values = np.ma.filled(figure.axes[0].images[0].get_array(), NAN)
    np.testing.assert_allclose(values, [[0.02, 0.02, 0.025], [0.4, NAN, 0.4]])
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["encoder.0", "decoder"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["joint", "lp_ft", "deft"]


def test_no_two_of_fifty_methods_look_alike():
    comparison = compared({name: {} for name in ["joint", *(f"m{index}" for index in range(49))]})
    assert len({figures._style(comparison, method) for method in comparison.notes}) == 50


def test_single_wide_intervals_do_not_dwarf_the_points():
    """Two seeds have t intervals of thirteen standard errors; the picture stays with the points."""
    runs = {"joint": {1: plain(day=0.5), 2: plain(day=0.5)}, "deft": {1: plain(day=0.45), 2: plain(day=0.55)}}
    comparison = compared(runs, unseen=[])
    low, high = figures.draw_differences(comparison, summarize(comparison)).axes[0].get_xlim()
    assert -20 < low < -5 and 5 < high < 20
