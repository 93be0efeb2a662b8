"""Every metric against a few lines of its own, image by image and with nothing of the package."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import deft_hf
from deft_hf.data.servers import SERVERS
from deft_hf.models.masks import MaskClassification
from deft_hf.models.objectives import PerPixel
from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.metrics import METRICS, Metric, Segmented, _load_extensions, further, register_metric, unknown
from deft_hf.scoring.tally import Tally
from deft_hf.utils.errors import UserError
from tests.scoring.test_confusion import CLASSES, IGNORE, drawn_maps

ALL = [metric for name, metric in METRICS.items() if name not in ("iou", "accuracy", "pixel_accuracy")]


def tallied(pairs, metrics=ALL, probabilities=None, num_labels=CLASSES):
    tally = Tally(num_labels, metrics)
    for index, (prediction, truth) in enumerate(pairs):
        matrix = ConfusionMatrix(num_labels)
        seen = torch.from_numpy(prediction), torch.from_numpy(truth)
        matrix.update(*seen)
        sure = torch.nn.functional.one_hot(seen[0].long(), num_labels).permute(2, 0, 1).float()
        given = sure if probabilities is None else probabilities[index]
        tally.add(matrix.counts, *seen, lambda given=given: given)
    return tally


def test_f_score_and_frequency_weighted_iou():
    pairs = drawn_maps(0, range(CLASSES - 1))
    found = tallied(pairs, further(["f_score", "frequency_weighted_iou"])).more()
    prediction = np.concatenate([p[t != IGNORE] for p, t in pairs])
    truth = np.concatenate([t[t != IGNORE] for _, t in pairs])
    hits, right, said = (
        np.array([(mask == c).sum() if mask.dtype != bool else (mask & (truth == c)).sum() for c in range(CLASSES)])
        for mask in (prediction == truth, truth, prediction)
    )
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found["f_score"], 2 * hits / (right + said), atol=1e-12)
        weighted = np.nansum(right * hits / (right + said - hits)) / right.sum()
    assert math.isnan(found["f_score"][-1])
    assert found["mean_f_score"] == pytest.approx(np.nanmean(found["f_score"]), abs=1e-12)
    assert found["frequency_weighted_iou"] == pytest.approx(weighted, abs=1e-12)


def eroded(mask, times):
    """Erosion by a square of 3 x 3, `times` over, with nothing outside of the image."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        shifted = [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
        mask = np.logical_and.reduce(shifted)
    return mask


def reference_boundary_iou(pairs, label, ratio=0.02):
    inter = union = 0
    for prediction, truth in pairs:
        distance = max(1, int(round(ratio * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))))
        regions = [(truth == label), (prediction == label) & (truth != IGNORE)]
        bands = [region & ~eroded(region, distance) for region in regions]
        inter += (bands[0] & bands[1]).sum()
        union += (bands[0] | bands[1]).sum()
    return inter / union if union else math.nan


@pytest.mark.parametrize("size", [(40, 57), (121, 90)])  # d of 1 and 3
def test_boundary_iou_equals_the_erosion_of_each_mask(size):
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(3):
        truth = np.kron(rng.integers(0, 4, (5, 5)), np.ones((30, 30))).astype(np.uint8)[: size[0], : size[1]]
        prediction = np.roll(truth, rng.integers(-4, 5, 2), (0, 1))
        prediction[rng.random(size) < 0.002] = 4
        truth[10:14, 3:30] = IGNORE
        pairs.append((prediction, truth))
    found = tallied(pairs, [METRICS["boundary_iou"]], num_labels=6).more()
    expected = [reference_boundary_iou(pairs, label) for label in range(6)]
    np.testing.assert_allclose(found["boundary_iou"], expected, atol=1e-12)
    assert math.isnan(expected[5]) and 0 < expected[0] < 1 and expected[4] == 0
    assert found["mean_boundary_iou"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_a_thin_region_is_all_boundary():
    ids = np.zeros((60, 80), np.uint8)
    ids[:, 40:42] = 1
    found = tallied([(ids, ids)], [METRICS["boundary_iou"]], num_labels=2)
    counts = found.by_image()["boundary_iou"][0]
    assert counts[1, 1] == 120  # of 2 x 60 pixels
    assert 0 < counts[1, 0] < 58 * 60
    assert found.more()["mean_boundary_iou"] == 1


def reference_calibration(probabilities, truths, bins=15):
    confidence = np.concatenate([p.max(0)[t != IGNORE] for p, t in zip(probabilities, truths, strict=True)])
    right = np.concatenate([(p.argmax(0) == t)[t != IGNORE] for p, t in zip(probabilities, truths, strict=True)])
    edges, error = np.linspace(0, 1, bins + 1), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("objective", [PerPixel(), MaskClassification()])
def test_calibration_error_equals_its_bins(objective):
    generator = torch.Generator().manual_seed(0)
    truths = [truth for _, truth in drawn_maps(4, count=3)]
    logits = torch.randn(3, CLASSES, *truths[0].shape, generator=generator) * 3
    if isinstance(objective, MaskClassification):
        logits = logits.exp()  # scores from 0 up
    probabilities = objective.probabilities(logits)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, *truths[0].shape))
    pairs = [(found.argmax(0).numpy().astype(np.uint8), truth) for found, truth in zip(logits, truths, strict=True)]
    found = tallied(pairs, [METRICS["calibration_error"]], probabilities).more()
    expected = reference_calibration(probabilities.double().numpy(), truths)
    assert found == {"calibration_error": pytest.approx(expected, abs=1e-6)}
    assert expected > 0.1


