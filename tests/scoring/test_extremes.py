import numpy as np
import pytest
from PIL import Image

from deft_hf.data.labels import LabelSpace
from deft_hf.scoring.extremes import Example, extremes, save_overlays
from deft_hf.scoring.tally import REGIONS
from tests.scoring.metrics.test_metrics import tallied
from tests.scoring.test_bootstrap import mean_iou
from tests.scoring.test_confusion import IGNORE, drawn_maps


def spoiled(pairs):
    """The more of an image is wrong, the earlier it comes; the last has no label."""
    for index, (prediction, _) in enumerate(pairs):
        prediction[: 3 * (len(pairs) - index)] = 0
    pairs[-1][1][:] = IGNORE
    return pairs


def test_best_median_and_worst_by_the_mean_iou_of_each_image():
    pairs = spoiled(drawn_maps(0, count=6))
    found = extremes(tallied(pairs, []).by_image()[REGIONS], list("abcdef"))
    scores = {key: mean_iou([pair]) for key, pair in zip("abcde", pairs[:-1], strict=True)}
    order = sorted(scores, key=scores.__getitem__)
    assert [one["image"] for one in found.values()] == [order[-1], order[2], order[0]]
    assert [*found] == ["best", "median", "worst"]
    for one in found.values():
        assert one["mean_iou"] == pytest.approx(scores[one["image"]])


@pytest.mark.parametrize(("count", "kinds"), [(1, ["best"]), (2, ["best", "worst"]), (0, [])])
def test_fewer_images(count, kinds):
    counts = tallied(drawn_maps(1, count=3), []).by_image()[REGIONS][:count]
    found = extremes(counts, list("abc")[:count])
    assert [*found] == kinds and len({one["image"] for one in found.values()}) == count


def test_the_picture_shows_each(tmp_path):
    labels = LabelSpace(("land", "water"))
    wide = np.zeros((10, 600), np.uint8)
    examples = [
        Example(kind, "$a_1$", 0.5, np.zeros((*ids.shape, 3), np.uint8), ids, ids)
        for kind, ids in (("best", wide), ("worst", np.full((30, 20), 255, np.uint8)))
    ]
    save_overlays(tmp_path / "new" / "it.png", {"a": examples, "b": examples[:1]}, labels, 3)
    assert min(Image.open(tmp_path / "new" / "it.png").size) > 300
