from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deft_hf.models.families import resolve_family
from deft_hf.scoring.inference import predict_logits, score_batches
from deft_hf.scoring.test_time import Views
from deft_hf.trainer.evaluation import Evaluator
from deft_hf.utils.errors import UserError
from tests import tiny
from tests.trainer.test_trainer import trainer

SIZE = (40, 56)


def images(seed=0):
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["segformer", "mask2former"])
def model(request):
    return tiny.build(request.param).eval()


def by_hand(model, family, pixels, views):
    """The mean over views, written out."""
    found = []
    for scale in views.scales:
        size = [round(side * scale) for side in pixels.shape[-2:]]
        seen = F.interpolate(pixels, size=size, mode="bilinear", antialias=scale < 1) if scale != 1 else pixels
        for flip in (False, True) if views.flip else (False,):
            logits = predict_logits(model, family, seen.flip(-1) if flip else seen, SIZE)
            found.append(family.objective.probabilities(logits.flip(-1) if flip else logits))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("views", [Views((1.0,), True), Views((0.75, 1.0, 1.5)), Views((0.5, 1.25), True)])
def test_it_is_the_mean_of_the_probabilities_of_the_views(model, views):
    family = resolve_family(model)
    logits = predict_logits(model, family, images(), SIZE, views=views)
    torch.testing.assert_close(family.objective.probabilities(logits), by_hand(model, family, images(), views))
    assert not torch.equal(logits, predict_logits(model, family, images(), SIZE))


@pytest.mark.parametrize("window", [None, (64, 96)])
def test_one_view_is_the_image_bit_for_bit(model, window):
    family = resolve_family(model)
    plain = predict_logits(model, family, images(), SIZE, window)
    assert torch.equal(predict_logits(model, family, images(), SIZE, window, None, Views((1.0,), False)), plain)


class Pointwise(nn.Module):
    """A model that a mirror image does not surprise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 5, 1)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, pixel_values):
        return self.head(self.encoder(pixel_values).relu())


def test_flips_change_nothing_where_the_model_is_symmetric():
    model = Pointwise()
    family = resolve_family(model, "encoder")
    plain = predict_logits(model, family, images(), (96, 128))
    flipped = predict_logits(model, family, images(), (96, 128), views=Views(flip=True))
    torch.testing.assert_close(flipped.softmax(1), plain.softmax(1))
    labels = torch.randint(0, 4, (2, 96, 128))
    batch = [{"pixel_values": images(), "labels": labels}]
    counts = [score_batches(model, family, batch, 4, "cpu", views=v).counts for v in (Views(), Views(flip=True))]
    assert torch.equal(*counts) and counts[0].sum() == labels.numel()


def test_the_trainer_scores_so(tmp_path):
    scored = {}
    for name, views in {"plain": Views(), "flipped": Views(flip=True)}.items():
        run = trainer(tmp_path / name)
        run.evaluator.views = views
        scored[name] = run.evaluate()
    assert scored["plain"]["eval_near_mean_iou"] != scored["flipped"]["eval_near_mean_iou"]
    assert scored["flipped"]["eval_near_loss"] != scored["plain"]["eval_near_loss"] < 5


def test_scales_of_a_model_of_one_size_are_refused():
    family = replace(resolve_family(tiny.build("segformer")), side="image_size")
    with pytest.raises(UserError, match="test_scales: found .* the model takes images of one size alone"):
        Evaluator(family, ["a"], None, 0, None, None, views=Views((0.5, 1.0)))
    Evaluator(family, ["a"], None, 0, None, None, views=Views(flip=True))


@pytest.mark.parametrize("scales", [(), (0.5, 0), (-1,), (float("nan"), 1), (float("inf"),)])
def test_scales_are_above_0(scales):
    with pytest.raises(UserError, match="test_scales: found .*, expected a list of scales above 0"):
        Views(scales).check()
