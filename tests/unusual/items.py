"""Items and batches of a user's own data set: lists, arrays, types, shapes, values, other keys."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset
from transformers import BatchFeature

from deft_hf.data.collate import check_batch, collate
from deft_hf.trainer.checks import check_classes, check_sizes

CLASSES = 3
IDS = np.arange(16).reshape(4, 4) % CLASSES
PIXELS = np.linspace(-1, 1, 48).reshape(3, 4, 4).astype(np.float32)
ARGS: Any = SimpleNamespace(seed=0, device=torch.device("cpu"))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([item(IDS)])


def item(labels: Any, pixels: Any = PIXELS, **more: Any) -> dict[str, Any]:
    return {"pixel_values": pixels, "labels": labels, **more}


def outcome(given: Any, place: Path) -> Any:
    """Labels of the batch that a training of these items would see; all of its pixels with `pixels` in front."""
    what, given = given if isinstance(given, tuple) and given[0] in ("pixels", "batch") else ("labels", given)
    if what == "batch":
        return check_batch(given, CLASSES)["labels"].numpy()
    items = (
        given
        if isinstance(given, list | Stream | Wild | Endless | Subset | datasets.Dataset)
        else [given, item(torch.from_numpy(IDS))]
    )
    check_classes("train_dataset", items, CLASSES, ARGS, channels=3)
    if isinstance(items, Stream | Subset | datasets.Dataset):
        items = list(items)
    batch = check_batch(collate(items), CLASSES)
    check_sizes(batch["labels"])
    if what == "pixels":
        assert batch["pixel_values"].dtype == torch.float32
        return batch["pixel_values"].numpy()
    assert batch["labels"].dtype == torch.int64
    return batch["labels"][0].numpy()


def with_value(value: int) -> np.ndarray:
    changed = IDS.copy()
    changed[0, 0] = value
    return changed


class Endless:
    """A data set that does not say how many items it has."""

    def __getitem__(self, index: int) -> Any:
        return item(IDS)


class Wild:
    """A data set whose third item is of another kind."""

    def __init__(self, third: Any):
        self.items = [item(IDS * 0), item(IDS * 0), third]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


TENSOR = torch.from_numpy(IDS)
HUB = datasets.Dataset.from_dict({"pixel_values": [PIXELS.tolist()] * 2, "labels": [IDS.tolist()] * 2})
RIGHT = {
    "tensors": (item(TENSOR, torch.from_numpy(PIXELS)), IDS),
    "arrays": (item(IDS), IDS),
    "lists": (item(IDS.tolist(), PIXELS.tolist()), IDS),
    "tuples": (item(tuple(map(tuple, IDS.tolist()))), IDS),
    "a-list-of-tensors": (item(list(TENSOR)), IDS),
    "a-mapping-of-another-class": (UserDict(item(IDS)), IDS),
    **{f"labels-{kind}": (item(IDS.astype(kind)), IDS) for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8")},
    "labels-of-the-other-byte-order": (item(IDS.astype(">i4")), IDS),
    "labels-as-truth": (item(IDS > 0), (IDS > 0).astype(int)),
    "labels-upside-down": (item(IDS[::-1]), IDS[::-1]),
    "labels-of-a-grey-picture": (item(Image.fromarray(IDS.astype(np.uint8))), IDS),
    "labels-read-only": (item(np.broadcast_to(IDS, (4, 4))), IDS),
    "labels-on-another-stride": (item(TENSOR.t().contiguous().t()), IDS),
    "labels-ignored": (item(with_value(255)), with_value(255)),
    "labels-in-bytes-ignored": (item(with_value(255).astype(np.uint8)), with_value(255)),
    "labels-larger-than-the-picture": (
        [item(np.kron(IDS, np.ones((2, 2), int)))] * 2,
        np.kron(IDS, np.ones((2, 2), int)),
    ),
    "labels-that-ask-for-a-gradient": (item(TENSOR, torch.from_numpy(PIXELS).requires_grad_()), IDS),
    "more-keys": (item(IDS, name="a", path=Path("x")), IDS),
    "a-stream": (Stream(), IDS),
    "a-subset": (Subset([item(IDS)] * 3, [2, 0]), IDS),
    "a-data-set-of-the-hub": (HUB, IDS),
    "a-data-set-of-the-hub-as-tensors": (HUB.with_format("torch"), IDS),
    "items-of-a-processor": (BatchFeature(item(IDS)), IDS),
    "labels-of-torch-uint16": (item(TENSOR.to(torch.uint16)), IDS),
    "labels-of-torch-uint64": (item(TENSOR.to(torch.uint64)), IDS),
    "labels-of-an-indexed-picture": (item(Image.fromarray(IDS.astype(np.uint8)).convert("P")), IDS),
    "labels-of-a-picture-of-16-bits": (item(Image.fromarray(IDS.astype(np.uint16))), IDS),
    "labels-masked": (item(np.ma.masked_equal(IDS, 1)), IDS),
    "labels-ignored-in-the-first-item": ([item(IDS * 0 + 255), item(IDS)], np.full((4, 4), 255)),
    "labels-of-255-as-a-signed-byte-read-unsigned": (
        [item((IDS * 0 - 1).astype(np.uint8)), item(IDS)],
        np.full((4, 4), 255),
    ),
    "pixels-of-half-precision": (("pixels", [item(IDS, PIXELS.astype(np.float16))]), PIXELS.astype(np.float16)[None]),
    "pixels-of-double-precision": (("pixels", [item(IDS, PIXELS.astype(np.float64))]), PIXELS[None]),
    "pixels-of-bfloat16": (
        ("pixels", [item(IDS, torch.from_numpy(PIXELS).bfloat16())]),
        torch.from_numpy(PIXELS).bfloat16().float().numpy()[None],
    ),
    "recoloured-copies": (
        ("pixels", [item(IDS, recolored_pixel_values=-PIXELS)]),
        np.stack([PIXELS, -PIXELS]),
    ),
    "a-batch-of-bytes": (("batch", item(TENSOR[None].byte(), torch.from_numpy(PIXELS)[None])), IDS[None]),
}
REFUSED = {
    "nothing": (item(None), "labels: NoneType"),
    "a-pair": ((torch.from_numpy(PIXELS), TENSOR), "found a tuple of Tensor, Tensor"),
    "a-list-as-item": ([[PIXELS, IDS], [PIXELS, IDS]], "found a list of ndarray, ndarray"),
    "a-text": ("image", "found a str"),
    "a-number": (7, "found a int"),
    "no-keys": ({}, "a mapping without keys"),
    "keys-of-a-data-set": ({"image": PIXELS, "annotation": IDS}, "the keys image: float32 (3, 4, 4)"),
    "keys-of-torchvision": ({"pixel_values": PIXELS, "mask": IDS}, "mask: int64 (4, 4) with values 0..2"),
    "no-labels": ({"pixel_values": PIXELS}, "the keys pixel_values: float32"),
    "no-pixels": ({"labels": IDS}, "the keys labels: int64"),
    "names-in-capitals": ({"Pixel_Values": PIXELS, "Labels": IDS}, "expected pixel_values"),
    "labels-as-fractions": (item(IDS.astype(np.float32)), "labels: float32 (4, 4)"),
    "labels-as-complex": (item(IDS.astype(complex)), "labels: complex128 (4, 4)"),
    "labels-of-nan": (item(np.full((4, 4), np.nan)), "labels: float64 (4, 4)"),
    "labels-with-a-channel": (item(IDS[None]), "labels: int64 (1, 4, 4)"),
    "labels-with-three-channels": (item(np.stack([IDS] * 3, -1)), "labels: int64 (4, 4, 3)"),
    "labels-one-hot": (item(np.eye(CLASSES, dtype=int)[IDS].transpose(2, 0, 1)), "labels: int64 (3, 4, 4)"),
    "labels-of-the-image": (item(1), "labels: int"),
    "labels-in-a-row": (item(IDS.ravel()), "labels: int64 (16,)"),
    "labels-ragged": (item([[0, 1], [2]]), "labels: list without numbers"),
    "labels-as-text": (item([["a", "b"]]), "labels: list without numbers"),
    "labels-as-objects": (item(IDS.astype(object)), "labels: ndarray without numbers"),
    "labels-as-names": (item("road"), "labels: str"),
    "labels-in-colour": (item(Image.new("RGB", (4, 4))), "labels: Image"),
    "labels-empty": ([item(np.zeros((0, 4), int))] * 2, "all of its 2 items have no pixel of a class"),
    "labels--1": (item(with_value(-1)), "map -1 to 255 in the data set"),
    "labels--100": (item(with_value(-100)), "map -100 to 255 in the data set"),
    "labels-beyond": (item(with_value(3)), "labels hold the value 3, but the model has 3 classes"),
    "labels-far-beyond": (item(with_value(2**40)), f"labels hold the value {2**40}"),
    "labels-254": (item(with_value(254).astype(np.uint8)), "labels hold the value 254"),
    "labels-256": (item(with_value(256)), "labels hold the value 256"),
    "labels-beyond-int64": (item(with_value(0).astype(np.uint64) + np.uint64(2**63)), "labels hold the value"),
    "labels-from-1": (item(IDS + 1), "labels hold the value 3"),
    "labels-0-and-255-of-each": ([item(np.where(IDS, 255, 0))] * 2, "have pixels of one class alone, 0"),
    "labels-of-one-class": ([item(IDS * 0)] * 2, "have pixels of one class alone, 0"),
    "labels-ignored-all": ([item(IDS * 0 + 255)] * 2, "have no pixel of a class, all are ignored"),
    "pixels-in-bytes": (item(IDS, (PIXELS * 127).astype(np.uint8)), "pixel_values: uint8 (3, 4, 4)"),
    "pixels-as-picture": (item(IDS, Image.new("RGB", (4, 4))), "pixel_values: Image"),
    "pixels-with-a-batch": (item(IDS, PIXELS[None]), "pixel_values: float32 (1, 3, 4, 4)"),
    "pixels-of-one-band": (item(IDS, PIXELS[0]), "pixel_values: float32 (4, 4)"),
    "pixels-as-text": (item(IDS, "a.png"), "pixel_values: str"),
    "pixels-gone": (item(IDS, None), "pixel_values: NoneType"),
    "pixels-ragged": (item(IDS, [[[0.1], [0.1, 0.2]]]), "pixel_values: list without numbers"),
    "recoloured-in-bytes": (
        item(IDS, recolored_pixel_values=PIXELS.astype(np.uint8)),
        "recolored_pixel_values: uint8",
    ),
    "recoloured-in-one-alone": (
        [item(IDS, recolored_pixel_values=PIXELS), item(IDS)],
        "1 of the 2 items of a batch have recolored_pixel_values",
    ),
    "recoloured-in-the-second-alone": (
        [item(IDS), item(IDS, recolored_pixel_values=PIXELS)],
        "1 of the 2 items of a batch have recolored_pixel_values",
    ),
    "labels-sparse": (item(TENSOR.to_sparse()), "labels: Tensor without numbers"),
    "labels-without-data": (item(TENSOR.to("meta")), "labels: Tensor without numbers"),
    "labels-as-half-precision": (item(TENSOR.bfloat16()), "labels: bfloat16 (4, 4)"),
    "labels-as-dates": (item(IDS.astype("datetime64[s]")), "labels: ndarray without numbers"),
    "labels-of-fields": (item(np.zeros((4, 4), [("a", int)])), "labels: ndarray without numbers"),
    "labels-as-bytes": (item(b"abc"), "labels: bytes"),
    "labels-in-a-mapping": (item({"a": IDS}), "labels: dict"),
    "labels-in-a-generator": (item(row for row in IDS), "labels: generator"),
    "labels-with-a-last-channel": (item(IDS[..., None]), "labels: int64 (4, 4, 1)"),
    "labels-one-hot-in-the-end": (item(np.eye(CLASSES, dtype=int)[IDS]), "labels: int64 (4, 4, 3)"),
    "keys-of-mask-classification": (
        {"pixel_values": PIXELS, "mask_labels": TENSOR[None] > 0, "class_labels": torch.tensor([1])},
        "mask_labels: bool (1, 4, 4)",
    ),
    "pixels-as-complex": (item(IDS, PIXELS.astype(complex)), "pixel_values: complex128"),
    "pixels-of-four-channels": (item(IDS, np.concatenate([PIXELS, PIXELS[:1]])), "the model takes 3 channels"),
    "pixels-of-one-channel": (item(IDS, PIXELS[:1]), "the model takes 3 channels"),
    "pixels-with-channels-last": (item(IDS, PIXELS.transpose(1, 2, 0)), "the model takes 3 channels"),
    "no-item": ([], "train_dataset: list has no item"),
    "no-length": (Endless(), "Endless has no __len__"),
    "one-class-beside-ignored-items": ([item(IDS * 0 + 255), item(IDS * 0)], "pixels of one class alone, 0"),
    "another-size-in-the-second": ([item(IDS), item(IDS[:2], PIXELS[:, :2])], "items of one batch differ in size"),
    "a-later-item-of-another-kind": (Wild((PIXELS, IDS)), "found a tuple of ndarray, ndarray"),
    "a-later-item-below-zero": ([item(IDS), item(with_value(-100))], "map -100 to 255 in the data set"),
    "a-batch-without-labels": (("batch", {"pixel_values": torch.zeros(1, 3, 4, 4)}), "Check the data set"),
    "a-batch-that-is-none": (("batch", None), "a batch holds a NoneType"),
    "a-batch-of-fractions": (("batch", item(TENSOR[None].float(), torch.zeros(1, 3, 4, 4))), "labels: float32"),
    "a-batch-unstacked": (("batch", item(TENSOR, torch.zeros(3, 4, 4))), "stacked"),
    "a-batch-of-one-label-too-few": (("batch", item(TENSOR[None], torch.zeros(2, 3, 4, 4))), "a batch holds the keys"),
    "a-batch-in-a-batch": (("batch", item(TENSOR[None], torch.zeros(1, 1, 3, 4, 4))), "a batch holds the keys"),
    "a-batch-of-no-item": (("batch", item([], [])), "a batch holds the keys"),
    "a-batch-of-unknown-labels-in-bytes": (
        ("batch", item(TENSOR[None].byte() + 1, torch.zeros(1, 3, 4, 4))),
        "labels hold the value 3",
    ),
    "a-batch-of-arrays": (("batch", item(IDS[None], PIXELS[None])), "a batch holds the keys"),
}
