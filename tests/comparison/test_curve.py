import json
import math
from pathlib import Path

import pytest
from PIL import Image

import deft_hf.compare as command
from deft_hf.comparison import along as module
from deft_hf.comparison.along import along, parse_curve
from deft_hf.comparison.curve import Curve, MethodCurve
from deft_hf.comparison.curve_report import curve_table, draw, write_curve
from deft_hf.utils.errors import UserError
from tests import processes
from tests.comparison.test_plan import write_recipe

NAN = math.nan
UNLABELLED = "data.unseen=[{streets: night, count: 2, size: [64, 96], labels: none}]"
RATES = [1e-4, 1e-3, 1e-2]
# Of two seeds, the first chooses 1e-4 and the second 1e-3 on the source; 1e-3 has the highest unseen mean.
OWN = MethodCurve({0: [0.9, 0.8, 0.1], 1: [0.5, 0.6, NAN]}, {0: [0.3, 0.5, 0.1], 1: [0.4, 0.6, NAN]})
NONE = MethodCurve({0: [NAN] * 3}, {0: [NAN] * 3})


def curve(folder, methods, values=RATES):
    return Curve(
        "training.learning_rate", values, [0, 1], methods, {}, "a command", "model: {}\n", {"torch": "2"}, folder
    )


def test_best_chosen_regret_and_the_loss_at_ten_times():
    assert (OWN.best, OWN.chosen) == (1, {0: 0, 1: 1})
    assert OWN.regret.mean == pytest.approx(((0.3 - 0.5) + 0) / 2)
    assert OWN.loss_at_ten_times(RATES).mean == pytest.approx(0.1 - 0.5)  # the second seed has no score there
    assert OWN.loss_at_ten_times([1e-4, 1e-3, 3e-3]) is None and OWN.loss_at_ten_times([False, True, 1]) is None
    assert OWN.loss_at_ten_times([1, 3.16, 31.6]).mean == pytest.approx(-0.4)
    assert (NONE.best, NONE.chosen) == (None, {}) and math.isnan(NONE.regret.mean)


def test_a_value_at_which_a_seed_failed_is_not_the_best():
    own = MethodCurve({0: [0.5, 0.6], 1: [0.5, NAN]}, {0: [0.3, 0.9], 1: [0.4, NAN]})
    assert own.best == 0 and [own.seeds_at(index) for index in (0, 1)] == [2, 1]


def test_the_page_shows_what_is_known(tmp_path):
    found = curve(tmp_path, {"joint": OWN, "deft|x": NONE})
    table = write_curve(found)
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[2:6]] == [
        "35.0 ± 63.5", "**55.0 ± 63.5**", "10.0 (1 of 2)", "0.0001, 0.001",
    ]  # fmt: skip
    assert "| - | - | - | - | - | - |" in table.splitlines()[3]
    facts = json.loads((tmp_path / "curve.json").read_text())
    assert facts["methods"]["joint"]["best"] == 1e-3 and facts["methods"]["joint"]["regret"]["mean"] == pytest.approx(
        -0.1
    )
    assert Image.open(tmp_path / "curve.png").width > 500
    assert "a command" in (tmp_path / "README.md").read_text()
    frame = found.to_pandas()
    assert frame.loc[("joint", 1e-3, 1), "unseen"] == 0.6


def test_the_picture_goes_along_the_values_and_no_further_than_scores_do(tmp_path):
    turned = MethodCurve(*({0: own[0][::-1], 1: own[1][::-1]} for own in (OWN.source, OWN.unseen)))
    drawn = [draw(curve(tmp_path, {"joint": turned}, RATES[::-1])), draw(curve(tmp_path, {"joint": OWN}))]
    for figure in drawn:
        (line, *_) = figure.axes[0].lines
        assert [*line.get_xdata()] == RATES and line.get_ydata()[1] == pytest.approx(55)
        low, high = figure.axes[0].get_ylim()
        assert -1 <= low < high <= 101  # the intervals of two seeds are wider


