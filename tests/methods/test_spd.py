import pytest
import torch

from deft_hf.methods.spd import drift, project

START = torch.tensor([1.0, -2.0])


def projected(previous, gradient, moved, weight):
    """What selective projection decay makes of one step, all given as offsets from the start."""
    parameter = START + torch.tensor(previous)
    parameter.grad = None if gradient is None else torch.tensor(gradient)
    before = drift([parameter], [START])
    parameter.copy_(START + torch.tensor(moved))
    project([parameter], [START], before, weight)
    return (parameter - START).tolist()


def test_drift_is_the_distance_and_what_descent_does_to_it():
    parameters = [torch.tensor([4.0, 2.0], requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    parameters[0].grad = torch.tensor([1.0, -2.0])
    found = drift(parameters, [START, torch.zeros(2, 2)])
    assert [float(distance) for distance in found.distances] == [5.0, 2.0]
    assert [float(alignment) for alignment in found.alignments] == [-(3.0 * 1.0 + 4.0 * -2.0), 0.0]


# Previous offset (3, 4), length 5; new offset (6, 8), length 10: the distance grew by half of the new one.
AWAY, BACK = [-1.0, 0.0], [1.0, 0.0]  # gradients whose descent leads away from the start, and back to it


@pytest.mark.parametrize(
    "weight, expected",
    [(1.0, [3.0, 4.0]), (0.5, [4.5, 6.0]), (2.0, [0.0, 0.0]), (0.0, [6.0, 8.0])],
)
def test_growth_is_taken_back_where_the_gradient_leads_back(weight, expected):
    assert projected([3.0, 4.0], BACK, [6.0, 8.0], weight) == pytest.approx(expected, abs=1e-6)


def test_weight_one_gives_the_distance_of_before_in_the_direction_of_now():
    x, y = projected([3.0, 4.0], BACK, [-8.0, 6.0], 1.0)
    assert (x, y) == pytest.approx((-4.0, 3.0), abs=1e-6)


@pytest.mark.parametrize(
    "gradient",
    [AWAY, [4.0, -3.0], [0.0, 0.0], None],
    ids=["leads away", "at a right angle", "zero", "none"],
)
def test_elsewhere_nothing_is_taken_back(gradient):
    assert projected([3.0, 4.0], gradient, [6.0, 8.0], 1.0) == [6.0, 8.0]


def test_a_distance_that_shrank_is_left_alone():
    assert projected([3.0, 4.0], BACK, [3.0, 0.0], 1.0) == [3.0, 0.0]


def test_at_the_start_nothing_becomes_nan():
    assert projected([0.0, 0.0], BACK, [1.0, 1.0], 1.0) == [1.0, 1.0]  # the first step of a run
    assert projected([3.0, 4.0], BACK, [0.0, 0.0], 1.0) == [0.0, 0.0]
    assert projected([0.0, 0.0], BACK, [0.0, 0.0], 1.0) == [0.0, 0.0]


def test_each_tensor_has_its_own_condition_and_ratio():
    starts = [torch.zeros(2), torch.zeros(2), torch.zeros(1, 2)]
    parameters = [torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 1.0]])]
    for parameter, gradient in zip(parameters, (BACK, AWAY, [[0.0, 1.0]]), strict=True):
        parameter.grad = torch.tensor(gradient)
    before = drift(parameters, starts)
    for parameter, moved in zip(parameters, ([6.0, 8.0], [6.0, 8.0], [[0.0, 4.0]]), strict=True):
        parameter.copy_(torch.tensor(moved))
    project(parameters, starts, before, 1.0)
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]), torch.tensor([[0.0, 1.0]])]
    torch.testing.assert_close(parameters, expected)
    assert [start.any() for start in starts] == [False] * 3
