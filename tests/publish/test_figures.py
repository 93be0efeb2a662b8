from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from deft_hf.data.labels import LabelSpace
from deft_hf.publish.figures import (
    RunRecord,
    draw_classes,
    draw_confusion,
    draw_curves,
    draw_layers,
    save_run_figures,
    score_curve,
)
from deft_hf.scoring.report import METHOD_COLORS

LABELS = LabelSpace(("road", "sky", "boat"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)))


def logged(step, stage=2, **values):
    parts = {"encoder_learning_rate": 0.1, "decoder_learning_rate": 0.2, "encoder_initial_share": 0.5}
    parts |= {"decoder_initial_share": 0.25, "encoder_distance": 3.0, "decoder_distance": 4.0}
    return {"loss": 1.0, "step": step, "stage": stage, **parts, **values}


def scored(step, **domains):
    """One entry a domain, as the Trainer logs them."""
    return [{"step": step, f"eval_{name}_mean_iou": value} for name, value in domains.items()]


DEFT = [
    logged(2, stage=1, decoder_loss=2.0),
    logged(4, decoder_loss=1.0, encoder_loss=1.5, usual_encoder_distance=6.0, usual_decoder_distance=7.0),
    *scored(4, day=0.3, rain=0.1, night=0.2),
    logged(6, decoder_loss=0.5, encoder_loss=0.75, usual_encoder_distance=8.0, usual_decoder_distance=9.0),
    *scored(6, day=0.5, rain=0.2, night=0.4),
    *scored(6, day=0.9, rain=0.9, night=0.9),  # after training, on all images
]
JOINT = [logged(4, joint_loss=1.0), *scored(4, day=0.6, rain=0.2, night=0.2), *scored(5, day=0.7, rain=0.3, night=0.1)]
RUN = RunRecord(
    method="deft",
    stages=[("warmup", 3), ("decoupled", 3)],
    histories={"joint": JOINT, "deft": DEFT},
    results={
        "joint": {d: {"iou": [0.4, 0.2, None]} for d in ("day", "rain", "night")},
        "deft": {"day": {"iou": [0.5, 0.25, None]}, "rain": {"iou": [0.1, 0.2, 0.3]}, "night": {"iou": [1, 0, None]}},
    },
    confusions={"day": [[3, 1, 0], [0, 0, 0], [0, 0, 2]], "rain": [[1, 0, 0]] * 3, "night": [[0, 3, 0]] * 3},
    distances={"joint": {"first": 0.1, "last": 0.4}, "deft": {"first": 0.0, "last": 0.2}},
    labels=LABELS,
    source=["day"],
    unseen=["rain", "night"],
)


