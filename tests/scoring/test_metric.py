import gc
import socket
import warnings
import weakref

import evaluate
import numpy as np
import pytest
import torch

from deft_hf.scoring.metric import MeanIoU
from deft_hf.utils.errors import UserError

KEYS = ["mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"]


def drawn_maps(seed, predicted, raw):
    """Lists of predictions and references of several sizes, with ids drawn from `predicted` and `raw`."""
    rng = np.random.default_rng(seed)
    sizes = [(11, 17), (8, 8), (30, 5)]
    return [rng.choice(predicted, size) for size in sizes], [rng.choice(raw, size) for size in sizes]


def plain_scores(predictions, references, num_labels, ignore_index, label_map=None, reduce_labels=False):
    """The Hub metric's definition, pixel by pixel."""
    hits, predicted, true = np.zeros((3, num_labels))
    for prediction, reference in zip(predictions, references, strict=True):
        for p, t in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
            t = (label_map or {}).get(t, t)
            if reduce_labels:
                t = 255 if t in (0, 255) else t - 1
            if t != ignore_index:
                hits[t] += p == t
                predicted[p] += 1
                true[t] += 1
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (predicted + true - hits), hits / true
    return dict(
        zip(KEYS, [np.nanmean(iou), np.nanmean(accuracy), hits.sum() / true.sum(), iou, accuracy], strict=True)
    )


def assert_same(scores, expected):
    assert list(scores) == KEYS
    for key in KEYS:
        np.testing.assert_allclose(scores[key], expected[key], atol=1e-12, err_msg=key)


@pytest.mark.parametrize(
    ("predicted", "raw", "arguments"),
    [
        pytest.param(range(5), [*range(5), 255], {"ignore_index": 255}, id="plain"),
        pytest.param(range(5), range(5), {"ignore_index": 0}, id="ignore a class id"),
        pytest.param(range(5), [*range(5), -100], {"ignore_index": -100}, id="negative ignore index"),
        pytest.param(range(5), [0, 1, 2, 255], {"ignore_index": 255}, id="absent but predicted"),
        pytest.param(range(3), [0, 1, 2, 255], {"ignore_index": 255}, id="absent and not predicted"),
        pytest.param(range(5), [*range(6), 255], {"ignore_index": 255, "reduce_labels": True}, id="reduce"),
        pytest.param(range(5), [0, 1, 2], {"ignore_index": 255, "label_map": {0: 1, 1: 2, 2: 0}}, id="map"),
        pytest.param(
            range(5), [7, 33001, 2**31], {"ignore_index": 9, "label_map": {7: 0, 33001: 4, 2**31: 9}}, id="wide ids"
        ),
        pytest.param(
            range(5),
            [0, 1, 5, 9],
            {"ignore_index": 255, "reduce_labels": True, "label_map": {9: 0, 0: 3}},
            id="map, then reduce",
        ),
    ],
)
def test_scores_equal_the_hub_definition(predicted, raw, arguments):
    predictions, references = drawn_maps(0, predicted, raw)
    scores = MeanIoU().compute(predictions=predictions, references=references, num_labels=5, **arguments)
    assert_same(scores, plain_scores(predictions, references, 5, **arguments))


