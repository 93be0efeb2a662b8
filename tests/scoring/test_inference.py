from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deft_hf.models.families import resolve_family
from deft_hf.scoring.inference import predict, score_batches, semantic_logits, sliding_window_logits
from deft_hf.utils.errors import UserError
from tests import tiny

CLASSES = 4


class ScoresFamily:
    """A family whose logits have another name, so that a test fails where the family is passed over."""

    side = None
    encoder = "backbone"

    def semantic_logits(self, model, pixel_values):
        return model(pixel_values=pixel_values).scores


FAMILY = ScoresFamily()


class Pixelwise(nn.Module):
    """Logits at full resolution that depend on nothing but the pixel: windows cannot change them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, CLASSES, 1)
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        return SimpleNamespace(scores=self.head(pixel_values))


class Coarse(Pixelwise):
    """Logits at a quarter of the resolution that depend on the whole input: every window counts."""

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        features = nn.functional.avg_pool2d(pixel_values, 4) + pixel_values.mean((2, 3), keepdim=True)
        return SimpleNamespace(scores=self.head(features))


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def plain_bilinear(array, size):
    """Bilinear resizing of (H, W) with pixel centres at half integers and the border repeated."""

    def lines(length, new):
        centre = np.clip((np.arange(new) + 0.5) * length / new - 0.5, 0, length - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, length - 1), centre - low

    top, bottom, down = lines(array.shape[0], size[0])
    left, right, across = lines(array.shape[1], size[1])
    rows = array[top] * (1 - down)[:, None] + array[bottom] * down[:, None]
    return rows[:, left] * (1 - across) + rows[:, right] * across


def test_logits_are_resized_straight_to_the_size(images):
    model = Coarse()
    low = model(images).scores.detach().double().numpy()
    logits = semantic_logits(model, FAMILY, images, (31, 50))
    assert logits.shape == (2, CLASSES, 31, 50)
    expected = np.stack([[plain_bilinear(plane, (31, 50)) for plane in image] for image in low])
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-5)


def test_logits_are_float32_whatever_the_model_computes_in(images):
    model = Coarse().to(torch.bfloat16)
    logits = semantic_logits(model, FAMILY, images.bfloat16(), (24, 40))
    assert logits.dtype == torch.float32
    low = model(images.bfloat16()).scores.float()
    expected = nn.functional.interpolate(low, size=(24, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)  # resized in float32 too


@pytest.mark.parametrize("window", [(24, 40), (30, 64)])
@pytest.mark.parametrize("size", [(24, 40), (50, 70)])
def test_a_window_that_covers_the_image_is_the_whole_image(images, window, size):
    model = Coarse()
    sliding = sliding_window_logits(model, FAMILY, images, size, window, (8, 8))
    torch.testing.assert_close(sliding, semantic_logits(model, FAMILY, images, size), rtol=0, atol=0)


@pytest.mark.parametrize(("window", "stride"), [((16, 16), (10, 10)), ((9, 40), (9, 40)), ((10, 13), (3, 13))])
def test_windows_of_a_pixelwise_model_are_the_whole_image(images, window, stride):
    model = Pixelwise()
    sliding = sliding_window_logits(model, FAMILY, images, (24, 40), window, stride)
    torch.testing.assert_close(sliding, model(images).scores)


def test_windows_lie_inside_and_their_logits_are_averaged(images):
    model = Coarse()
    sliding = sliding_window_logits(model, FAMILY, images, (48, 60), (16, 16), (10, 10))

    seen = [[[] for _ in range(40)] for _ in range(24)]
    for top in (0, 8):  # 24 - 16: the second window is shifted up from 10
        for left in (0, 10, 20, 24):
            window = images[:, :, top : top + 16, left : left + 16]
            logits = nn.functional.interpolate(model(window).scores, size=(16, 16), mode="bilinear")
            for y in range(16):
                for x in range(16):
                    seen[top + y][left + x].append(logits[:, :, y, x])
    mean = torch.stack([torch.stack([torch.stack(here).mean(0) for here in row], -1) for row in seen], -2)
    torch.testing.assert_close(sliding, nn.functional.interpolate(mean, size=(48, 60), mode="bilinear"))
    assert model.seen[:8] == [(2, 3, 16, 16)] * 8


@pytest.mark.parametrize("stride", [(0, 8), (8, 17), (-1, 8)])
def test_a_stride_that_does_not_fit_its_window_is_an_error(images, stride):
    with pytest.raises(UserError, match=r"stride .* does not fit window \(16, 16\)"):
        sliding_window_logits(Coarse(), FAMILY, images, (24, 40), (16, 16), stride)


def test_predict_gives_classes_with_and_without_windows(images):
    model = Coarse()
    whole = predict(model, FAMILY, images, (31, 50))
    assert whole.dtype == torch.int64 and whole.shape == (2, 31, 50)
    assert torch.equal(whole, semantic_logits(model, FAMILY, images, (31, 50)).argmax(1))
    for stride, used in ((None, (10, 10)), ((4, 6), (4, 6))):  # two thirds of the window by default
        sliding = predict(model, FAMILY, images, (31, 50), window=(16, 16), stride=stride)
        expected = sliding_window_logits(model, FAMILY, images, (31, 50), (16, 16), used).argmax(1)
        assert torch.equal(sliding, expected)
    assert not torch.equal(sliding, whole)


def drawn_batches(count, sizes=((24, 40),) * 3, label_sizes=None, seed=2):
    """Yields batches; entries of different sizes are lists."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = [torch.randn(3, *size, generator=generator) for size in sizes]
        labels = [torch.randint(0, CLASSES, size, generator=generator) for size in label_sizes or sizes]
        for label in labels:
            label[0] = 255
        yield {
            "pixel_values": torch.stack(images) if len(set(sizes)) == 1 else images,
            "labels": torch.stack(labels) if len(set(label_sizes or sizes)) == 1 else labels,
        }


