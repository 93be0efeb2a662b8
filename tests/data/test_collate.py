import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BatchFeature, default_data_collator

from deft_hf.data.collate import CheckedBatches, MaskTargets, check_item, check_values, collate
from deft_hf.utils.errors import UserError


def sample(value, size=(2, 3), recolored=False):
    item = {"pixel_values": torch.full((3, *size), float(value)), "labels": torch.full(size, value)}
    return item | ({"recolored_pixel_values": torch.full((3, *size), value + 0.5)} if recolored else {})


def test_equal_sizes_are_stacked():
    batch = collate([sample(1), sample(2)])
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 2, 3) and batch["labels"].shape == (2, 2, 3)
    assert batch["labels"].dtype == torch.int64 and batch["labels"][:, 0, 0].tolist() == [1, 2]


def test_recoloured_copies_follow_the_originals_with_the_same_labels():
    batch = collate([sample(1, recolored=True), sample(2, recolored=True)])
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1, 2, 1.5, 2.5]
    assert batch["labels"][:, 0, 0].tolist() == [1, 2, 1, 2]


def test_unequal_sizes_stay_a_list():
    large = sample(2, (4, 4))
    batch = collate([sample(1), large])
    assert [tuple(pixels.shape) for pixels in batch["pixel_values"]] == [(3, 2, 3), (3, 4, 4)]
    assert batch["labels"][1] is large["labels"]


def test_each_entry_is_stacked_by_itself():
    unequal_labels = sample(2) | {"labels": torch.zeros(9, 9, dtype=torch.int64)}
    batch = collate([sample(1), unequal_labels])
    assert isinstance(batch["pixel_values"], torch.Tensor) and isinstance(batch["labels"], list)


def test_mask_targets_are_the_classes_that_an_image_shows():
    busy, empty = sample(2), sample(255)
    busy["labels"] = torch.tensor([[2, 255, 0], [2, 2, 0]])
    batch = MaskTargets()([busy, empty])
    assert batch.keys() == {"pixel_values", "labels", "mask_labels", "class_labels"}
    assert [classes.tolist() for classes in batch["class_labels"]] == [[0, 2], []]
    assert batch["class_labels"][0].dtype == torch.int64 and batch["mask_labels"][0].dtype == torch.bool
    first, second = batch["mask_labels"]
    assert first.tolist() == [[[False, False, True]] * 2, [[True, False, False], [True, True, False]]]
    assert second.shape == (0, 2, 3)


def test_mask_targets_work_on_any_collator_and_on_unequal_sizes():
    assert len(MaskTargets()([sample(1, recolored=True), sample(2, recolored=True)])["mask_labels"]) == 4
    batch = MaskTargets(collate)([sample(1), sample(255, (4, 4))])
    assert [tuple(mask.shape) for mask in batch["mask_labels"]] == [(1, 2, 3), (0, 4, 4)]


# --- what a library user's data set yields


def as_lists(item):
    return {key: value.tolist() for key, value in item.items()}


def as_arrays(item):
    return {key: value.numpy() for key, value in item.items()}


@pytest.mark.parametrize(
    "change", [as_lists, as_arrays, lambda item: BatchFeature(item), lambda item: item | {"id": "a"}]
)
def test_arrays_and_lists_are_taken(change):
    expected, batch = collate([sample(1), sample(2)]), collate([change(sample(1)), change(sample(2))])
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
        assert batch[key].dtype == value.dtype and torch.equal(batch[key], value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, bool])
def test_integers_of_any_type_become_int64(dtype):
    labels = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    batch = collate([sample(0) | {"labels": labels}])
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [[[0, 1, 1], [1, 0, 0]]]


def test_other_floats_become_float32():
    batch = collate(
        [sample(1) | {"pixel_values": np.ones((3, 2, 3))}, sample(1) | {"pixel_values": torch.ones(3, 2, 3).half()}]
    )
    assert batch["pixel_values"].dtype == torch.float32


LABELS = torch.tensor([[0, 1, 2], [2, 1, 0]])


