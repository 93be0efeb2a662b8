import math

import numpy as np
import pytest
import torch

from deft_hf.scoring.confusion import ConfusionMatrix
from deft_hf.scoring.estimates import ESTIMATORS, Calibration, LabelledCounts
from deft_hf.scoring.estimates.counts import PlaceCounts, above_threshold, threshold_for
from deft_hf.scoring.estimates.estimators import Parameters, matrix_iou, with_precision
from deft_hf.utils.errors import UserError

CLASSES = 3
PRIOR = torch.tensor([1.0, 0.0, -1.0])[:, None, None]


def drawn(count, sharpness=2.0, overconfidence=1.0, size=(24, 32), seed=0):
    """Images as (probabilities, labels); the labels follow the probabilities before logits are made more extreme."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        logits = PRIOR + sharpness * torch.randn(CLASSES, *size, generator=generator)
        chances = logits.softmax(0).reshape(CLASSES, -1).T
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0].view(size)
        yield (logits * overconfidence).softmax(0), labels


def counted(samples):
    counts = LabelledCounts(CLASSES)
    for sample in samples:
        counts.update(*sample)
    return counts


def at_place(calibration, samples):
    place = calibration.counts()
    for probabilities, *members in samples:
        place.update(probabilities, *members)
    return place


def shifted_copies(seed, kinds=12, images=4, overconfidence=1.5):
    rng = np.random.default_rng(seed)
    return [
        (f"kind{number}", counted(drawn(images, rng.uniform(1, 2), overconfidence, seed=1000 * seed + number)))
        for number in range(kinds)
    ]


@pytest.fixture(scope="module")
def calibration():
    return Calibration(counted(drawn(20, 2.0, 1.5, seed=1)), shifted_copies(2))


def shares_of(*shares):
    plain = [torch.tensor(value, dtype=torch.float64).expand(CLASSES) for value in (1.0, 0.0, 0.0)]
    return Parameters(*plain, shares=torch.tensor(shares, dtype=torch.float64))


def unlabelled(samples):
    return [probabilities for probabilities, _ in samples]


# What is estimated


def test_soft_iou_of_calibrated_predictions_is_the_expected_iou():
    """Over labels drawn many times from the probabilities, as the union changes with them hardly at all."""
    (probabilities, _), *_ = drawn(1, size=(40, 50))
    place = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
    place.update(probabilities)
    soft = place.evidence().soft[0]

    chances, classes = probabilities.reshape(CLASSES, -1).T, probabilities.argmax(0).flatten()
    draws = []
    for seed in range(200):
        labels = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        matrix = ConfusionMatrix(CLASSES)
        matrix.update(classes, labels)
        draws.append(matrix.compute().iou)
    expected = np.mean(draws, 0)
    np.testing.assert_allclose(matrix_iou(soft), expected, atol=0.003)


def test_thresholded_confidence_equals_a_plain_reference():
    source, place = list(drawn(6, 2.0, 2.0, seed=3)), list(drawn(5, 1.2, 2.0, seed=4))
    parameters = Parameters.fit(counted(source))
    found = PlaceCounts(parameters.temperatures, parameters.thresholds)
    for probabilities, _ in place:
        found.update(probabilities)
    evidence = found.evidence()

    p = torch.cat([probabilities.reshape(CLASSES, -1) for probabilities, _ in source], 1).T.double().numpy()
    y = torch.cat([labels.flatten() for _, labels in source]).numpy()
    q = torch.cat([probabilities.reshape(CLASSES, -1) for probabilities, _ in place], 1).T.double().numpy()
    for label in range(CLASSES):
        own = p.argmax(1) == label
        precision = (y[own] == label).mean()
        threshold = np.quantile(p[own].max(1), 1 - precision)
        share = (q[q.argmax(1) == label].max(1) > threshold).mean()
        assert float(evidence.above[0, label] / evidence.predicted[0, label]) == pytest.approx(share, abs=0.005)


def test_difference_of_confidences_equals_a_plain_reference():
    source, place = list(drawn(6, 2.0, 2.0, seed=3)), list(drawn(5, 1.2, 2.0, seed=4))
    calibration = Calibration(counted(source))
    evidence = at_place(calibration, [(p,) for p in unlabelled(place)]).evidence()
    found = ESTIMATORS["difference"](evidence, calibration.parameters)[0]

    p = torch.cat([probabilities.reshape(CLASSES, -1) for probabilities, _ in source], 1).T.double().numpy()
    y = torch.cat([labels.flatten() for _, labels in source]).numpy()
    q = torch.cat([probabilities.reshape(CLASSES, -1) for probabilities, _ in place], 1).T.double().numpy()
    expected = np.zeros((CLASSES, CLASSES))
    for label in range(CLASSES):
        own, there = p.argmax(1) == label, q[q.argmax(1) == label]
        precision = (y[own] == label).mean() - (p[own].max(1).mean() - there.max(1).mean())
        expected[label] = there.sum(0) / np.delete(there.sum(0), label).sum() * (1 - precision) * len(there)
        expected[label, label] = precision * len(there)
    hits = expected.diagonal()
    np.testing.assert_allclose(found, hits / (expected.sum(0) + expected.sum(1) - hits), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0, 5.0])
def test_a_known_temperature_is_found(temperature):
    found = Parameters.fit(counted(drawn(30, 2.0, temperature, seed=5))).temperatures
    np.testing.assert_allclose(found, temperature, rtol=0.08)


def test_a_temperature_of_one_class_is_found_for_it_alone():
    def samples():
        for probabilities, labels in drawn(40, 2.0, seed=6):
            sharper = (3 * probabilities.log()).softmax(0)
            yield torch.where(probabilities.argmax(0) == 1, sharper, probabilities), labels

    np.testing.assert_allclose(Parameters.fit(counted(samples())).temperatures, [1, 3, 1], rtol=0.12)


def test_soft_dice_is_the_mean_over_the_images_where_a_class_is_predicted():
    first = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.4, 0.8], [0.0, 0.0, 0.0]])[:, None]  # classes 0, 0, 1
    second = torch.tensor([[0.7, 0.9, 0.8], [0.3, 0.1, 0.2], [0.0, 0.0, 0.0]])[:, None]  # class 0 alone
    place = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
    place.update(first)
    place.update(second)
    found = ESTIMATORS["soft_dice"](place.evidence(), shares_of(0.5, 0.5, 0))[0]
    dice0 = (2 * 1.5 / (1.7 + 2) + 2 * 2.4 / (2.4 + 3)) / 2
    dice1 = 2 * 0.8 / (1.3 + 1)
    assert found[0] == pytest.approx(dice0 / (2 - dice0), abs=1e-6)
    assert found[1] == pytest.approx(dice1 / (2 - dice1), abs=1e-6)
    assert math.isnan(found[2])


def test_agreement_of_members_foretells_the_loss():
    """Members see the truth through independent noise, which grows from place to place."""

    def samples(noise, seed, count=4):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            labels = torch.randint(CLASSES, (40, 50), generator=generator)

            def seen(labels=labels):
                other = torch.randint(CLASSES, labels.shape, generator=generator)
                return torch.where(torch.rand(labels.shape, generator=generator) < noise, other, labels)

            # Confidence says nothing here: it is the same everywhere.
            yield torch.nn.functional.one_hot(seen(), CLASSES).permute(2, 0, 1) * 0.9 + 0.03, labels, [seen(), seen()]

    copies = [(f"kind{number}", counted(samples(0.1 + 0.03 * number, number))) for number in range(12)]
    calibration = Calibration(counted(samples(0.1, 100)), copies)
    place = list(samples(0.33, 200))
    truth = counted(place).truth.compute()
    estimate = calibration.estimate([(p, members) for p, _, members in place], "agreement")
    assert estimate.mean_iou == pytest.approx(truth.mean_iou, abs=0.02)
    np.testing.assert_allclose(estimate.per_class, truth.iou, atol=0.03)
    blind = calibration.estimate([p for p, *_ in place], "temperature")
    assert blind.mean_iou > truth.mean_iou + 0.15


@pytest.mark.parametrize("method", ["confidence", "temperature", "thresholded", "difference", "soft_dice"])
def test_overconfident_estimates_are_put_right_by_corrupted_copies(calibration, method):
    place = list(drawn(10, 1.3, 1.5, seed=7))
    truth = counted(place).truth.compute().mean_iou
    estimate = calibration.estimate(unlabelled(place), method)
    assert abs(estimate.mean_iou - truth) < 0.03 < abs(calibration.scores.mean_iou - truth)
    assert estimate.trusted and estimate.interval[0] <= truth <= estimate.interval[1]


def test_a_class_that_no_member_predicts_is_none_that_they_agree_on():
    """Expected on a tenth of the pixels, it scores 0, as in a soft confusion matrix."""
    image = torch.tensor([0.6, 0.3, 0.1])[:, None, None].repeat(1, 4, 4)
    image[:, :2] = torch.tensor([0.3, 0.6, 0.1])[:, None, None]
    place = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
    place.update(image, [image.argmax(0)])
    assert ESTIMATORS["agreement"](place.evidence(), shares_of(0.5, 0.4, 0.1))[0].tolist() == [1, 1, 0]


# Intervals


def test_intervals_cover_as_often_as_they_say():
    """Places and copies drawn alike: each copy as a place, in 4 x 20 draws."""
    inside, widths = [], []
    for seed in range(4):
        calibration = Calibration(counted(drawn(6, 2.0, 1.5, (16, 16), seed)), _small_copies(seed, 16))
        for probabilities in range(20):
            sharpness = np.random.default_rng([seed, probabilities]).uniform(1, 2)
            place = list(drawn(4, sharpness, 1.5, (16, 16), seed=10_000 + 100 * seed + probabilities))
            estimate = calibration.estimate(unlabelled(place))
            truth = counted(place).truth.compute().mean_iou
            inside.append(estimate.interval[0] <= truth <= estimate.interval[1])
            widths.append(estimate.interval[1] - estimate.interval[0])
    assert 0.85 <= np.mean(inside) <= 1.0
    assert np.mean(widths) < 0.25


def _small_copies(seed, kinds):
    rng = np.random.default_rng(seed)
    return [
        (f"kind{number}", counted(drawn(4, rng.uniform(1, 2), 1.5, (16, 16), 500 * (seed + 1) + number)))
        for number in range(kinds)
    ]


def test_a_lower_level_is_narrower(calibration):
    place = at_place(calibration, [(p,) for p in unlabelled(drawn(6, 1.4, 1.5, seed=8))])
    wide, narrow = calibration.estimate(place, level=0.9).interval, calibration.estimate(place, level=0.3).interval
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1] and narrow != wide


def test_replicates_spread_as_draws_of_images_with_replacement():
    images = [
        image for sharpness in (0.5, 1, 2, 4) for image in unlabelled(drawn(5, sharpness, seed=int(10 * sharpness)))
    ]
    place = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
    for image in images:
        place.update(image)
    evidence = place.evidence()
    spread = matrix_iou(evidence.soft).mean(-1)[1:].std()

    single = []
    for image in images:
        alone = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
        alone.update(image)
        single.append(alone.evidence().soft[0])
    single, rng = torch.stack(single), np.random.default_rng(0)
    draws = torch.stack([single[rng.integers(0, 20, 20)].sum(0) for _ in range(300)])
    reference = matrix_iou(draws).mean(-1).std()
    assert float(spread / reference) == pytest.approx(1, abs=0.2)


# Without trust


def test_one_class_everywhere_is_not_trusted(calibration):
    flat = torch.tensor([0.9, 0.06, 0.04])[:, None, None].expand(CLASSES, 20, 20)
    estimate = calibration.estimate([flat] * 5)
    assert not estimate.trusted and "predicted as one class" in estimate.reason
    assert str(estimate).startswith("not estimated: 100.0 % of the pixels")


def test_a_model_that_learned_one_class_of_its_source_is_not_trusted():
    flat = torch.tensor([0.9, 0.06, 0.04])[:, None, None].expand(CLASSES, 20, 20)
    labels = torch.arange(400).view(20, 20) % CLASSES
    place = unlabelled(drawn(5, 1.5, 1.5, seed=9))
    assert "finds one class alone" in Calibration(counted([(flat, labels)] * 4)).estimate(place).reason
    swapped = flat.clone()
    swapped[:, :2] = flat[[1, 0, 2], :2]  # two rows of another class: an IoU of 9 %
    assert "finds one class" not in Calibration(counted([(swapped, labels)] * 4)).estimate(place).reason


def test_a_shift_beyond_every_copy_is_not_trusted(calibration):
    estimate = calibration.estimate(unlabelled(drawn(5, 0.3, 1.5, seed=9)))
    assert not estimate.trusted and "on the furthest corrupted copy" in estimate.reason


def test_estimates_that_fail_on_the_copies_are_not_trusted(calibration):
    """The score of source validation says the same everywhere."""
    estimate = calibration.estimate(unlabelled(drawn(5, 1.05, 1.5, seed=9)), "source")
    assert estimate.mean_iou == pytest.approx(calibration.scores.mean_iou)
    assert not estimate.trusted and "off by" in estimate.reason


def test_too_little_is_not_trusted(calibration):
    (image, _), *_ = drawn(1, 1.5, 1.5)
    assert "images are too few" in calibration.estimate([image]).reason
    without = Calibration(counted(drawn(4)))
    estimate = without.estimate(unlabelled(drawn(4)))
    assert "corrupted copies" in estimate.reason and all(map(math.isnan, estimate.interval))
    assert "members are needed" in calibration.estimate([image] * 4, "agreement").reason


def test_a_trusted_estimate_reads_as_a_number(calibration):
    estimate = calibration.estimate(unlabelled(drawn(6, 1.6, 1.5, seed=11)))
    low, high = estimate.interval
    assert str(estimate) == f"{100 * estimate.mean_iou:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert estimate.to_dict()["trusted"] is True and estimate.images == 6 and estimate.shift > 0


# Counting


def test_labelled_and_unlabelled_counts_agree(calibration):
    samples = list(drawn(4, 1.5, 1.5, seed=12))
    parameters = calibration.parameters
    labelled = counted(samples).evidence(parameters.temperatures, parameters.thresholds)
    place = at_place(calibration, [(p,) for p in unlabelled(samples)]).evidence()
    pixels = 4 * 24 * 32
    for name in ("predicted", "soft", "dice", "dice_images", "agreement"):
        torch.testing.assert_close(getattr(place, name)[0], getattr(labelled, name), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(place.tempered[0], labelled.tempered, rtol=0, atol=0.002 * pixels)
    torch.testing.assert_close(place.above[0], labelled.above, rtol=0, atol=0.005 * pixels)


def test_large_images_are_sampled_for_the_temperatures():
    samples = list(drawn(3, 2.0, 2.0, size=(240, 320), seed=13))
    few = [(p[:, ::4, ::4].contiguous(), y[::4, ::4].contiguous()) for p, y in samples]
    found = Parameters.fit(counted(samples)).temperatures
    np.testing.assert_allclose(found, 2, rtol=0.05)
    assert counted(samples).grid.sum() < 1.2 * counted(few).grid.sum() * 2


def test_memory_does_not_grow_with_the_images(calibration):
    def size(counts):
        tensors = [value for value in vars(counts).values() if isinstance(value, torch.Tensor)]
        others = [value for value in vars(counts).values() if isinstance(value, list | dict | tuple)]
        return sum(t.untyped_storage().nbytes() for t in tensors), sum(len(value) for value in others)

    images = list(drawn(12))
    labelled, place = LabelledCounts(CLASSES), calibration.counts()
    sizes = []
    for probabilities, labels in images:
        labelled.update(probabilities, labels)
        place.update(probabilities)
        sizes.append((size(labelled), size(place)))
    assert len(set(sizes)) == 1


def test_ignored_pixels_have_no_truth_but_count_as_pixels_of_the_place():
    samples = list(drawn(6, 2.0, 2.0, seed=14))
    half = []
    for probabilities, labels in samples:
        labels = labels.clone()
        labels[:, :16] = 255
        half.append((probabilities, labels))
    cut = [(p[:, :, 16:].contiguous(), y[:, 16:].contiguous()) for p, y in samples]
    whole, part = counted(half), counted(cut)
    for name in ("temperatures", "thresholds", "gaps"):
        torch.testing.assert_close(getattr(Parameters.fit(whole), name), getattr(Parameters.fit(part), name))
    evidence = whole.evidence(torch.ones(CLASSES), torch.zeros(CLASSES))
    assert evidence.predicted.sum() == 6 * 24 * 32


def test_classes_that_are_missing_somewhere():
    """Class 2 has no pixel on the source and is predicted nowhere: it is left out, and the others stay."""
    two = [(torch.cat([p[:2], torch.zeros(1, *p.shape[1:])]), y.clamp_max(1)) for p, y in drawn(6, seed=15)]
    calibration = Calibration(counted(two), [(f"kind{number}", counted(two)) for number in range(10)])
    assert calibration.parameters.temperatures.isfinite().all()
    estimate = calibration.estimate(unlabelled(two), "temperature")
    assert math.isnan(estimate.per_class[2]) and math.isnan(estimate.class_intervals[2][0])
    assert estimate.mean_iou == pytest.approx(np.nanmean(counted(two).truth.compute().iou), abs=0.01)


@pytest.mark.parametrize("method", [name for name in ESTIMATORS if name != "agreement"])
def test_a_class_that_is_never_predicted_is_missed_or_absent(method):
    image = torch.tensor([0.6, 0.398, 0.002])[:, None, None].repeat(1, 4, 4)
    image[:, :2] = torch.tensor([0.398, 0.6, 0.002])[:, None, None]
    place = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
    place.update(image)
    missed = ESTIMATORS[method](place.evidence(), shares_of(0.5, 0.4, 0.1))[0]
    absent = ESTIMATORS[method](place.evidence(), shares_of(0.2, 0.2, 0.6))[0]
    assert missed[:2].isfinite().all() and missed[2] == 0 and math.isnan(absent[2])


def test_a_mean_is_never_of_one_class_alone():
    place = PlaceCounts(torch.ones(CLASSES), torch.zeros(CLASSES))
    place.update(torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(CLASSES, 4, 4))
    found = ESTIMATORS["temperature"](place.evidence(), shares_of(0.9, 0.1, 0))[0]
    assert found[:2].tolist() == [1, 0] and math.isnan(found[2])


def test_another_diagonal_keeps_rows_and_their_proportions():
    soft = torch.tensor([[6.0, 3.0, 1.0], [1.0, 8.0, 1.0], [0.0, 0.0, 5.0]])
    found = with_precision(soft, torch.tensor([2.0, 9.0, 5.0]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 6.0, 2.0], [0.5, 9.0, 0.5], [0.0, 0.0, 5.0]]))


def test_thresholds_are_read_between_bins():
    histogram = torch.zeros(1, 512)
    histogram[0, 300], histogram[0, 301] = 30, 70
    threshold = threshold_for(histogram[0], 0.85)
    assert float(above_threshold(histogram, torch.tensor([threshold]))[0]) == pytest.approx(85, abs=1e-4)
    assert float(above_threshold(histogram, torch.tensor([threshold_for(histogram[0], 1.0)]))[0]) == pytest.approx(100)
    assert float(above_threshold(histogram, torch.tensor([threshold_for(histogram[0], 0.0)]))[0]) == pytest.approx(0)


def test_scores_that_do_not_sum_to_one_are_divided_by_their_sum(calibration):
    images = unlabelled(drawn(3, 1.5, 1.5, seed=16))
    first, second = calibration.estimate(images), calibration.estimate([7 * image for image in images])
    assert first.mean_iou == pytest.approx(second.mean_iou, abs=1e-6)


def test_mistakes_are_one_message(calibration):
    (image, labels), *_ = drawn(1)
    with pytest.raises(UserError, match=r"probabilities: found \(2, 24, 32\), expected \(3, height, width\)"):
        calibration.counts().update(image[:2])
    with pytest.raises(UserError, match=r"labels: found \(23, 32\), expected \(24, 32\)"):
        LabelledCounts(CLASSES).update(image, labels[1:])
    with pytest.raises(UserError, match="method: found 'magic', expected one of confidence"):
        calibration.estimate([image], "magic")
    with pytest.raises(UserError, match="place: found no image"):
        calibration.estimate([])
    with pytest.raises(UserError, match="source: found no labelled pixel"):
        Calibration(LabelledCounts(CLASSES))


def test_streams_are_read_once():
    streams = [iter(list(drawn(3, seed=number))) for number in range(11)]
    copies = [(f"kind{number}", stream) for number, stream in enumerate(streams[1:])]
    calibration = Calibration.fit(CLASSES, streams[0], copies)
    assert calibration.estimate(iter(unlabelled(drawn(3, seed=20)))).images == 3
    assert next(streams[0], None) is None
