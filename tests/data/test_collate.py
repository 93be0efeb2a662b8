import torch

from deft_hf.data.collate import MaskTargets, collate


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