def test_values_that_are_words_have_a_picture_too(tmp_path):
    values = ["both", "split", "<b>"]
    assert "<b>" not in curve_table(curve(tmp_path, {"deft": OWN}, values))
    write_curve(curve(tmp_path, {"deft": OWN}, values))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("training.learning_rate=1e-4,1e-3", ("training.learning_rate", [1e-4, 1e-3])),
        ("method.pathways=both,split", ("method.pathways", ["both", "split"])),
        ("training.bf16=true,false", ("training.bf16", [True, False])),
        ("training.max_steps=10,20", ("training.max_steps", [10, 20])),
    ],
)
def test_key_and_values(text, expected):
    assert parse_curve(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "training.learning_rate",
        "a.b=1",
        "a.b=1,1",
        "a.b=1,",
        "rate=1,2",
        "a.b=1,[",
        "=1,2",
        "a.b=1,1.2.3e4",
        "a.b=1,2024-13-45",
    ],
)
def test_what_is_no_key_with_values_is_refused(text):
    with pytest.raises(UserError, match="curve: found .*expected a recipe key and its values"):
        parse_curve(text)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"curve": "training.max_steps=4,8", "methods": "deft_soup"}, "deft_soup is made of the runs of all seeds"),
        ({"curve": "method.ema_decay=0.9,0.99", "methods": "deft_no_ema"}, "deft_no_ema sets method.ema_decay itself"),
        ({"curve": "training.max_steps=4,8", "methods": "joint_equal"}, "joint_equal sets training.max_steps itself"),
        ({"curve": "training.logging_steps=1,2"}, "two values of training.logging_steps make the same run of joint"),
        (
            {
                "curve": "training.learning_rate=1e-3,1e-2",
                "overrides": ["method.encoder_learning_rate=1", "method.decoder_learning_rate=1"],
            },
            "beside which training.learning_rate changes nothing",
        ),
        ({"curve": "training.max_steps=1,2", "overrides": [UNLABELLED]}, "data.unseen with labels"),
        ({"curve": "training.nope=1,2"}, "training.nope: unknown key"),
        ({"curve": "training.learning_rate=1e-3,fast"}, 'training.learning_rate: found "fast"'),
        (
            {"curve": "training.max_steps=1,2", "overrides": ["data.unseen=[]"]},
            "data.unseen with labels, which is scored",
        ),
    ],
)
def test_mistakes_are_one_message_before_anything_is_trained(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(module, "execute", None)
    recipe = write_recipe(tmp_path, training={"output_dir": str(tmp_path / "out")})
    with pytest.raises(UserError) as error:
        along(recipe, **options)
    assert message in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, name",
    [
        (["--baseline", "deft"], "baselines"),
        (["--tune", "1e-3"], "rates"),
        (["--tune-values"], "values"),
        (["--curve-points", "3"], "curve_points"),
        (["--no-costs"], "costs"),
    ],
)
def test_what_only_a_comparison_has_is_refused_beside_a_curve(tmp_path, words, name):
    with pytest.raises(UserError, match=f"curve: found {name} beside it"):
        command.main([write_recipe(tmp_path), "--curve", "training.learning_rate=1e-3,1e-2", *words])


def test_of_two_rates_the_one_that_is_not_varied_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "execute", lambda runs, jobs: {})
    path = Path(write_recipe(tmp_path, training={"output_dir": str(tmp_path / "out")}))
    path.write_text(path.read_text().replace("learning_rate: 1e-3", "warmup_steps: 0"))
    asked = {"curve": "method.encoder_learning_rate=1e-5,1e-4", "methods": "joint", "seeds": 1}
    found = along(str(path), **asked)
    assert "decoder_learning_rate: 0.001" in found.recipe and math.isnan(found.methods["joint"].unseen[0][0])


def test_methods_are_scored_at_each_value_and_no_run_is_repeated(tmp_path, monkeypatch):
    processes.start_server()
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    words = ["recipe.yaml", "--methods", "joint,joint_ema", "--seeds", "1", "--curve"]
    command.main([*words, "training.learning_rate=1e-4,3e-2"])
    folder = Path("out/curves/training.learning_rate")
    facts = json.loads((folder / "curve.json").read_text())
    joint, averaged = (facts["methods"][name]["unseen"]["0"] for name in ("joint", "joint_ema"))
    assert joint[0] != joint[1] != averaged[1] and all(0 < score < 1 for score in joint + averaged)
    runs = sorted(Path("out/runs").iterdir())
    assert len(runs) == 2  # the average is read from joint's
    written = [(run / "results/metrics.json").stat().st_mtime_ns for run in runs]
    command.main([*words, "training.learning_rate=3e-2,1e-4"])
    assert [(run / "results/metrics.json").stat().st_mtime_ns for run in runs] == written
    again = json.loads((folder / "curve.json").read_text())
    assert again["methods"]["joint"]["unseen"]["0"] == joint[::-1]
