import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import SegmentationFamily
from deft_hf.models.objectives import PerPixel
from deft_hf.models.reweighted import ReweightedPerPixel, dice_losses

C, WEIGHTS = 4, (0.5, 2.0, 1.0, 0.0)
OPTIONS = {
    "weights": ReweightedPerPixel(class_weights=WEIGHTS),
    "ohem": ReweightedPerPixel(ohem_threshold=0.3, ohem_min_kept=20),
    "dice": ReweightedPerPixel(dice_weight=0.7),
    "all": ReweightedPerPixel(WEIGHTS, 0.2, 0.3, 1.5),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 5, 1), nn.Conv2d(5, C, 1)

    def forward(self, pixel_values):
        return self.decoder(self.encoder(pixel_values).tanh())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batch(images=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (images, 12, 10), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    labels[1, :, :5], labels[2] = 255, 255  # images differ in valid pixels, and one has none
    labels[3][labels[3] == 1] = 0  # and one lacks a class
    return {"pixel_values": torch.randn(images, 3, 12, 10, generator=rng), "labels": labels}


def by_hand(objective, logits, labels):
    """The loss of a batch as the docstring has it, pixel by pixel."""
    weights = objective.class_weights or (1.0,) * C
    probabilities = logits.detach().softmax(1).numpy().astype(np.float64)
    total = denominator = dice = images = 0
    for image, truth in zip(probabilities, labels.numpy(), strict=True):
        valid = truth != 255
        own = np.where(valid, np.take_along_axis(image, np.where(valid, truth, 0)[None], 0)[0], 1.0)
        least = objective.ohem_min_kept if objective.ohem_min_kept >= 1 else math.ceil(objective.ohem_min_kept * 120)
        kept = valid.copy()
        if objective.ohem_threshold is not None:
            kept &= (own < objective.ohem_threshold) | (own <= np.sort(own.ravel())[int(least) - 1])
        table = np.array([*weights, *[0.0] * 252])
        total += (-np.log(own) * table[truth])[kept].sum()
        denominator += table[truth][valid].sum()
        if valid.any():
            images += 1
            scores = []
            for each in set(truth[valid].tolist()):
                p, g = image[each][valid], (truth == each)[valid]
                scores.append(1 - 2 * (p * g).sum() / (p.sum() + g.sum()))
            dice += np.mean(scores)
    return total / denominator + objective.dice_weight * dice / images


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_are_those_of_the_docstring(net, name):
    objective, data = OPTIONS[name], batch()
    loss = objective.loss(net, data, objective.count(net, data))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(objective, net(data["pixel_values"]), data["labels"]), rel=1e-5)
    if name == "ohem":  # the figures above leave pixels out, and keep some by either rule
        assert loss < PerPixel().loss(net, data, PerPixel().count(net, data))


def test_class_weights_are_those_of_torch(net):
    objective, data = OPTIONS["weights"], batch()
    expected = F.cross_entropy(net(data["pixel_values"]), data["labels"], torch.tensor(WEIGHTS), ignore_index=255)
    torch.testing.assert_close(objective.loss(net, data, objective.count(net, data)), expected)


def test_without_options_it_is_the_plain_loss(net):
    objective, data = ReweightedPerPixel(), batch()
    plain = PerPixel().loss(net, data, PerPixel().count(net, data))
    torch.testing.assert_close(objective.loss(net, data, objective.count(net, data)), plain)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_in_parts_is_the_step_in_one(net, name, size):
    objective, data = OPTIONS[name], batch()
    objective.loss(net, data, objective.count(net, data)).backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    parts = [{key: value[i : i + size] for key, value in data.items()} for i in range(0, 8, size)]
    items = torch.stack([objective.count(net, part) for part in parts]).sum(0)
    for part in parts:
        objective.loss(net, part, items).backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_valid_is_no_loss_and_no_gradient(net, name):
    objective, data = OPTIONS[name], batch()
    data["labels"].fill_(255)
    loss = objective.loss(net, data, objective.count(net, data))
    loss.backward()
    assert loss == 0 and all(not parameter.grad.any() for parameter in net.parameters())


def test_weights_below_one_are_normalised_too(net):
    data = batch()
    data["labels"].fill_(255)[0, 0, 0] = 0
    small, large = (ReweightedPerPixel((weight, 1.0, 1.0, 1.0)) for weight in (0.01, 1.0))
    losses = [objective.loss(net, data, objective.count(net, data)) for objective in (small, large)]
    torch.testing.assert_close(*losses)


def test_dice_of_a_perfect_and_of_a_wrong_prediction():
    labels = torch.tensor([[[0, 1], [255, 1]]])
    sure = 50 * F.one_hot(labels % 254, C).movedim(-1, 1).float()
    assert dice_losses(sure, labels).item() == pytest.approx(0, abs=1e-6)
    assert dice_losses(sure.roll(1, 1), labels).item() == pytest.approx(1, abs=1e-6)


def test_both_pathways_have_it(net):
    objective, data = OPTIONS["all"], batch()
    pathways = DualPathway(net, SegmentationFamily("encoder", objective=objective)).train()
    pathways.enter("decoupled")
    pathways.snapshot()
    losses = pathways(**data)
    expected = objective.loss(net, data, objective.count(net, data))
    torch.testing.assert_close(losses.encoder_loss, expected.detach())
    torch.testing.assert_close(losses.decoder_loss, expected.detach())
    losses.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
