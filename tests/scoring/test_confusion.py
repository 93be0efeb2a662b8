import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.metric import MeanIoU
from deft_hf.utils.errors import UserError
from tests.scoring.test_inference import PeakBytes

CLASSES = 19
IGNORE = 255


def drawn_maps(seed, classes=range(CLASSES), count=3, size=(23, 31)):
    """Pairs (prediction, truth) of the given classes: a tenth ignored, two thirds and some luck right."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        truth = rng.choice(list(classes), size).astype(np.uint8)
        prediction = np.where(rng.random(size) < 2 / 3, truth, rng.choice(list(classes), size)).astype(np.uint8)
        truth[rng.random(size) < 0.1] = IGNORE
        pairs.append((prediction, truth))
    return pairs


def scored(pairs, num_labels=CLASSES, names=None):
    matrix = ConfusionMatrix(num_labels)
    for prediction, truth in pairs:
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return matrix.compute(names)


def plain_iou(pairs, label):
    """Intersection over union of one class, pixel sets and nothing else."""
    prediction = np.concatenate([p[t != IGNORE] for p, t in pairs])
    truth = np.concatenate([t[t != IGNORE] for _, t in pairs])
    return ((prediction == label) & (truth == label)).sum() / ((prediction == label) | (truth == label)).sum()


def test_scores_equal_plain_pixel_sets():
    pairs = drawn_maps(0)
    scores = scored(pairs)

    prediction = np.concatenate([p[t != IGNORE] for p, t in pairs])
    truth = np.concatenate([t[t != IGNORE] for _, t in pairs])
    iou = [plain_iou(pairs, label) for label in range(CLASSES)]
    accuracy = [(prediction[truth == label] == label).mean() for label in range(CLASSES)]
    np.testing.assert_allclose(scores.iou, iou, atol=1e-12)
    np.testing.assert_allclose(scores.accuracy, accuracy, atol=1e-12)
    assert scores.mean_iou == pytest.approx(np.mean(iou), abs=1e-12)
    assert scores.mean_accuracy == pytest.approx(np.mean(accuracy), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx((prediction == truth).mean(), abs=1e-12)
    assert scores.pixels == truth.size
    assert scores.absent == []


def test_counts_have_truth_in_rows_and_predictions_in_columns():
    matrix = ConfusionMatrix(3)
    matrix.update(predictions=torch.tensor([[0, 1, 1], [2, 2, 2]]), labels=torch.tensor([[0, 0, 0], [2, 1, 255]]))
    assert matrix.counts.dtype == torch.int64
    assert matrix.counts.tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 1]]


class TestCityscapesScripts:
    """Equality with the benchmark's own evaluation code, run on label files as the benchmark reads them."""

    @pytest.fixture
    def evaluate(self, tmp_path, monkeypatch):
        official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
        labels = pytest.importorskip("cityscapesscripts.helpers.labels")
        to_id = {train: labels.trainId2label[train].id for train in range(CLASSES)}
        # The scripts have no 255 but many ids that they do not evaluate; ignored pixels are spread over these.
        unscored = [label.id for label in labels.labels if label.ignoreInEval and label.id >= 0]
        args = SimpleNamespace(**vars(official.args))
        args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
        rng = np.random.default_rng(7)

        def raw_ids(ids):
            raw = rng.choice(unscored, ids.shape)
            for train, label_id in to_id.items():
                raw[ids == train] = label_id
            return raw.astype(np.uint8)

        def run(pairs):
            files = {"prediction": [], "truth": []}
            for index, pair in enumerate(pairs):
                for kind, ids in zip(files, pair, strict=True):
                    path = tmp_path / f"{kind}{index}.png"
                    Image.fromarray(raw_ids(ids)).save(path)
                    files[kind].append(str(path))
            result = official.evaluateImgLists(files["prediction"], files["truth"], args)
            iou = [result["classScores"][labels.trainId2label[train].name] for train in range(CLASSES)]
            return result["averageScoreClasses"], iou

        return run

    def test_all_classes(self, evaluate):
        pairs = drawn_maps(1)
        mean_iou, iou = evaluate(pairs)
        scores = scored(pairs)
        assert scores.mean_iou == pytest.approx(mean_iou, abs=1e-6)
        np.testing.assert_allclose(scores.iou, iou, atol=1e-6)

    def test_classes_that_are_neither_in_the_truth_nor_predicted(self, evaluate):
        present = [c for c in range(CLASSES) if c not in (3, 9, 16)]
        pairs = drawn_maps(2, present)
        mean_iou, iou = evaluate(pairs)
        scores = scored(pairs)
        assert scores.absent == [3, 9, 16]
        assert scores.mean_iou == pytest.approx(mean_iou, abs=1e-6)
        np.testing.assert_allclose(scores.iou, iou, atol=1e-6)  # NaN at the same places

    def test_an_absent_class_that_is_predicted(self, evaluate):
        pairs = drawn_maps(3, range(CLASSES - 1))
        pairs[0][0][:2] = CLASSES - 1
        mean_iou, iou = evaluate(pairs)
        scores = scored(pairs)
        assert scores.absent == [CLASSES - 1] and scores.iou[-1] == iou[-1] == 0
        np.testing.assert_allclose(scores.iou, iou, atol=1e-6)
        assert scores.mean_iou == pytest.approx(mean_iou, abs=1e-6)

        predictions, references = zip(*pairs, strict=True)
        hub = MeanIoU().compute(
            predictions=predictions, references=references, num_labels=CLASSES, ignore_index=IGNORE
        )
        assert hub["mean_iou"] == pytest.approx(mean_iou, abs=1e-6)