@pytest.mark.parametrize(
    "item, found",
    [
        (sample(1) | {"labels": LABELS[None]}, r"labels: int64 \(1, 2, 3\) with values 0\.\.2"),
        (sample(1) | {"labels": LABELS.float()}, r"labels: float32 \(2, 3\) with values 0\.\.2"),
        (sample(1) | {"labels": torch.eye(3)[LABELS].long()}, r"labels: int64 \(2, 3, 3\) with values 0\.\.1"),
        (sample(1) | {"labels": [[0, 1], [1]]}, r"labels: list without numbers"),
        (sample(1) | {"labels": None}, r"labels: NoneType"),
        (sample(1) | {"pixel_values": torch.zeros(3, 2, 3, dtype=torch.uint8)}, r"pixel_values: uint8 \(3, 2, 3\)"),
        (sample(1) | {"pixel_values": torch.zeros(1, 3, 2, 3)}, r"pixel_values: float32 \(1, 3, 2, 3\)"),
        ({"image": np.zeros((2, 3, 3), np.uint8), "mask": LABELS}, r"keys image: uint8 \(2, 3, 3\) .*; mask: int64"),
        ((torch.zeros(3, 2, 3), LABELS), "found a tuple of Tensor, Tensor"),
        ({}, "found a mapping without keys"),
    ],
)
def test_everything_else_is_one_message(item, found):
    expected = (
        "; expected pixel_values, floats of shape .* and labels, whole numbers of shape .*255 where it is ignored"
    )
    with pytest.raises(UserError, match=found + ".*" + expected):
        collate([item])
    with pytest.raises(UserError, match="^train_dataset: its first item: .*" + found):
        check_item("train_dataset", item, num_labels=3)


@pytest.mark.parametrize(
    "value, way_out",
    [
        (-100, "map -100 to 255"),
        (-1, "map -1 to 255"),
        (3, "load the model with `num_labels`"),
        (254, "num_labels"),
        (256, "0..2"),
    ],
)
@pytest.mark.parametrize("unequal", [False, True])
def test_a_value_that_is_no_class_is_named_in_whichever_item(value, way_out, unequal):
    wrong = sample(1, (4, 4) if unequal else (2, 3))
    wrong["labels"][0, 0] = value
    fine = sample(2) | {"labels": torch.tensor([[0, 1, 2], [255, 2, 1]])}
    collator = CheckedBatches(collate, num_labels=3)
    assert torch.equal(collator([fine])["labels"][0], fine["labels"])
    with pytest.raises(UserError, match=f"the value {value}, but the model has 3 classes.*{way_out}"):
        collator([fine, wrong])
    with pytest.raises(UserError, match=f"eval_dataset: its first item: .*the value {value},"):
        check_item("eval_dataset", wrong, num_labels=3)


def test_batches_of_other_collators_are_checked_and_cast():
    items = [as_arrays(sample(1)), as_arrays(sample(2))]
    batch = CheckedBatches(default_data_collator, 3)(
        [item | {"labels": item["labels"].astype(np.int32)} for item in items]
    )
    assert batch["labels"].dtype == torch.int64 and batch["labels"].shape == (2, 2, 3)
    assert MaskTargets(CheckedBatches(collate, 3))([sample(1)])["class_labels"][0].tolist() == [1]
    for made in (lambda items: {"x": torch.zeros(2)}, lambda items: items, lambda items: {**batch, "labels": [[1]]}):
        with pytest.raises(UserError, match="a batch holds"):
            CheckedBatches(made, 3)(items)


@pytest.mark.parametrize("num_labels", [2, 19, 127, 128, 129, 200, 254])
def test_every_value_is_told_from_the_classes(num_labels):
    """Each alone and beside ignored pixels, which are what the check has a second look for."""
    known = torch.tensor([0, num_labels - 1, 255, 255])
    check_values(known, num_labels)
    check_values(known[:2].expand(3, 2).t(), num_labels)
    wrong = [-(2**63), -(2**32), -256, -255, -100, -2, -1, num_labels, 254, 256, 257, 511, 2**16, 2**32 + 1, 2**56]
    for value in {*wrong} - {num_labels - 1}:
        for beside in (known, known[:2]):
            with pytest.raises(UserError, match=f"labels hold the value {value}, but"):
                check_values(torch.cat([beside, torch.tensor([value])]), num_labels)


def test_workers_hand_over_what_asks_for_gradients():
    items = [sample(1) | {"pixel_values": sample(1)["pixel_values"].requires_grad_()} for _ in range(2)]
    (batch,) = DataLoader(items, 2, num_workers=1, collate_fn=collate)
    assert torch.equal(batch["labels"], collate(items)["labels"]) and not batch["pixel_values"].requires_grad
