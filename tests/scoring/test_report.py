import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.data.labels import LabelSpace
from deft_hf.scoring import report
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.report import (
    class_table,
    domain_table,
    further_tables,
    image_caption,
    of_a_panel,
    save_domain_bars,
    save_json,
    save_panels,
    unseen_mean,
)
from deft_hf.utils.result import score_columns

LABELS = LabelSpace(("road", "sky", "boat"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
NAN = math.nan


def results(**methods):
    """results(joint={"day": 0.5}) with nothing but the mean."""
    return {m: {d: {"mean_iou": iou} for d, iou in domains.items()} for m, domains in methods.items()}


def test_domain_table_has_source_then_unseen_then_their_mean():
    found = results(joint={"rain": 0.4, "day": 0.81234, "night": 0.2}, deft={"day": 0.7, "night": 0.5, "rain": 0.43})
    assert domain_table(found, source=["day"], unseen=["rain", "night"]).splitlines() == [
        "| method | day (source) | rain | night | unseen mean |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| joint | 81.2 | 40.0 | 20.0 | 30.0 |",
        "| deft | 70.0 | 43.0 | 50.0 | **46.5** |",
    ]


def test_domain_table_with_scores_that_are_missing():
    """NaN, null read back from JSON, or a domain that one method never saw: a dash, and no mean that others lack."""
    found = results(
        a={"rain": 0.9, "night": NAN}, b={"rain": None, "night": 0.8}, c={"rain": 0.9}, d={"rain": 0, "night": 0}
    )
    assert domain_table(found, [], ["rain", "night"]).splitlines()[2:] == [
        "| a | 90.0 | - | - |",
        "| b | - | 80.0 | - |",
        "| c | 90.0 | - | - |",
        "| d | 0.0 | 0.0 | **0.0** |",
    ]
    assert "**" not in domain_table(results(a={"rain": NAN}), [], ["rain"])


def test_domain_table_bolds_all_that_print_the_same():
    found = results(a={"rain": 0.4001}, b={"rain": 0.4004}, c={"rain": 0.3})
    assert domain_table(found, [], ["rain"]).count("**40.0**") == 2


def test_domain_table_without_unseen_domains_has_no_mean():
    assert domain_table(results(a={"day": 0.5}), ["day"], []).splitlines() == [
        "| method | day (source) |",
        "| --- | ---: |",
        "| a | 50.0 |",
    ]


def test_unseen_mean():
    scores = results(a={"day": 0.9, "rain": 0.2, "night": 0.4})["a"]
    assert unseen_mean(scores, ["rain", "night"]) == pytest.approx(0.3)
    assert math.isnan(unseen_mean(scores, ["rain", "fog"]))
    assert math.isnan(unseen_mean(scores, []))


def test_class_table_of_real_scores():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    found = {"joint": {"day": matrix.compute(LABELS.names).to_dict()}, "deft": {}}
    assert class_table(found, "day", LABELS.names).splitlines() == [
        "| class | joint |",
        "| --- | ---: |",
        "| road | 66.7 |",
        "| sky | 50.0 |",
        "| boat | - |",
        "| mean | 58.3 |",
    ]


def test_tables_escape_what_markdown_would_split():
    assert domain_table(results(**{"a|b": {"x|y": 0.5}}), ["x|y"], []).splitlines()[::2] == [
        "| method | x&#124;y (source) |",
        "| a&#124;b | 50.0 |",
    ]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, kept for a look at what is written on them."""
    kept = []
    save = report.save_figure
    monkeypatch.setattr(report, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def has_color(path, color):
    return (np.asarray(Image.open(path).convert("RGB")) == color).all(-1).sum() > 100


def test_panels(tmp_path, figures):
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 15:] = 1
    truth[:5] = 255
    wrong = np.where(truth == 255, 0, truth)
    wrong[:, 15:] = 2
    image = np.full((40, 60, 3), (10, 120, 130), np.uint8)  # an image may be larger than its truth
    right = np.where(truth == 255, 1, truth)
    rows = [
        ("day", image, truth, {"joint": wrong, "deft": right}),
        ("night", image, truth, {"joint": right, "deft": wrong}),
    ]
    path = tmp_path / "new" / "panels.png"
    save_panels(path, rows, LABELS)

    for color in [*LABELS.palette, (0, 0, 0), (10, 120, 130)]:
        assert has_color(path, color)
    (figure,) = figures
    grid = np.array(figure.axes).reshape(2, 4)
    assert [axes.get_title() for axes in grid[0]] == ["image", "truth", "joint", "deft"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["day", "night"]
    assert [axes.get_xlabel() for axes in grid[:, 2]] == [
        "mean IoU 33.3 %, 3 classes",
        "mean IoU 100.0 %, 2 classes",
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["road", "sky", "boat", "ignored"]
    assert figure.get_suptitle()


def test_panels_legend_names_only_what_is_shown(tmp_path, figures):
    ids = np.zeros((4, 4), np.uint8)
    save_panels(tmp_path / "panels.png", [("day", np.zeros((4, 4, 3), np.uint8), ids, {"deft": ids})], LABELS)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["road"]


def test_a_very_large_picture_is_smaller_in_a_panel(tmp_path, figures, monkeypatch):
    monkeypatch.setattr("deft_hf.scoring.report._MOST_SIDE", 20)
    ids = np.arange(41 * 30, dtype=np.uint8).reshape(41, 30) % 3
    image = Image.fromarray(np.full((41, 30, 3), 7, np.uint8))
    small = of_a_panel(image)
    assert small.shape == (14, 10, 3) and (small == 7).all()
    assert np.array_equal(of_a_panel(ids), ids[::3, ::3]) and of_a_panel(ids[:20, :20]).shape == (20, 20)
    save_panels(tmp_path / "panels.png", [("day", small, ids, {"deft": (ids + 1) % 3})], LABELS)
    shown = [axes.images[0].get_array().shape[:2] for axes in figures[0].axes]
    assert shown == [(14, 10)] * 3
    assert figures[0].axes[2].get_xlabel() == "mean IoU 0.0 %, 3 classes"  # of all pixels


def test_domain_bars(tmp_path, figures):
    found = results(joint={"day": 0.8, "rain": 0.4, "night": 0.2}, deft={"day": 0.7, "rain": 0.5, "night": NAN})
    path = tmp_path / "new" / "bars.png"
    save_domain_bars(path, found, ["day"], ["rain", "night"])

    assert Image.open(path).size[0] > 600
    (axes,) = figures[0].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([80, 40, 20, 30, 70, 50, 0, 0])
    texts = [text.get_text() for text in axes.texts]
    assert texts[:8] == ["80.0", "40.0", "20.0", "30.0", "70.0", "50.0", "-", "-"]
    assert texts[8:] == ["source", "unseen", "all unseen"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["day", "rain", "night", "mean"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["joint", "deft"]


@pytest.mark.parametrize(("source", "unseen", "groups"), [([], ["rain"], ["rain"]), (["day"], [], ["day"])])
def test_domain_bars_of_one_kind_of_domain(tmp_path, figures, source, unseen, groups):
    save_domain_bars(tmp_path / "bars.png", results(a={"day": 0.5, "rain": NAN}), source, unseen)
    assert [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()] == groups


def test_json_holds_plain_numbers_and_null(tmp_path):
    path = tmp_path / "new" / "results.json"
    save_json(
        path,
        {
            "nan": [NAN, np.float32("nan"), torch.tensor(math.inf)],
            "numbers": (np.float64(0.5), np.int64(3), torch.tensor(2), torch.tensor(0.25, dtype=torch.bfloat16)),
            "arrays": {"numpy": np.array([[1.0, NAN]]), "torch": torch.arange(2)},
            7: True,
            "text": "Zürich",
            "none": None,
        },
    )
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "nan": [None, None, None],
        "numbers": [0.5, 3, 2, 0.25],
        "arrays": {"numpy": [[1.0, None]], "torch": [0, 1]},
        "7": True,
        "text": "Zürich",
        "none": None,
    }
    assert '\n  "none": null\n}\n' in text


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    save_json(path, {"step": 1})
    with pytest.raises(TypeError):
        save_json(path, {"step": object()})

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        save_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_caption_says_over_how_many_classes():
    truth = np.array([[0, 0, 0, 255]])
    assert image_caption(np.array([[0, 0, 0, 1]]), truth, LABELS) == "IoU 100.0 %, one class"
    assert image_caption(np.array([[0, 1, 2, 1]]), truth, LABELS) == "IoU 33.3 %, one class"
    assert image_caption(np.array([[0, 0, 0, 1]]), np.full((1, 4), 255), LABELS) == "no labelled pixel"


def test_further_metrics_have_tables_and_columns():
    scores = {"mean_iou": 0.5, "iou": [0.4, 0.6, NAN]}
    further = {"mean_f_score": 0.25, "f_score": [0.5, 0.0, None], "calibration_error": 0.125}
    found = {"a": {"day": scores | further}, "b": {"day": scores}}
    bracket = {"calibration_error": [0.1, 0.2], "mean_f_score": [NAN, NAN]}
    intervals = {"a": {"domains": {"day": bracket}, "unseen_mean": bracket}, "b": None}
    tables = further_tables(found, [], ["day"], intervals)
    assert {title: table.splitlines()[2:] for title, table in tables.items()} == {
        "Mean F-score": ["| a | 25.0 | **25.0** |", "| b | - | - |"],
        "Calibration error": ["| a | 12.5 [10.0, 20.0] | **12.5 [10.0, 20.0]** |", "| b | - | - |"],
    }
    assert class_table(found, "day", ["land", "sea", "sky"]).splitlines() == [
        "| class | a | b | a, F-score |",
        "| --- | ---: | ---: | ---: |",
        "| land | 40.0 | 40.0 | 50.0 |",
        "| sea | 60.0 | 60.0 | 0.0 |",
        "| sky | - | - | - |",
        "| mean | 50.0 | 50.0 | 25.0 |",
    ]


def test_a_score_that_is_none_has_no_interval():
    """So it is where the truth has one class: resamples have an IoU of it, and the domain no mean IoU."""
    interval = {"domains": {"day": {"mean_iou": [0.1, 0.2]}}, "unseen_mean": {"mean_iou": [0.1, 0.2]}}
    table = domain_table({"a": {"day": {"mean_iou": None}}}, [], ["day"], {"a": interval})
    assert table.splitlines()[2] == "| a | - | - |"


def test_of_an_error_the_lowest_mean_is_bold():
    found = {name: {"day": {"calibration_error": value}} for name, value in (("a", 0.2), ("b", 0.1))}
    table = further_tables(found, [], ["day"])["Calibration error"]
    assert table.splitlines()[2:] == ["| a | 20.0 | 20.0 |", "| b | 10.0 | **10.0** |"]


def test_columns_of_further_metrics():
    scores = {"mean_iou": 0.5, "pixel_accuracy": 0.7, "mean_accuracy": 0.6, "iou": [0.5, None], "accuracy": [1, 0.5]}
    more = {"absent": ["sea"], "pixels": 9, "mean_f_score": 0.1, "f_score": [0.1, None], "calibration_error": None}
    row = score_columns(scores | more, ["land", "sea"])
    assert [*row] == [
        "mean_iou", "pixel_accuracy", "mean_accuracy", "iou land", "iou sea", "mean_f_score", "f_score land",
        "f_score sea", "calibration_error", "pixels",
    ]  # fmt: skip
    assert row["f_score land"] == 0.1 and math.isnan(row["calibration_error"])
