import pytest
import torch
from torch.nn import functional as F
from transformers import Mask2FormerImageProcessorPil

from deft_hf.models.families import SegmentationFamily, resolve_family
from deft_hf.models.masks import MaskClassification
from deft_hf.scoring.inference import predict, semantic_logits, sliding_window_logits
from deft_hf.utils.errors import UserError
from tests import tiny


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def unequal_images():
    """Four images: all seven classes for five queries, two classes, one, and nothing but ignored pixels."""
    batch = tiny.batch(size=4)
    batch["labels"][1] = batch["labels"][1].clamp(max=1)
    batch["labels"][2] = 3
    batch["labels"][3] = 255
    return batch


@pytest.mark.parametrize("model_type", tiny.MASKS)
def test_accumulation_equals_the_models_own_loss_of_one_large_batch(model_type, monkeypatch):
    monkeypatch.setattr(torch, "rand", tiny.same_points)
    model, images = tiny.build(model_type).eval(), unequal_images()
    objective = resolve_family(model).objective
    own = tiny.own_loss(model, images)
    own.backward()
    expected = gradients(model)

    def losses(size):
        parts = [{name: value[i : i + size] for name, value in images.items()} for i in range(0, 4, size)]
        parts = [tiny.with_masks(part) for part in parts]
        items = sum(objective.count(model, part) for part in parts)
        assert items.tolist() == [10, 8, 12]
        total = 0.0
        for part in parts:
            loss = objective.loss(model, part, items)
            loss.backward()
            total += float(loss)
        return total

    for size in (4, 1, 2):
        assert losses(size) == pytest.approx(float(own), rel=1e-5)
        found = gradients(model)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_images_without_any_object(weight):
    model = tiny.build("mask2former", no_object_weight=weight).eval()
    objective, images = resolve_family(model).objective, tiny.batch()
    images["labels"].fill_(255)
    batch = tiny.with_masks(images)
    assert objective.count(model, batch).tolist() == [0, 0, 10]
    loss = objective.loss(model, batch, objective.count(model, batch))
    loss.backward()
    if weight:  # every query learns to be none, in each of three layers, by the classification's weight of 2
        nothing = torch.full((2, 5), tiny.NUM_LABELS)
        with torch.no_grad():
            outputs = model(images["pixel_values"], output_auxiliary_logits=True)
        layers = [outputs.class_queries_logits, *(layer["class_queries_logits"] for layer in outputs.auxiliary_logits)]
        expected = sum(2 * F.cross_entropy(logits.transpose(1, 2), nothing) for logits in layers)
        torch.testing.assert_close(loss, expected)
    else:
        assert loss.item() == 0
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


def test_half_precision_keeps_the_loss_in_float32():
    model = tiny.build("mask2former").eval()
    objective, batch = resolve_family(model).objective, tiny.with_masks(tiny.batch())
    items, losses = objective.count(model, batch), {}
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses[enabled] = objective.loss(model, batch, items)
    assert losses[True].dtype == torch.float32 and losses[True] != losses[False]
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0)


def test_a_batch_without_masks_is_one_message():
    model = tiny.build("mask2former")
    with pytest.raises(UserError, match="no mask_labels and class_labels.*MaskTargets"):
        resolve_family(model).objective.count(model, tiny.batch())


class Queries(torch.nn.Module):
    """A model that gives whatever class and mask logits it was made of, cut to the image it sees."""

    config = None

    def __init__(self, classes, masks, scale):
        super().__init__()
        self.classes, self.masks, self.scale = classes, masks, scale

    def forward(self, pixel_values):
        # The image is its own coordinates, so that a window knows where it lies.
        rows, columns = (pixel_values[0, axis].unique() for axis in (0, 1))
        top, left = int(rows[0]) // self.scale, int(columns[0]) // self.scale
        height, width = len(rows) // self.scale, len(columns) // self.scale
        masks = self.masks[..., top : top + height, left : left + width]
        return type("Outputs", (), {"class_queries_logits": self.classes, "masks_queries_logits": masks})


FAMILY = SegmentationFamily("nothing", objective=MaskClassification())


def coordinates(height, width):
    rows = torch.arange(float(height))[:, None].expand(height, width)
    columns = torch.arange(float(width)).expand(height, width)
    return torch.stack([rows, columns, torch.zeros(height, width)])[None]


def test_semantic_logits_are_sums_over_queries_without_the_null_class():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(1, 5, 4, generator=generator)
    masks = torch.randn(1, 5, 384, 384, generator=generator)
    found = semantic_logits(Queries(classes, masks, 1), FAMILY, coordinates(384, 384), (384, 384))
    expected = torch.zeros(3, 384, 384)
    for query in range(5):
        share = classes[0, query].exp() / classes[0, query].exp().sum()
        expected += share[:3, None, None] / (1 + (-masks[0, query]).exp())
    torch.testing.assert_close(found[0], expected)
    # At the one size at which transformers' own processor leaves the masks alone, it says the same.
    outputs = Queries(classes, masks, 1)(coordinates(384, 384))
    (own,) = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(outputs)
    assert torch.equal(found[0].argmax(0), own)


def iou(found, truth):
    return float(((found == 1) & (truth == 1)).sum() / ((found == 1) | (truth == 1)).sum())


@pytest.mark.parametrize("window", [None, (512, 512)])
def test_poles_of_four_pixels_are_found_whole(window):
    """Masks at a quarter of 1024 x 2048, as these models have them, show each pole one pixel wide."""
    size = (1024, 2048)
    truth = torch.zeros(size, dtype=torch.int64)
    for left in range(100, 2000, 60):
        truth[:, left : left + 4] = 1
    masks = F.avg_pool2d(torch.stack([truth == 0, truth == 1]).float()[None], 4) * 20 - 10
    model = Queries(torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]]), masks, 4)
    assert iou(predict(model, FAMILY, coordinates(*size), size, window, window and (384, 384))[0], truth) == 1.0
    # The way over 384 x 384 wears them away.
    processor, outputs = Mask2FormerImageProcessorPil(), model(coordinates(*size))
    (detour,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    assert iou(detour, truth) < 0.9


def test_windows_average_scores():
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(1, 5, 4, generator=generator), torch.randn(1, 5, 16, 24, generator=generator)
    model = Queries(classes, masks, 1)
    whole = semantic_logits(model, FAMILY, coordinates(16, 24), (16, 24))
    cut = sliding_window_logits(model, FAMILY, coordinates(16, 24), (16, 24), (16, 16), (8, 8))
    torch.testing.assert_close(cut, whole)


def test_where_no_query_says_anything_all_classes_are_equally_likely():
    scores = torch.tensor([[3.0, 0.0], [1.0, 0.0]])[None, :, None]
    found = MaskClassification.probabilities(None, scores)
    assert found[0, :, 0].tolist() == [[0.75, 0.5], [0.25, 0.5]]
