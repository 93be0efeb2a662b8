"""The tables of the study of estimates say what its rows hold."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "estimates.py"
spec = importlib.util.spec_from_file_location("estimates_study", SCRIPT)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def row(estimator, guess, truth=0.5, place="dusk", name="street7", where="place", trusted=True):
    return {
        **{"set": name, "place": place, "where": where, "estimator": estimator, "trusted": trusted},
        **{"truth": truth, "mean_iou": guess, "without_line": guess + 0.1, "interval": [guess - 0.05, guess + 0.05]},
        **{"method": "joint", "seed": 0, "class_intervals": [[guess - 0.01, guess + 0.01], [0.2, 0.4]]},
        **{"truth_per_class": [truth, float("nan")], "per_class": [guess, 0.3]},
    }


def test_a_summary_in_points():
    found = study.summary([row("source", 0.6), row("source", 0.48)])
    expected = {"mean absolute error": 6, "without the line": 14, "bias": 4, "largest": 10, "coverage": 50}
    expected |= {"width": 10, "classes": 6, "coverage of classes": 0}
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


def test_tables_hold_every_estimator_and_set():
    rows = [row(estimator, 0.6, trusted=estimator != "source") for estimator in study.NAMES]
    rows += [row(estimator, 0.52, name="nuclei2", place="histology") for estimator in study.NAMES]
    rows += [{**one, "where": where} for one in rows for where in ("suite", "held-out source")]
    text = study.tables(rows, "temperature")
    assert text.count("## ") == 3
    assert "| estimator | street7 | nuclei2 |" in text
    assert (
        "| naive guess: the score of source validation | 6.0 | 16.0 | +6.0 | 10.0 | 50.0 | 10.0 | 6.0 | 0.0 |" in text
    )
    assert "Where the default is trusted, 2 of 2:" in text
    assert "| street7: dusk | 50.0 | 60.0 | 60.0 | 10.0 | 10.0 | 1 of 1 |" in text


def test_images_are_spread_over_a_block():
    assert study.spread(0, 61 * 2 // 3, 5) == [0, 9, 19, 29, 39]
    assert study.spread(4, 7, 10) == [4, 5, 6]


def test_the_figure_is_drawn(tmp_path):
    rows = [
        row(estimator, 0.6, trusted=trusted) for estimator in ("source", "temperature") for trusted in (True, False)
    ]
    study.figure(rows, "temperature", tmp_path / "figures" / "estimates.png")
    assert (tmp_path / "figures" / "estimates.png").stat().st_size > 5000


def test_a_small_domain_keeps_classes_and_size():
    from deft_hf.data.domains import Domain

    small = study.Small(Domain.from_streets("clear", count=2, seed=3, size=(48, 64)), (24, 32))
    image, mask = small.load(1)
    assert len(small) == 2 and image.size == (32, 24) and mask.shape == (24, 32)
    assert set(np.unique(mask)) <= set(range(7))
