"""What a run says of itself before and while it trains, and what the disk refuses."""

import json
import re
from types import SimpleNamespace

import pytest

from deft_hf.methods.core.stages import Span
from deft_hf.recipe import Recipe
from deft_hf.runs import forecast
from deft_hf.runs import train as training
from deft_hf.runs.arguments import method_arguments
from deft_hf.runs.forecast import DiskUse, Forecast, _Watch, checkpoints_at_once, duration
from deft_hf.runs.train import train
from deft_hf.trainer.arguments import DeFTTrainingArguments
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import HISTORY, METRICS

pytestmark = pytest.mark.usefixtures("unverified")
RECIPE = """
model: {checkpoint: embedded}
method: {name: deft, baselines: [joint], decoder_warmup_steps: 4, batchnorm_batches: 1}
data:
  labels: streets
  source: [{streets: clear, count: 4, size: [32, 32]}]
  validation: [{streets: clear, count: 1, size: [32, 32], seed: 1}]
  crop_size: [32, 32]
  check: false
training: {output_dir: out, max_steps: 6, batch_size: 2, learning_rate: 1e-3, save_steps: 5, eval_strategy: "no",
  logging_steps: 5, report_to: none, disable_tqdm: true, use_cpu: true, dataloader_num_workers: 0}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *overrides: Recipe.load("recipe.yaml", overrides)


def test_a_run_says_what_is_ahead_and_how_long_it_takes(recipe, capsys, monkeypatch):
    monkeypatch.setattr(training, "write_report", lambda *args: "")
    monkeypatch.setattr(training, "write_card", lambda *args: None)
    folder = train(recipe())
    said = capsys.readouterr().out
    assert said.count("images: clear 4; 2 a step (batch 2 x accumulation 1 x processes 1)") == 2
    assert "joint: 6 optimizer steps" in said and "deft: 4 (warmup) + 6 (decoupled) = 10" in said
    assert said.count("rates:  encoder 0.001, decoder 0.001\n") == 2
    sizes = re.findall(r"checkpoints: 2 of ([\d.]+) MB at once, model: [\d.]+ MB\), [\d,.]+ [GM]B free", said)
    for size, place in zip(sizes, ("baselines/joint", "."), strict=True):  # joint is the first
        written = sum(path.stat().st_size for path in (folder / place / "checkpoint-5").rglob("*"))
        assert float(size) * 1e6 == pytest.approx(written, rel=0.05), place
    known = [line for line in said.splitlines() if " left" in line]
    assert re.fullmatch(r"joint: step 3 of 6, about .+ left; .+ with the other methods; .+ of memory .+", known[0])
    steps = [int(re.search(r"deft: step (\d+) of 10, about [\d.]+ (s|min) left", line)[1]) for line in known[3:]]
    assert steps == list(range(1, 10)), "the last stage of joint tells how long a step of the warm-up takes"
    assert not any("other methods" in line for line in known[3:])
    assert [step for step in (3, 7) if "of memory" in known[2 + step]] == [3, 7]
    logged = {key for entry in json.loads((folder / HISTORY).read_text()) for key in entry}
    assert not any(word in key for key in logged for word in ("eta", "left", "minutes"))


def test_it_is_refused_before_a_step_where_the_disk_cannot_hold_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "free_space", lambda folder: 3_000_000)
    with pytest.raises(UserError) as error:
        train(recipe())
    told = str(error.value)
    assert told.startswith("training.output_dir: ") and "has room for 3.0 MB, and this run needs" in told
    assert "2 checkpoints of" in told and told.endswith("or lower training.save_total_limit.")
    assert not list(tmp_path.rglob("checkpoint-*")) and len(told.splitlines()) == 1


def test_a_disk_that_holds_this_method_and_not_the_next_is_a_warning(tmp_path, capsys):
    watch = _Watch.__new__(_Watch)
    watch.disk = DiskUse(100_000_000, 20_000_000)
    watch.forecast = SimpleNamespace(to_come=[None, None])
    watch._check(tmp_path, 2, 220_000_000, 10**9)
    assert capsys.readouterr().out == ""
    watch._check(tmp_path, 2, 220_000_000, 500_000_000)
    warning = capsys.readouterr().out
    assert "room is tight, 500.0 MB for about 660.0 MB of the 3 methods from here on" in warning


def test_stages_that_were_not_measured_are_scaled_and_pauses_are_shared_out(recipe):
    methods = [method_arguments(recipe(), name) for name in ("joint", "deft")]
    known = Forecast(methods)
    assert known.left([Span("joint", 6)]) is None and known.others(6) == 0.0
    known.seconds = {"joint": 6.0}
    assert known.left([Span("warmup", 10), Span("decoupled", 10)]) == 10 * 4 + 10 * 9
    assert known.left([Span("warmup", 10), Span("decoupled", 10)], step=13) == 7 * 9
    assert known.others(6) == 6 * 6 + 4 * 4 + 6 * 9
    known.seconds["decoupled"] = 10.0
    assert known.left([Span("warmup", 9)]) == 9 * 10 * 4 / 9
    known.steps, known.pauses = 10, 20.0
    assert known.left([Span("joint", 3)]) == 3 * (6 + 2)


def test_methods_that_are_done_take_no_time(recipe):
    methods = [method_arguments(recipe(), name) for name in ("joint", "deft")]
    (methods[0].folder / METRICS).parent.mkdir(parents=True)
    (methods[0].folder / METRICS).write_text("{}")
    assert [args.method for args in Forecast(methods).to_come] == ["deft"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "epoch"}, 7),
        ({"save_strategy": "steps", "save_steps": 15}, 7),
        ({"save_strategy": "steps", "save_steps": 15, "save_total_limit": 3}, 4),
        ({"save_strategy": "steps", "save_steps": 90, "save_total_limit": 3}, 2),
    ],
)
def test_the_one_being_written_counts(tmp_path, arguments, expected):
    args = DeFTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **arguments)
    state = SimpleNamespace(max_steps=100, save_steps=args.save_steps, num_train_epochs=7)
    assert checkpoints_at_once(args, state) == expected


def test_the_best_is_kept_beside_the_last(tmp_path):
    same = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "town_mean_iou", "save_total_limit": 1}
    args = DeFTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **same, **best)
    assert checkpoints_at_once(args, SimpleNamespace(max_steps=100, save_steps=10, num_train_epochs=1)) == 3


def test_times_are_said_in_units_that_fit():
    assert [duration(seconds) for seconds in (0, 40, 719, 12_600)] == ["1 s", "40 s", "12 min", "3.5 h"]
