import pytest
import torch

from deft_hf.scoring.most_likely import most_likely


@pytest.mark.parametrize("shape", [(1, 19, 130, 7), (2, 2, 64, 3), (1, 1, 5, 5), (1, 300, 4, 4)])
def test_it_is_argmax(shape):
    # Few values, so that many are equal: the first of them is taken.
    logits = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).float()
    found = most_likely(logits)
    assert found.dtype == torch.int64 and torch.equal(found, logits.argmax(1))
    logits[0, -1, 0, 0] = torch.nan
    logits[0, 0, -1, -1] = -torch.inf
    assert torch.equal(most_likely(logits), logits.argmax(1))
    assert torch.equal(most_likely(logits.half()), logits.half().argmax(1))