def test_confidences_of_0_and_1_have_a_bin():
    truth = np.zeros((1, 2), np.uint8)
    probabilities = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    found = tallied([(truth, truth)], [METRICS["calibration_error"]], [probabilities], num_labels=2)
    counts = found.by_image()["calibration_error"][0]
    assert counts.shape == (3, 15) and counts[:, -1].tolist() == [1, 1, 1] and counts[:, 0].tolist() == [1, 1, 0]


def test_images_of_several_processes_come_in_the_order_of_one():
    pairs = drawn_maps(5, count=5)
    whole, shares = tallied(pairs), [tallied(pairs[0::2]), tallied(pairs[1::2])]
    own = shares[0]
    lists = {name: [share._counts[name] for share in shares] for name in own._counts}
    names = iter(own._counts)
    own.gather(lambda counts: lists[next(names)])
    for name, counts in whole.by_image().items():
        assert torch.equal(own.by_image()[name], counts)


def test_an_image_takes_little_memory():
    counts = tallied(drawn_maps(6, count=1)).by_image()
    assert sum(each.numel() for each in counts.values()) == 3 * CLASSES + 3 * CLASSES + 3 * 15


def test_a_metric_of_ones_own(monkeypatch):
    monkeypatch.setattr("deft_hf.scoring.metrics.METRICS", dict(METRICS))
    own = Metric("recall_of_road", "recall of road", "here", lambda counts: counts[..., 0, 0] / counts[..., 1, 0])
    assert unknown(["recall_of_road"])[0].startswith("metrics: found recall_of_road, expected names among f_score, ")
    register_metric(own)
    assert unknown(["recall_of_road"]) == [] and further(["recall_of_road"]) == [own]
    pairs = drawn_maps(7)
    expected = np.mean(np.concatenate([p[t == 0] for p, t in pairs]) == 0)
    assert tallied(pairs, [own]).more() == {"recall_of_road": pytest.approx(expected)}
    register_metric(own)  # once more is no harm
    for taken in ("iou", "mean_iou", "pixels"):  # all of them stand in results
        with pytest.raises(UserError, match="is registered already"):
            register_metric(Metric(taken, "mine", "", own.compute))


def test_a_metric_of_another_package(monkeypatch, tmp_path):
    monkeypatch.setattr("deft_hf.scoring.metrics.METRICS", dict(METRICS))
    (tmp_path / "theirs.py").write_text(
        "from deft_hf.scoring.metrics import Metric\n"
        "ours = Metric('share', 'share', 'here', lambda counts: counts[..., 1, 0] / counts[..., 1, :].sum(-1))\n"
    )
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    points = "[deft_hf.metrics]\nshare = theirs:ours\nbroken = theirs:nothing\n"
    (tmp_path / "theirs-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    _load_extensions.cache_clear()
    try:
        with pytest.warns(UserWarning, match="the metric broken of theirs:nothing cannot be loaded"):
            assert [metric.name for metric in further(["share"])] == ["share"]
    finally:
        _load_extensions.cache_clear()


def test_nothing_to_score_is_nan():
    ids = np.full((4, 5), IGNORE, np.uint8)
    probabilities = [torch.full((CLASSES, 4, 5), 1 / CLASSES)]
    found = tallied([(np.zeros((4, 5), np.uint8), ids)], probabilities=probabilities).more()
    assert all(math.isnan(found[metric.key]) for metric in ALL)


def test_segmented_knows_where_there_is_a_truth():
    image = Segmented(torch.zeros(1, 2), torch.tensor([[0, 255]]), 2)
    assert image.valid.tolist() == [[True, False]]


def test_the_documentation_lists_every_metric_and_server():
    text = (Path(deft_hf.__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in [*(metric.name for metric in ALL), *SERVERS]:
        assert f"| `{name}` |" in text
