"""Images of one size in a batch: which, in what order, and with what classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from deft_hf.models.processor import segmentation_processor
from deft_hf.publish.export import export_generalized
from deft_hf.runs import batches
from deft_hf.runs.segmenter import Segmenter
from tests import tiny


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny.build("segformer").eval()
    with torch.no_grad():
        for parameter in model.decode_head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    export_generalized(model, folder, segmentation_processor(None, (64, 96)))
    return Segmenter.open(str(folder), device="cpu")


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("most", "pixels", "expected"),
    [
        (8, 1 << 22, [3, 1, 2]),
        (2, 1 << 22, [2, 1, 1, 2]),
        (8, 2 * 50 * 70, [2, 1, 1, 2]),
        (1, 1 << 22, [1] * 6),
        (8, 1, [1] * 6),
    ],
)
def test_neighbours_of_one_size_go_together(segmenter, monkeypatch, most, pixels, expected, keep):
    monkeypatch.setattr(batches, "MOST_PIXELS", pixels)
    images = pictures((50, 70), (50, 70), (50, 70), (40, 70), (50, 70), (50, 70))
    sizes, whole = [], Segmenter.logits_of
    monkeypatch.setattr(
        Segmenter, "logits_of", lambda self, given, size: sizes.append(len(given)) or whole(self, given, size)
    )
    found = list(
        batches.segmented(segmenter, ((index, image, None) for index, image in enumerate(images)), most, keep)
    )
    assert sizes == expected
    assert [index for index, *_ in found] == list(range(6))
    for index, image, ids, logits in found:
        assert image is images[index]
        assert np.array_equal(ids, segmenter.classes(image)) and ids.dtype == np.uint8
        assert (logits is None) != keep
        if keep:
            torch.testing.assert_close(logits, segmenter.logits(image), rtol=1e-3, atol=1e-3)


def test_no_image_is_held_longer_than_its_batch(segmenter):
    """The next one is asked for once those before it have been given, so that a large one is alone in memory."""
    given = []

    def images():
        for index, image in enumerate(pictures(*[(50, 70)] * 4)):
            given.append(index)
            yield index, image, None

    for index, *_ in batches.segmented(segmenter, images(), 2):
        assert given[-1] == index | 1


def test_a_window_that_slides_takes_an_image_alone(segmenter):
    sliding = Segmenter.open(segmenter.model.name_or_path, device="cpu", window=(48, 48))
    images = pictures((60, 90), (40, 40), (40, 40))
    found = list(batches.segmented(sliding, ((None, image, None) for image in images), 8))
    for (_, _, ids, logits), image in zip(found, images, strict=True):
        assert logits is None and np.array_equal(ids, sliding.classes(image))