@pytest.mark.parametrize("window", [None, (16, 16)])
@pytest.mark.parametrize(
    ("sizes", "label_sizes"),
    [
        pytest.param([(24, 40)] * 3, [(24, 40)] * 3, id="one size"),
        pytest.param([(24, 40)] * 3, [(48, 80)] * 3, id="labels larger"),
        pytest.param([(24, 40)] * 3, [(48, 80), (20, 20), (7, 9)], id="labels of several sizes"),
        pytest.param([(24, 40), (16, 16), (40, 24)], [(24, 40), (16, 16), (40, 24)], id="images of several sizes"),
    ],
)
def test_scores_of_a_stream_equal_image_by_image_counting(sizes, label_sizes, window):
    model = Coarse()
    matrix = score_batches(
        model, FAMILY, drawn_batches(3, sizes, label_sizes), CLASSES, device="cpu", window=window, stride=window
    )

    counts = np.zeros((CLASSES, CLASSES), int)
    for batch in drawn_batches(3, sizes, label_sizes):
        for image, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            prediction = predict(model, FAMILY, image[None], tuple(label.shape), window, window)[0]
            valid = label != 255
            np.add.at(counts, (label[valid].numpy(), prediction[valid].numpy()), 1)
    assert matrix.counts.tolist() == counts.tolist()
    assert counts.sum() == 3 * sum((height - 1) * width for height, width in label_sizes)


