import torch

from deft_hf.methods.core.distance import squared_distance


def test_distance_and_its_gradient():
    start = [torch.zeros(2), torch.ones(1, 2)]
    moved = [torch.tensor([3.0, 0.0], requires_grad=True), torch.tensor([[1.0, 5.0]], requires_grad=True)]
    assert squared_distance(moved, start).item() == 25.0
    (0.1 / 2 * squared_distance(moved, start)).backward()
    # The gradient of weight/2 * ||p - p0||^2 is weight * (p - p0).
    torch.testing.assert_close(moved[0].grad, torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(moved[1].grad, torch.tensor([[0.0, 0.4]]))


def test_nothing_to_measure():
    assert squared_distance([], []).item() == 0
