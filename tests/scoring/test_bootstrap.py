import numpy as np
import pytest
import torch

from deft_hf.scoring import bootstrap
from deft_hf.scoring.bootstrap import draws, intervals, percentiles
from deft_hf.scoring.extremes import extremes
from deft_hf.scoring.metrics import METRICS
from deft_hf.scoring.tally import REGIONS
from tests.scoring.metrics.test_metrics import tallied
from tests.scoring.test_confusion import CLASSES, IGNORE, drawn_maps

FURTHER = [METRICS[name] for name in ("f_score", "boundary_iou")]


def mean_iou(pairs):
    prediction = np.concatenate([p[t != IGNORE] for p, t in pairs])
    truth = np.concatenate([t[t != IGNORE] for _, t in pairs])
    found = []
    for label in range(CLASSES):
        union = ((prediction == label) | (truth == label)).sum()
        found.append(((prediction == label) & (truth == label)).sum() / union if union else np.nan)
    return np.nanmean(found)


def test_intervals_equal_images_drawn_again():
    """The images themselves drawn with replacement, with the same draws, and scored anew."""
    domains = {"day": drawn_maps(0, count=6), "night": drawn_maps(1, range(4), count=5)}
    domains["rain"] = drawn_maps(2, count=4)
    found = intervals(
        {name: tallied(pairs, FURTHER).by_image() for name, pairs in domains.items()},
        ["night", "rain"],
        FURTHER,
        resamples=40,
        seed=7,
    )
    expected = {}
    for index, (name, pairs) in enumerate(domains.items()):
        rng = np.random.default_rng([7, 1 + index])
        weights = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=40)
        drawn = [[pair for pair, times in zip(pairs, row, strict=True) for _ in range(times)] for row in weights]
        expected[name] = np.array([mean_iou(images) for images in drawn])
    for name, values in expected.items():
        low, high = found["domains"][name]["mean_iou"]
        assert [low, high] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=1e-12)
        assert low <= mean_iou(domains[name]) <= high and high - low > 1e-3
        assert found["domains"][name].keys() == {
            "mean_iou", "mean_accuracy", "pixel_accuracy", "mean_f_score", "mean_boundary_iou"
        }  # fmt: skip
    both = (expected["night"] + expected["rain"]) / 2
    assert found["unseen_mean"]["mean_iou"] == pytest.approx(np.quantile(both, [0.025, 0.975]).tolist(), abs=1e-12)


def test_the_seed_decides_and_parts_change_nothing(monkeypatch):
    counts = {"day": tallied(drawn_maps(3, count=8), []).by_image()}
    first = intervals(counts, [], resamples=50)
    assert intervals(counts, [], resamples=50) == first and first["unseen_mean"] == {}
    assert intervals(counts, [], resamples=50, seed=1) != first
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 24)
    assert intervals(counts, [], resamples=50) == first
    assert [len(part) for part in draws(8, np.random.default_rng(0), 7)] == [3, 3, 1]


def test_one_image_and_none():
    pairs = drawn_maps(4, count=1)
    found = intervals({"day": tallied(pairs, []).by_image()}, [], resamples=20)
    low, high = found["domains"]["day"]["mean_iou"]
    assert low == high == pytest.approx(mean_iou(pairs))
    empty = torch.zeros(2, 3, CLASSES, dtype=torch.int64)
    found = intervals({"day": {"regions": empty}}, ["day"], resamples=20)
    assert np.isnan(found["domains"]["day"]["mean_iou"]).all() and np.isnan(found["unseen_mean"]["mean_iou"]).all()


def test_a_domain_without_an_image():
    tally = tallied([], FURTHER)
    found = intervals({"day": tally.by_image()}, ["day"], FURTHER, resamples=5)
    assert np.isnan([*found["domains"]["day"].values()]).all()
    assert np.isnan(tally.more()["mean_boundary_iou"])
    assert extremes(tally.by_image()[REGIONS], []) == {}


def test_percentiles_leave_out_what_is_not_known():
    assert percentiles(np.array([np.nan, 1.0, np.nan, 1.0])) == [1, 1]