@pytest.mark.parametrize(
    ("sizes", "label_sizes"),
    [
        pytest.param([(24, 40)] * 3, [(24, 40)] * 3, id="one size"),
        pytest.param([(24, 40)] * 3, [(48, 80), (20, 20), (7, 9)], id="labels of several sizes"),
        pytest.param([(24, 40), (16, 16), (40, 24)], [(24, 40), (16, 16), (40, 24)], id="images of several sizes"),
    ],
)
@pytest.mark.parametrize("window", [None, (16, 16)])
def test_counts_of_single_images_come_in_order_and_sum_to_the_stream(sizes, label_sizes, window):
    model, images = Coarse(), []
    stream = dict(num_labels=CLASSES, device="cpu", window=window, stride=window)
    matrix = score_batches(model, FAMILY, drawn_batches(2, sizes, label_sizes), images=images, **stream)
    assert [(counts.dtype, counts.shape) for counts in images] == [(torch.int64, (CLASSES, CLASSES))] * 6
    assert torch.equal(torch.stack(images).sum(0), matrix.counts)

    single = []
    for batch in drawn_batches(2, sizes, label_sizes):
        for image, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            alone = [{"pixel_values": image[None], "labels": label[None]}]
            single.append(score_batches(model, FAMILY, alone, **stream).counts)
    assert all(torch.equal(found, expected) for found, expected in zip(images, single, strict=True))
    assert len({tuple(counts.flatten().tolist()) for counts in images}) == 6

    before = [counts.clone() for counts in images]
    again = score_batches(model, FAMILY, drawn_batches(2, sizes, label_sizes), **stream)
    assert torch.equal(again.counts, matrix.counts)  # keeping the images' counts changes nothing else
    assert all(torch.equal(found, expected) for found, expected in zip(images, before, strict=True))