def test_an_absent_class_is_named_and_left_out():
    truth = np.array([[0, 0, 0, 1]], np.uint8)
    scores = scored([(np.array([[0, 0, 1, 1]], np.uint8), truth)], 3, names=["road", "sky", "boat"])
    assert scores.absent == ["boat"]
    assert math.isnan(scores.iou[2]) and math.isnan(scores.accuracy[2])
    assert scores.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.mean_accuracy == pytest.approx(5 / 6)


def test_predicting_an_absent_class_costs_twice():
    """Each such pixel is a false negative of the class it covers, and the absent class counts with an IoU of 0."""
    truth = np.array([[0, 0, 0, 1]], np.uint8)
    scores = scored([(np.array([[0, 0, 2, 1]], np.uint8), truth)], 3, names=["road", "sky", "boat"])
    assert scores.absent == ["boat"]
    assert scores.iou == pytest.approx([2 / 3, 1, 0])
    assert scores.mean_iou == pytest.approx(5 / 9)


def test_false_positives_on_the_background_count():
    """Everything called nucleus: with the background taken for the ignore index this would score 1."""
    truth = np.array([[0, 0, 0, 1]], np.uint8)
    scores = scored([(np.ones((1, 4), np.uint8), truth)], 2)
    assert scores.iou == [0, 0.25]
    with pytest.raises(UserError, match="ignore_index is 0, which is one of the 2 classes"):
        ConfusionMatrix(2, ignore_index=0)


def test_update_never_waits_for_the_device():
    """A meta tensor has no values: reading one back, or a shape that depends on one, is an error."""
    matrix = ConfusionMatrix(4, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.bincount(matrix.counts.flatten())  # the check can fail
    ids = torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")
    matrix.update(ids, ids)


@pytest.mark.parametrize("label", [4, 254, -1, -100, 2**40])
def test_a_label_out_of_range_is_an_error_that_says_how_many(label):
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([0, 1, 2, 3]), torch.tensor([0, label, 255, label]))
    with pytest.raises(UserError, match=r"2 label pixels are neither .* 0\.\.3 nor the ignore index 255"):
        matrix.compute()


@pytest.mark.parametrize("prediction", [4, -1, 255])
def test_a_prediction_out_of_range_is_an_error_on_valid_pixels_only(prediction):
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([0, prediction]), torch.tensor([0, 255]))
    assert matrix.compute().pixel_accuracy == 1
    matrix.update(torch.tensor([0, prediction]), torch.tensor([0, 3]))
    with pytest.raises(UserError, match=r"1 labelled pixels are predicted .* 0\.\.3"):
        matrix.compute()


