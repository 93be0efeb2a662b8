import torch
from torch import nn

from deft_hf.methods.core.batchnorm import batchnorm_modules, mend_momentum, reestimate
from tests import tiny


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, pixel_values):
        return self.drop(self.norm(pixel_values))


def test_tensorflow_momentum_is_mended():
    model = tiny.build("mobilenet_v2")
    assert len(mend_momentum(model)) > 10
    momenta = {module.momentum for module in batchnorm_modules(model).values()}
    assert max(momenta) <= 0.5 and min(momenta) >= 0.01
    assert mend_momentum(model) == []


def test_statistics_are_the_plain_mean_over_batches():
    torch.manual_seed(0)
    model, batches = Tiny().train(), [torch.randn(4, 3, 5, 5) * 3 + 1 for _ in range(6)]
    model.norm.running_mean.fill_(77)
    reestimate(model, batches)
    torch.testing.assert_close(model.norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches])
    torch.testing.assert_close(model.norm.running_var, variances.mean(0))
    assert model.norm.momentum == 0.1 and model.training and model.norm.training and model.drop.training


def test_modes_are_restored():
    model = Tiny().eval()
    reestimate(model, [torch.randn(2, 3, 4, 4)])
    assert not model.training and not model.norm.training
