import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from deft_hf.comparison.outcomes import Comparison, Outcome
from deft_hf.comparison.statistics import (
    SOURCE_MEAN,
    UNSEEN_MEAN,
    Interval,
    resampled_mean_iou,
    summarize,
    t_interval,
    unseen_means,
)
from deft_hf.scoring.confusion import ConfusionMatrix

LABELS = ["road", "sky", "boat"]
NAN = math.nan


def scores(counts):
    """What the metric says of a confusion matrix, (C, C) or one for each image."""
    matrix = ConfusionMatrix(counts.shape[-1])
    total = torch.as_tensor(counts.reshape(-1, *counts.shape[-2:]).sum(0))
    truth, predicted = torch.meshgrid(torch.arange(len(total)), torch.arange(len(total)), indexing="ij")
    matrix.update(predicted, truth, times=total)
    return matrix.compute().to_dict()


def confusions(truth, errors, generator):
    """Counts (images, C, C) of a model that gets a share of each image's pixels wrong; truth (images, C)."""
    wrong = generator.binomial(truth, np.clip(errors, 0, 1)[:, None])
    guesses = generator.multinomial(wrong, [1 / truth.shape[1]] * truth.shape[1])
    guesses[:, range(truth.shape[1]), range(truth.shape[1])] += truth - wrong
    return guesses


def scored(counts, **facts):
    """An outcome with these counts by domain, and the scores that follow."""
    return Outcome(scores={domain: scores(found) for domain, found in counts.items()}, counts=counts, **facts)


def plain(**mean_iou):
    """An outcome with nothing but mean IoU by domain."""
    return Outcome(scores={domain: {"mean_iou": value} for domain, value in mean_iou.items()})


def compared(outcomes, source=("day",), unseen=("rain", "fog"), baseline="joint", **facts):
    seeds = sorted({seed for by_seed in outcomes.values() for seed in by_seed})
    return Comparison(
        title="weathers",
        command="python -m deft_hf.compare recipes/weathers.yaml",
        recipe="model: {checkpoint: tiny}\n",
        baseline=baseline,
        labels=LABELS,
        notes={method: f"what {method} is" for method in outcomes},
        outcomes=outcomes,
        **{"settings": {}, "seeds": seeds, "source": list(source), "unseen": list(unseen), **facts},
    )


def random_runs(methods=("joint", "deft"), seeds=(1, 2, 3), domains=("day", "rain", "fog"), images=12, start=0):
    generator = np.random.default_rng(start)
    truth = {domain: generator.integers(1, 300, (images, 3)) for domain in domains}
    return {
        method: {
            seed: scored(
                {d: confusions(truth[d], generator.uniform(0.1, 0.6) + np.zeros(images), generator) for d in domains}
            )
            for seed in seeds
        }
        for method in methods
    }


def test_means_over_domains_count_each_domain_once():
    outcomes = {1: plain(day=0.9, rain=0.2, fog=0.4), 7: plain(day=0.8, rain=0.1, fog=0.1)}
    assert unseen_means(outcomes, ["rain", "fog"]) == pytest.approx({1: 0.3, 7: 0.1})
    assert unseen_means(outcomes, ["day"]) == {1: 0.9, 7: 0.8}


def test_a_mean_that_lacks_a_domain_is_nan():
    outcomes = {1: plain(rain=0.2), 2: plain(rain=0.2, fog=NAN), 3: plain(rain=0.2, fog=None)}
    assert all(math.isnan(value) for value in unseen_means(outcomes, ["rain", "fog"]).values())
    assert math.isnan(unseen_means(outcomes, [])[1])


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_t_interval_is_that_of_scipy(count):
    values = np.random.default_rng(count).normal(0.3, 0.1, count)
    found = t_interval(list(values))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), abs=1e-12)


def test_fewer_than_two_values_have_no_interval():
    one, none = t_interval([0.4]), t_interval([])
    assert one.mean == 0.4 and math.isnan(one.low) and math.isnan(one.high) and not one.clear_of_zero
    assert all(math.isnan(value) for value in (none.mean, none.low, none.high))


def test_clear_of_zero():
    assert Interval(1, 0.5, 1.5).clear_of_zero and Interval(-1, -1.5, -0.5).clear_of_zero
    assert not Interval(1, -0.5, 2.5).clear_of_zero and not Interval(0, 0, 0).clear_of_zero


