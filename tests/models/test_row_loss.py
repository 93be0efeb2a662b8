import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deft_hf.models import row_loss
from deft_hf.models.row_loss import cross_entropy_sum

SHAPES = [((7, 9), (28, 36)), ((8, 8), (37, 5)), ((16, 16), (16, 16)), ((20, 30), (7, 64)), ((1, 1), (9, 9))]


def drawn(classes, inner, outer, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, classes, *inner, generator=generator, dtype=dtype) * 5
    labels = torch.randint(0, classes, (3, *outer), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[1] = 255
    return logits.requires_grad_(), labels, torch.rand(labels.shape, generator=generator) * (labels != 255)


def reference(logits, labels, weights):
    resized = F.interpolate(logits.double(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(resized, labels, ignore_index=255, reduction="none")
    return (losses if weights is None else losses * weights).sum()


@pytest.mark.parametrize("block", [1, 1 << 12, 1 << 30])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("inner, outer", SHAPES)
def test_by_rows_is_the_loss_and_gradient_of_all_at_once(monkeypatch, inner, outer, weighted, block):
    monkeypatch.setattr(row_loss, "_BLOCK_BYTES", block)
    for classes in (2, 19):
        logits, labels, weights = drawn(classes, inner, outer)
        expected = reference(logits, labels, weights if weighted else None)
        found = cross_entropy_sum(logits, labels, weights if weighted else None)
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        (gradient,) = torch.autograd.grad(3 * found, logits)
        (wanted,) = torch.autograd.grad(3 * expected, logits)
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()
        assert not gradient[1].any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_other_types_are_summed_in_float32_or_better(dtype, tolerance):
    logits, labels, _ = drawn(20, (6, 6), (24, 24), dtype)
    loss = cross_entropy_sum(logits, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(loss.detach()) == pytest.approx(float(reference(logits, labels, None).detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(reference(logits, labels, None), logits)
    assert gradient.dtype == dtype and (gradient - wanted).norm() <= tolerance * wanted.norm()


class Largest(TorchDispatchMode):
    """The number of elements of the largest floating-point tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and each.is_floating_point():
                self.elements = max(self.elements, each.numel())
        return made


def test_no_tensor_has_the_size_of_the_resized_logits(monkeypatch):
    monkeypatch.setattr(row_loss, "_BLOCK_BYTES", 1 << 14)
    logits, labels, _ = drawn(19, (16, 16), (64, 64))
    with Largest() as seen:
        cross_entropy_sum(logits, labels).backward()
    assert seen.elements == logits.numel() < 3 * 19 * 64 * 64 / 8


def test_without_a_gradient_none_is_computed():
    logits, labels, _ = drawn(19, (4, 4), (16, 16))
    with torch.no_grad():
        loss = cross_entropy_sum(logits, labels)
    assert not loss.requires_grad and float(loss) == pytest.approx(
        float(reference(logits, labels, None).detach()), rel=1e-6
    )


def test_a_class_that_the_model_has_not_is_refused():
    logits, labels, _ = drawn(19, (4, 4), (16, 16))
    labels[0, 0, 0] = 19
    with pytest.raises((RuntimeError, IndexError)):
        cross_entropy_sum(logits, labels)