def test_the_example_of_the_hub_metric_card():
    references = [
        np.array([[0, 3], [5, 4], [6, 255]]),
        np.array([[1, 7], [9, 2], [3, 6]]),
        np.array([[1, 2, 2], [8, 2, 1], [3, 255, 1]]),
    ]
    predictions = [
        np.array([[1, 2], [3, 4], [5, 255]]),
        np.array([[2, 7], [9, 2], [3, 6]]),
        np.array([[2, 2, 3], [8, 2, 4], [3, 255, 2]]),
    ]
    scores = MeanIoU().compute(
        predictions=predictions, references=references, num_labels=10, ignore_index=255, reduce_labels=False
    )
    assert scores["mean_iou"] == pytest.approx(0.4775)
    assert scores["mean_accuracy"] == pytest.approx(0.591666667)
    assert scores["overall_accuracy"] == pytest.approx(0.526315789)
    np.testing.assert_allclose(scores["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(scores["per_category_accuracy"], [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1])


def test_label_map_does_not_chain():
    maps = {"predictions": [[[1, 2]]], "references": [[[0, 1]]]}
    scores = MeanIoU().compute(**maps, num_labels=3, ignore_index=255, label_map={0: 1, 1: 2})
    assert scores["overall_accuracy"] == 1


def test_nan_to_num_replaces_nan_after_the_mean():
    maps = {"predictions": [[[0, 1]]], "references": [[[0, 0]]]}
    scores = MeanIoU().compute(**maps, num_labels=3, ignore_index=255, nan_to_num=-1)
    assert scores["mean_iou"] == 0.25  # of classes 0 (0.5) and 1 (predicted only: 0)
    assert scores["per_category_iou"].tolist() == [0.5, 0, -1]
    assert scores["per_category_accuracy"].tolist() == [0.5, -1, -1]


@pytest.mark.parametrize(
    "kind",
    [np.ndarray.tolist, torch.from_numpy, lambda ids: ids.astype(np.uint8), lambda ids: torch.tensor(ids).byte()],
)
def test_any_kind_of_integer_map(kind):
    predictions, references = drawn_maps(1, range(4), [*range(4), 255])
    scores = MeanIoU().compute(
        predictions=list(map(kind, predictions)),
        references=list(map(kind, references)),
        num_labels=4,
        ignore_index=255,
    )
    assert_same(scores, plain_scores(predictions, references, 4, 255))


def test_streamed_equals_at_once_and_compute_starts_anew():
    predictions, references = drawn_maps(2, range(4), [*range(4), 255])
    arguments = {"num_labels": 4, "ignore_index": 255}
    metric = MeanIoU()
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=torch.tensor(predictions[1])[None], references=torch.tensor(references[1])[None])
    assert len(metric) == 2
    scores = metric.compute(predictions=predictions[2:], references=references[2:], **arguments)
    assert_same(scores, plain_scores(predictions, references, **arguments))
    assert len(metric) == 0
    again = metric.compute(predictions=predictions[:1], references=references[:1], **arguments)
    assert_same(again, plain_scores(predictions[:1], references[:1], **arguments))
    assert_same(metric._compute(predictions=predictions, references=references, **arguments), scores)


def test_no_image_is_kept():
    metric = MeanIoU()
    images = []
    for seed in range(20):
        predictions, references = drawn_maps(seed, range(4), range(4))
        images += [weakref.ref(image) for image in (*predictions, *references)]
        metric.add_batch(predictions=predictions, references=references)
    del predictions, references
    gc.collect()
    assert not any(image() is not None for image in images)
    assert len(metric._pairs) == 16


def test_no_network_is_touched(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    MeanIoU().compute(predictions=[[[0]]], references=[[[0]]], num_labels=2, ignore_index=255)


def test_combines_with_other_metrics():
    scores = evaluate.combine([MeanIoU()]).compute(
        predictions=[[[0, 1]]], references=[[[0, 1]]], num_labels=2, ignore_index=255
    )
    assert scores["mean_iou"] == 1


def test_nothing_but_ignored_pixels_gives_nan_without_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = MeanIoU().compute(predictions=[[[0]]], references=[[[255]]], num_labels=2, ignore_index=255)
    assert all(np.isnan(scores[key]).all() for key in KEYS)


def test_mistakes_are_named():
    arguments = {"num_labels": 2, "ignore_index": 255}
    with pytest.raises(UserError, match="2 predictions for 1 references"):
        MeanIoU().compute(predictions=[[[0]], [[0]]], references=[[[0]]], **arguments)
    with pytest.raises(UserError, match=r"Image 1: .* \(1, 2\) .* \(2, 1\)"):
        MeanIoU().compute(predictions=[[[0]], [[0, 1]]], references=[[[0]], [[0], [1]]], **arguments)
    with pytest.raises(UserError, match="float64; expected integer class ids"):
        MeanIoU().compute(predictions=[[[0.2]]], references=[[[0]]], **arguments)
    with pytest.raises(UserError, match="1 label pixels are neither"):  # silently dropped by the original
        MeanIoU().compute(predictions=[[[0]]], references=[[[2]]], **arguments)
    with pytest.raises(UserError, match="num_process is 2"):
        MeanIoU(num_process=2, process_id=0, experiment_id="a")
