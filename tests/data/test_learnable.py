"""Labels from which nothing can be learned, drawn and found before training."""

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.learnable import check_scored, check_sources, check_two_classes
from deft_hf.data.sampling import EvaluationSet, TrainingSet
from deft_hf.data.transforms import EvalTransform, TrainTransform
from deft_hf.utils.errors import UserError

THREE = LabelSpace(("ground", "roof", "pool"))
TWO = LabelSpace(("background", "lesion"))


def domain(root, labels, *masks, name=None):
    """A domain's folder with one image a mask, given as rows of raw ids."""
    root.mkdir(exist_ok=True)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index, rows in enumerate(masks):
        mask = np.array(rows, np.uint8)
        Image.new("RGB", mask.shape[::-1]).save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return Domain.from_folder(root, labels, name=name)


@pytest.mark.parametrize("check", [check_sources, check_scored])
@pytest.mark.parametrize(
    "labels, rows, found, line",
    [
        (TWO, [[0, 255, 255, 0]], "one class alone, background", "255 in the masks is lesion, .*ids: {0: 0, 255: 1}"),
        (THREE, [[0, 0, 255]], "one class alone, ground", "is pool, add to labels: ids: {0: 0, 1: 1, 255: 2}"),
        (THREE, [[255, 255]], "no pixel of a class, all are ignored", "ids:"),
        (TWO, [[1, 1]], "one class alone, lesion", "at least two classes must have pixels$"),
        (LabelSpace(TWO.names, ids={0: 0, 9: 255}), [[0, 9]], "one class alone, background", "have pixels$"),
    ],
)
def test_fewer_than_two_classes_stop(tmp_path, check, labels, rows, found, line):
    report = domain(tmp_path / "town", labels, rows).check()
    report.raise_if_bad()
    with pytest.raises(UserError, match=f"^town: its masks have (pixels of )?{found}.*{line}"):
        check([report])


def test_two_classes_pass_in_silence(tmp_path):
    report = domain(tmp_path / "town", TWO, [[0, 255, 1]], [[0, 0, 0]]).check()
    assert check_sources([report]) == check_scored([report]) == []


def test_every_source_needs_two_classes(tmp_path):
    fine, poor = (domain(tmp_path / name, TWO, rows).check() for name, rows in (("a", [[0, 1]]), ("b", [[1, 1]])))
    with pytest.raises(UserError, match=r"^b: its masks have pixels of one class alone, lesion"):
        check_sources([fine, poor])


def test_a_class_without_a_pixel_in_any_source_is_said(tmp_path):
    labels = LabelSpace(("ground", "roof", "pool", "tree"))
    first, second = (
        domain(tmp_path / "a", labels, [[0, 1, 255]]).check(),
        domain(tmp_path / "b", labels, [[0, 3]]).check(),
    )
    (warning,) = check_sources([first, second])
    assert "has a pixel of pool, which cannot be learned; 20.0% of the pixels are ignored" in warning
    assert "add to labels: ids: {0: 0, 1: 1, 3: 3, 255: 2}" in warning
    assert check_scored([first, second]) == [], "an unseen place need not have every class"


@pytest.mark.parametrize("check", [check_sources, check_scored])
def test_many_ignored_pixels_are_said(tmp_path, check):
    (warning,) = check([domain(tmp_path / "town", TWO, [[0, 1, 255, 255, 255]]).check()])
    assert warning == "town: 60.0% of its pixels are ignored"
    assert check([domain(tmp_path / "city", TWO, [[0, 1, 255, 255]]).check()]) == []


def test_a_report_without_a_look_says_nothing(tmp_path):
    report = domain(tmp_path / "town", TWO, [[0, 0]]).report
    assert check_sources([report]) == check_scored([report]) == []


# --- the library's data sets


def training_set(*domains):
    return TrainingSet(domains, TrainTransform((4, 4)))


def test_a_data_set_of_one_class_is_refused_in_the_library(tmp_path):
    poor = domain(tmp_path / "poor", TWO, [[0, 255]], [[0, 0]])
    fine = domain(tmp_path / "fine", TWO, [[0, 255]], [[0, 1]])
    check_two_classes("train_dataset", training_set(fine))
    check_two_classes("eval_dataset", EvaluationSet(fine, EvalTransform(None)))
    message = r"poor: its masks have pixels of one class alone, background.*ids: {0: 0, 255: 1}"
    with pytest.raises(UserError, match=f"^train_dataset: {message}"):
        check_two_classes("train_dataset", training_set(fine, poor))
    with pytest.raises(UserError, match=f"^eval_dataset: {message}"):
        check_two_classes("eval_dataset", EvaluationSet(poor, EvalTransform(None)))


def item(*rows):
    return {"pixel_values": torch.zeros(3, 1, len(rows[0])), "labels": np.array(rows)}


@pytest.mark.parametrize(
    "items, found", [([item([2, 2]), item([2, 255])], "one class alone, 2"), ([item([255, 255])], "all are ignored")]
)
def test_items_of_one_class_are_refused(items, found):
    with pytest.raises(UserError, match=f"train_dataset: all of its {len(items)} items have .*{found}"):
        check_two_classes("train_dataset", items)
    check_two_classes("train_dataset", [*items, item([0, 1])])


def test_the_search_ends_with_the_second_class():
    class Watched(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    seen = []
    check_two_classes("train_dataset", Watched([item([0, 0]), item([0, 3]), item([1, 1])]))
    assert seen == [0, 1]


@pytest.mark.parametrize("dataset", [None, []])
def test_what_holds_nothing_is_left_alone(dataset):
    check_two_classes("train_dataset", dataset)