def lines(axes):
    """By label, the points of each line; gaps left out."""
    found = {}
    for line in axes.lines:
        if not line.get_label().startswith("_"):
            points = [(x, y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y == y]
            found[line.get_label()] = ([x for x, _ in points], pytest.approx([y for _, y in points]))
    return found


def test_curves_have_every_figure_that_was_logged():
    loss, rate, share, distance, source, unseen = draw_curves(RUN).axes
    assert lines(loss) == {"decoder loss": ([2, 4, 6], [2, 1, 0.5]), "encoder loss": ([4, 6], [1.5, 0.75])}
    assert lines(rate) == {"encoder": ([2, 4, 6], [0.1] * 3), "decoder": ([2, 4, 6], [0.2] * 3)}
    assert lines(share) == {"encoder": ([2, 4, 6], [0.5] * 3), "decoder": ([2, 4, 6], [0.25] * 3)}
    assert lines(distance) == {
        "encoder": ([2, 4, 6], [3] * 3),
        "decoder": ([2, 4, 6], [4] * 3),
        "usual encoder": ([4, 6], [6, 8]),
        "usual decoder": ([4, 6], [7, 9]),
    }
    # Every method, the mean over the unseen domains, and not the evaluation after training.
    assert lines(source) == {"joint": ([4, 5], [60, 70]), "deft": ([4, 6], [30, 50])}
    assert lines(unseen) == {"joint": ([4, 5], [20, 20]), "deft": ([4, 6], [15, 30])}
    colors = {line.get_label(): to_hex(line.get_color()).upper() for line in unseen.lines}
    assert (colors["joint"], colors["deft"]) == METHOD_COLORS[:2]
    ends = [line.get_xdata()[0] for axes in (loss, unseen) for line in axes.lines if line.get_label().startswith("_")]
    assert ends == [3, 3]  # where the warm-up ends


def test_no_line_joins_two_stages():
    rates = [0.1, 0.1, 0.4, 0.3]
    history = [logged(step, decoder_learning_rate=rate) for step, rate in zip((1, 3, 4, 6), rates, strict=True)]
    _, rate, *_ = draw_curves(replace(RUN, histories={"deft": history, "joint": []})).axes
    line = next(line for line in rate.lines if line.get_label() == "decoder")
    assert line.get_xdata().tolist() == [1, 3, 3, 4, 6] and np.isnan(line.get_ydata()).tolist() == [0, 0, 1, 0, 0]
    loss, *_ = draw_curves(RUN).axes  # a stage with a single point, of which there is no line
    line = next(line for line in loss.lines if line.get_label() == "decoder loss")
    assert line.get_xdata().tolist() == [2, 3, 4, 6] and line.get_marker() == "."


def test_curves_of_a_run_that_was_scored_at_its_end_alone():
    short = replace(RUN, histories={"deft": [entry for entry in DEFT if "loss" in entry], "joint": []})
    assert [axes.get_title().split(",")[0] for axes in draw_curves(short).axes] == [
        "loss",
        "learning rate",
        "share of the initialisation left",
        "L2 distance to the initialisation",
    ]
    assert score_curve(scored(6, day=0.5), ["day"]) == {}
    assert score_curve([*scored(1, day=0.5), *scored(2, day=0.6), *scored(2, day=0.9)], ["day"]) == {
        1: {"day": 0.5},
        2: {"day": 0.6},
    }


def test_class_bars_are_in_the_colours_of_the_label_space():
    figure = draw_classes(RUN)
    assert [axes.get_title() for axes in figure.axes] == ["day (source)", "rain (unseen)", "night (unseen)"]
    day, rain, _ = figure.axes
    assert [bar.get_width() for bar in day.patches] == pytest.approx([50, 25, 0])
    assert [text.get_text() for text in day.texts] == ["50.0", "25.0", "absent"]
    assert [to_hex(bar.get_facecolor()) for bar in rain.patches] == ["#c80000", "#00c800", "#0000c8"]
    (joint,) = day.lines
    np.testing.assert_allclose(joint.get_xdata(), [40, 20, np.nan])
    assert [tick.get_text() for tick in day.get_yticklabels()] == list(LABELS.names)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["deft, in the colour of the class", "joint"]


def test_confusion_is_in_shares_of_the_truth_and_unseen_domains_are_added_up():
    source, unseen, _ = draw_confusion(RUN).axes
    found = np.ma.filled(source.images[0].get_array(), np.nan)
    np.testing.assert_allclose(found, [[75, 25, 0], [np.nan] * 3, [0, 0, 100]])
    np.testing.assert_allclose(unseen.images[0].get_array(), [[25, 75, 0]] * 3)
    assert [text.get_text() for text in source.texts] == ["75", "25", "100"]
    assert [tick.get_text() for tick in source.get_xticklabels()] == list(LABELS.names)


def test_layers_stand_from_input_to_output_and_those_that_did_not_move_have_no_marker():
    axes = draw_layers(RUN).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["first", "last"]
    np.testing.assert_allclose([line.get_xdata() for line in axes.lines], [[0.1, 0.4], [np.nan, 0.2]])
    assert axes.get_ylim() == (1.5, -0.5)


def test_what_was_not_kept_is_not_drawn(tmp_path):
    captions = save_run_figures(tmp_path, RUN)
    assert list(captions) == ["curves.png", "classes.png", "confusion.png", "layers.png"] and all(captions.values())
    assert all(min(Image.open(tmp_path / name).size) > 200 for name in captions)
    old = replace(RUN, histories={"joint": [], "deft": []}, confusions={}, distances={"joint": {}, "deft": {}})
    assert list(save_run_figures(tmp_path, old)) == ["classes.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["classes.png"]  # no picture of an earlier run stays