def test_interval_in_points():
    assert Interval(0.012, 0.003, 0.0214).in_points() == "+1.2 [+0.3, +2.1]"
    assert Interval(-0.012, NAN, NAN).in_points() == "-1.2"
    assert Interval(NAN, NAN, NAN).in_points() == "-"


def test_resampled_mean_iou_is_that_of_the_metric():
    """Among the images are ones without a class, with a class that is only predicted, and without any pixel."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 10**9, (9, 5, 5)) * (generator.random((9, 5, 5)) < 0.4)
    counts[0] = 0
    counts[:3, 4] = 0
    counts[:3, :, 4] = 0
    weights = np.concatenate([np.eye(9, dtype=int), generator.integers(0, 4, (40, 9)), np.ones((1, 9), int)])
    found = resampled_mean_iou(counts, weights)
    expected = [scores(np.einsum("i,icd->cd", weight, counts))["mean_iou"] for weight in weights]
    assert np.isnan(found[0]) and np.isnan(expected[0])
    assert any(0 in scores(counts[index])["iou"] for index in range(9))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_class_that_is_only_predicted_counts_as_zero_and_one_that_is_neither_is_left_out():
    counts = np.array([[[8, 2, 0], [0, 0, 0], [0, 0, 0]]])
    assert resampled_mean_iou(counts, np.ones((1, 1))) == pytest.approx([(0.8 + 0) / 2], abs=1e-12)


def test_differences_are_those_of_the_paired_t_test():
    runs = random_runs(("joint", "deft", "lp_ft"), seeds=(1, 2, 3, 4))
    summaries = summarize(compared(runs), resamples=10)
    for method in ("deft", "lp_ft"):
        for key, domains in {
            "day": ["day"],
            "fog": ["fog"],
            SOURCE_MEAN: ["day"],
            UNSEEN_MEAN: ["rain", "fog"],
        }.items():
            ours, base = (
                [np.mean([runs[m][s].scores[d]["mean_iou"] for d in domains]) for s in (1, 2, 3, 4)]
                for m in (method, "joint")
            )
            low, high = stats.ttest_rel(ours, base).confidence_interval(0.95)
            found = summaries[method].differences[key]
            assert found.seeds == 4
            expected = (np.mean(ours) - np.mean(base), low, high)
            assert (found.interval.mean, found.interval.low, found.interval.high) == pytest.approx(expected, abs=1e-12)
            mean = summaries[method].means[key]
            low, high = stats.ttest_1samp(ours, 0).confidence_interval(0.95)
            assert (mean.mean, mean.low, mean.high) == pytest.approx((np.mean(ours), low, high), abs=1e-12)
    assert summaries["joint"].differences == {}
    assert [*summaries] == ["joint", "deft", "lp_ft"]


def test_only_seeds_that_both_have_are_paired():
    joint = {1: plain(day=0.5, rain=0.2), 2: plain(day=0.5, rain=0.4), 3: plain(day=0.5, rain=0.4)}
    deft = {4: plain(day=0.5, rain=0.9), 3: plain(day=0.5, rain=0.7), 2: plain(day=NAN, rain=0.5)}
    summary = summarize(compared({"joint": joint, "deft": deft}, unseen=["rain"]))["deft"]
    assert summary.differences["rain"].values == pytest.approx({2: 0.1, 3: 0.3})
    assert summary.differences["day"].values == {3: 0.0}
    assert summary.differences["day"].interval.mean == 0 and math.isnan(summary.differences["day"].interval.low)
    assert [*summary.values["rain"]] == [2, 3, 4] and math.isnan(summary.values["day"][2])
    assert summary.means["day"].mean == 0.5
    assert summary.differences["rain"].bootstrap is None


def test_without_a_baseline_or_unseen_domains_there_is_nothing_of_them():
    summaries = summarize(compared({"deft": {1: plain(day=0.5)}, "joint": {}}, unseen=[]))
    assert summaries["deft"].differences["day"].seeds == 0
    assert math.isnan(summaries["deft"].differences["day"].interval.mean)
    assert summaries["deft"].means.keys() == {"day", SOURCE_MEAN}
    assert math.isnan(summaries["joint"].means["day"].mean)
    absent = summarize(compared({"deft": {1: plain(day=0.5)}}, unseen=[], baseline="joint"))
    assert [*absent] == ["deft"] and absent["deft"].differences["day"].seeds == 0


def test_bootstrap_is_a_plain_loop_over_seeds_and_images():
    """Against a loop that draws indices, sums counts and takes IoU class by class; the draws differ."""

    def mean_iou(total):
        return np.mean([total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3)])

    runs = random_runs(seeds=(1, 2, 3, 4), images=10)
    found = summarize(compared(runs), resamples=4000, seed=3)["deft"].differences[UNSEEN_MEAN].bootstrap
    generator = np.random.default_rng(99)
    means = []
    for _ in range(1500):
        images = {domain: generator.integers(10, size=10) for domain in ("rain", "fog")}
        drawn = generator.integers(1, 5, size=4)
        value = {}
        for method, seed in product(runs, set(drawn)):
            counts = runs[method][seed].counts
            value[method, seed] = np.mean([mean_iou(counts[d][images[d]].sum(0)) for d in images])
        means.append(np.mean([value["deft", seed] - value["joint", seed] for seed in drawn]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))
    assert found.mean == pytest.approx(summarize(compared(runs))["deft"].differences[UNSEEN_MEAN].interval.mean)


def test_bootstrap_of_two_seeds_on_one_image_is_their_range():
    """One image is drawn every time; the lower seed twice with probability 1/4, which is more than 2.5 %."""
    runs = random_runs(seeds=(1, 2), images=1)
    difference = summarize(compared(runs))["deft"].differences[UNSEEN_MEAN]
    expected = (min(difference.values.values()), max(difference.values.values()))
    assert (difference.bootstrap.low, difference.bootstrap.high) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_of_one_seed_is_over_its_images():
    """Binary truth, two images: both once with probability 1/2, one of them twice with 1/4 each."""
    base = np.array([[[8, 2], [0, 10]], [[5, 5], [0, 10]]])
    ours = np.array([[[9, 1], [0, 10]], [[5, 5], [5, 5]]])
    runs = {"joint": {1: scored({"rain": base})}, "deft": {1: scored({"rain": ours})}}
    found = summarize(compared(runs, source=[], unseen=["rain"]))["deft"].differences["rain"]
    singles = [scores(ours[i])["mean_iou"] - scores(base[i])["mean_iou"] for i in range(2)]
    assert (found.bootstrap.low, found.bootstrap.high) == pytest.approx(sorted(singles), abs=1e-12)
    assert math.isnan(found.interval.low)


def test_bootstrap_draws_the_same_seeds_and_images_for_both():
    """A method that is the baseline differs by exactly nothing, however seeds and images spread."""
    runs = random_runs(("joint",), seeds=(1, 2, 3))
    found = summarize(compared(runs | {"same": runs["joint"]}))["same"].differences[UNSEEN_MEAN]
    assert (found.bootstrap.low, found.bootstrap.high) == (0, 0)


def test_bootstrap_hangs_on_its_seed_alone():
    runs = random_runs(("joint", "deft", "lp_ft"))
    backwards = {method: dict(reversed(by_seed.items())) for method, by_seed in reversed(runs.items())}
    first = summarize(compared(runs), seed=5)["deft"].differences
    again = summarize(compared(backwards), seed=5)["deft"].differences
    other = summarize(compared(runs), seed=6)["deft"].differences
    assert first == again
    assert first["fog"].bootstrap != other["fog"].bootstrap


def test_bootstrap_needs_the_counts_of_all_paired_runs():
    runs = random_runs()
    runs["deft"][2].counts.pop("fog")
    found = summarize(compared(runs))["deft"].differences
    assert found["fog"].bootstrap is None and found[UNSEEN_MEAN].bootstrap is None
    assert found["rain"].bootstrap is not None and found[SOURCE_MEAN].bootstrap is not None


def test_runs_on_other_images_are_no_pair():
    runs = random_runs()
    runs["deft"][2].counts["fog"] = runs["deft"][2].counts["fog"][::-1]
    with pytest.raises(ValueError, match="deft, seed 2: scored on other images of 'fog'"):
        summarize(compared(runs))