class Modes(Pixelwise):
    """Notes the mode of its parts, and fails at will."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3)
        self.train()
        self.frozen.eval()

    def forward(self, pixel_values):
        assert not self.free.training and not torch.is_grad_enabled()
        if pixel_values.isnan().any():
            raise RuntimeError("no such image")
        return super().forward(self.free(self.frozen(pixel_values)))


def test_every_module_is_left_in_its_mode(images):
    model = Modes()
    statistics = model.free.running_mean.clone()
    predict(model, FAMILY, images, (24, 40))
    score_batches(model, FAMILY, drawn_batches(1), CLASSES, "cpu")
    with pytest.raises(RuntimeError, match="no such image"):
        predict(model, FAMILY, images * torch.nan, (24, 40))
    assert (model.training, model.free.training, model.frozen.training) == (True, True, False)
    assert torch.equal(model.free.running_mean, statistics)


class Cached(Pixelwise):
    """Keeps a table that it makes at its first call, as models do with position embeddings."""

    table = None

    def forward(self, pixel_values):
        if self.table is None:
            self.table = torch.ones(3, 1, 1) * 2
        return super().forward(pixel_values * self.table)


def test_training_goes_on_with_what_a_model_cached_while_scored(images):
    model = Cached()
    score_batches(model, FAMILY, drawn_batches(1), CLASSES, "cpu")
    images.requires_grad_()
    model(images).scores.sum().backward()  # "Inference tensors cannot be saved for backward" after inference_mode


class PeakBytes(TorchDispatchMode):
    """The most bytes that all living tensors made under it have held at once."""

    def __init__(self):
        super().__init__()
        self.living, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.living[StorageWeakRef(storage)] = storage.nbytes()
        self.living = {storage: size for storage, size in self.living.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.living.values()))
        return out


@pytest.mark.parametrize("label_sizes", [None, [(24, 40), (48, 80), (24, 40)]])
@pytest.mark.parametrize("window", [None, (16, 16)])
def test_peak_memory_does_not_grow_with_the_number_of_images(label_sizes, window):
    def peak(count):
        model = Coarse()
        with PeakBytes() as bytes_:
            score_batches(model, FAMILY, drawn_batches(count, label_sizes=label_sizes), CLASSES, "cpu", window)
        return bytes_.peak

    assert peak(2) == peak(20)
    assert peak(2) > CLASSES * 24 * 40 * 4  # it does see the logits


def test_the_logits_of_one_batch_are_gone_before_those_of_the_next():
    def peak(count):
        with PeakBytes() as bytes_:
            score_batches(Coarse(), FAMILY, drawn_batches(count), CLASSES, "cpu")
        return bytes_.peak

    assert peak(8) < peak(1) + 3 * 24 * 40 * 4  # less than a class of three images


def test_sliding_holds_one_array_of_logits_of_the_images_size():
    image = torch.randn(1, 3, 128, 128)
    model, window = Pixelwise(), (16, 16)
    whole_image = CLASSES * 128 * 128 * 4
    with torch.no_grad(), PeakBytes() as bytes_:
        sliding_window_logits(model, FAMILY, image, (128, 128), window, (8, 8))
    assert whole_image <= bytes_.peak - image.nbytes < 2 * whole_image


def test_with_a_segformer_and_its_family():
    model, images = tiny.build("segformer"), tiny.batch()["pixel_values"]
    family = resolve_family(model)
    model.train()
    prediction = predict(model, family, images, (80, 48))
    assert model.training
    model.eval()
    with torch.no_grad():
        low = model(images).logits
    assert low.shape[-2:] == (tiny.SIDE // 4, tiny.SIDE // 4)
    logits = nn.functional.interpolate(low, size=(80, 48), mode="bilinear", align_corners=False)
    assert torch.equal(prediction, logits.argmax(1))
    matrix = score_batches(model, family, [{"pixel_values": images, "labels": prediction}], tiny.NUM_LABELS, "cpu")
    assert matrix.compute().pixel_accuracy == 1


@pytest.mark.parametrize("shape", [(40, 64), (64, 50), (30, 100)])
def test_images_smaller_than_the_only_size_of_a_model_are_padded(shape):
    model = tiny.build("eomt").eval()
    family, window = resolve_family(model), (tiny.SIDE, tiny.SIDE)
    images = torch.randn(1, 3, *shape)
    height, width = (max(side, tiny.SIDE) for side in shape)
    padded = torch.zeros(1, 3, height, width)
    padded[..., : shape[0], : shape[1]] = images
    with torch.no_grad():
        found = sliding_window_logits(model, family, images, shape, window, (36, 36))
        expected = sliding_window_logits(model, family, padded, (height, width), window, (36, 36))
    assert torch.equal(found, expected[..., : shape[0], : shape[1]])
    with torch.no_grad():
        resized = sliding_window_logits(model, family, images, (80, 128), window, (36, 36))
    torch.testing.assert_close(resized, nn.functional.interpolate(found, (80, 128), mode="bilinear"))


def vit():
    torch.manual_seed(0)
    return tiny.build("beit").eval()


@pytest.mark.parametrize("name, patch, height, width", [
    ("beit", 16, 75, 101), ("beit", 16, 64, 70), ("beit", 16, 17, 96), ("upernet", 4, 75, 101), ("upernet", 4, 64, 66)
])  # fmt: skip
def test_a_model_of_patches_sees_all_rows_and_columns(name, patch, height, width):
    torch.manual_seed(0)
    model = tiny.build(name).eval()
    family, images = resolve_family(model), torch.randn(1, 3, height, width)
    with torch.no_grad():
        logits = semantic_logits(model, family, images, (height, width))
        assert logits.shape == (1, tiny.NUM_LABELS, height, width)
        for place in ((..., -1, slice(None)), (..., slice(None), -1)):
            changed = images.clone()
            changed[place] += 5
            assert not torch.equal(semantic_logits(model, family, changed, (height, width)), logits)
        padded = torch.zeros(1, 3, -(-height // patch) * patch, -(-width // patch) * patch)
        padded[..., :height, :width] = images
        whole = semantic_logits(model, family, padded, tuple(padded.shape[-2:]))
    assert torch.equal(logits, whole[..., :height, :width])


def test_a_size_that_a_vit_sees_whole_is_not_touched():
    model = vit()
    family, images = resolve_family(model), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = nn.functional.interpolate(model(images).logits, (30, 50), mode="bilinear")
        assert torch.equal(semantic_logits(model, family, images, (30, 50)), expected)