def test_shapes_and_types_that_cannot_be_meant():
    matrix = ConfusionMatrix(4)
    with pytest.raises(UserError, match=r"\(2, 4, 4\) and labels \(2, 8, 8\)"):
        matrix.update(torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(2, 8, 8, dtype=torch.long))
    with pytest.raises(UserError, match="predictions are torch.float32"):
        matrix.update(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long))


def test_counts_stay_exact_where_floats_do_not():
    matrix = ConfusionMatrix(2)
    many = 2**60 + 1
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 0]), times=torch.tensor([many, 1]))
    assert matrix.counts.tolist() == [[many, 1], [0, 0]]


def test_merge_equals_one_stream():
    pairs = drawn_maps(4)
    merged = ConfusionMatrix(CLASSES)
    for prediction, truth in pairs:
        part = ConfusionMatrix(CLASSES)
        part.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        merged.merge(part)
    assert merged.compute() == scored(pairs)
    with pytest.raises(ValueError, match="Cannot merge 3 classes"):
        merged.merge(ConfusionMatrix(3))


def _rank(rank, world, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    matrix = ConfusionMatrix(CLASSES)
    for prediction, truth in drawn_maps(5)[rank::world]:
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    matrix.all_reduce()
    (folder / f"{rank}.json").write_text(json.dumps(matrix.compute().to_dict()))
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shares_equal_one(tmp_path):
    # Forked, since two fresh interpreters would spend seconds on importing torch.
    torch.multiprocessing.start_processes(_rank, args=(2, tmp_path), nprocs=2, start_method="fork")
    expected = scored(drawn_maps(5)).to_dict()
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [expected, expected]


def test_all_reduce_alone_changes_nothing():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    matrix.all_reduce()
    assert matrix.counts.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("predicted", [[0, 0, 0], [0, 1, 0]])
def test_a_mean_over_one_class_of_the_truth_is_no_score(predicted):
    """Whoever calls every pixel that class would have 1, and learned nothing."""
    scores = scored([(np.array([predicted], np.uint8), np.array([[0, 0, IGNORE]], np.uint8))], 3)
    assert math.isnan(scores.mean_iou) and scores.absent == [1, 2]
    assert scores.iou[0] == scores.pixel_accuracy == sum(p == 0 for p in predicted[:2]) / 2


def test_a_domain_without_a_valid_pixel_has_no_score_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = scored([(np.zeros((2, 2), np.uint8), np.full((2, 2), IGNORE, np.uint8))], 2)
    assert scores.pixels == 0 and scores.absent == [0, 1]
    assert all(map(math.isnan, [scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy, *scores.iou]))


@pytest.mark.parametrize("ignore", [255, -100, 300])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_ids_of_bytes_are_counted_as_others_are(ignore, dtype):
    generator = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(0, 256, (40, 50), generator=generator) % (9 + 250 * i) for i in (0, 1))
    labels[0] = 255
    quick, plain = ConfusionMatrix(7, ignore), ConfusionMatrix(7, ignore)
    quick.update(predictions.to(dtype), labels.to(dtype))
    plain.update(predictions, labels, times=torch.ones_like(labels))
    assert torch.equal(quick._bins, plain._bins) and quick._bins.sum() == 2000


def test_a_large_map_is_counted_in_parts(monkeypatch):
    monkeypatch.setattr("deft_hf.scoring.confusion._PIXELS", 1000)
    truth, predicted = (torch.randint(0, 5, (100, 300), dtype=torch.uint8) for _ in range(2))
    matrix, whole = ConfusionMatrix(5), torch.zeros(5, 5, dtype=torch.int64)
    with PeakBytes() as bytes_:
        matrix.update(predicted, truth)
    whole.view(-1).scatter_add_(0, (truth.long() * 5 + predicted).flatten(), torch.ones(30000, dtype=torch.int64))
    assert torch.equal(matrix.counts, whole)
    parts, bins = 1000 * (4 + 2), 65536 * 8 * 4
    assert bytes_.peak < truth.nbytes + predicted.nbytes + parts + bins
