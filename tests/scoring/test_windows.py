"""Windows that are let go of give the classes that the logits of a whole image give."""

import pytest
import torch

from deft_hf.models.families import resolve_family
from deft_hf.scoring.inference import predict
from deft_hf.scoring.windows import sliding_window_classes
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.scoring.test_inference import CLASSES, FAMILY, Coarse, PeakBytes


def drawn(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def classes_of(*given):
    return torch.cat([*sliding_window_classes(*given)])


def windows_of(image):
    return lambda top, left, bottom, right: image[:, :, top:bottom, left:right]


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((90, 131), (48, 40), (32, 28)),
        ((97, 101), (40, 48), (16, 15)),  # more than two windows touch a pixel
        ((97, 101), (40, 48), (40, 48)),  # they share nothing but with the last ones, which are shifted
        ((64, 96), (64, 40), None),  # one row of windows
        ((96, 64), (40, 64), None),
        ((61, 96), (80, 33), None),  # higher than the image
        ((49, 49), (48, 48), (47, 48)),
        ((48, 48), (64, 64), (9, 9)),
    ],
)
@pytest.mark.parametrize("kind", ["coarse", "segformer"])
def test_the_classes_are_those_of_the_whole_logits(kind, size, window, stride):
    image = drawn(*size)
    model = Coarse() if kind == "coarse" else tiny.build("segformer")
    family = FAMILY if kind == "coarse" else resolve_family(model)
    expected = predict(model, family, image, size, window, stride)[0]
    found = classes_of(model, family, windows_of(image), size, window, stride)
    assert found.dtype == torch.uint8 and len(found.unique()) > 1
    assert torch.equal(found.long(), expected)
    assert model.training


def test_more_than_256_classes():
    model, image = Coarse(), drawn(40, 60)
    model.head = torch.nn.Conv2d(3, 300, 1)
    expected = predict(model, FAMILY, image, (40, 60), (24, 24))[0]
    found = classes_of(model, FAMILY, windows_of(image), (40, 60), (24, 24))
    assert expected.max() > 255 and torch.equal(found.long(), expected)


def test_only_rows_that_windows_share_are_held():
    image, model = drawn(248, 248), Coarse()
    with PeakBytes() as bytes_:
        for rows in sliding_window_classes(model, FAMILY, windows_of(image), (248, 248), (32, 32), (24, 24)):
            assert rows.shape[1:] == (248,) and torch.is_grad_enabled() and model.training
    classes, shared, window = 2 * 32 * 248, CLASSES * 8 * 248 * 4, CLASSES * 32 * 32 * 4
    assert bytes_.peak < image.nbytes + classes + shared + 6 * window < CLASSES * 248 * 248 * 4


def test_a_stride_that_leaves_gaps_is_an_error():
    with pytest.raises(UserError, match="stride"):
        classes_of(Coarse(), FAMILY, windows_of(drawn(40, 40)), (40, 40), (16, 16), (17, 16))
