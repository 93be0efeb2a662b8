import pytest
import torch
from torch import nn

from deft_hf.methods.soups import averaged, greedy
from deft_hf.models.families import resolve_family
from deft_hf.utils.errors import UserError
from tests import tiny


def drawn(seed: int, model_type: str = "mobilenet_v2") -> nn.Module:
    """A tiny model whose weights and statistics are those of a seed."""
    model = tiny.build(model_type)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model


def test_the_soup_of_one_model_is_that_model_bit_for_bit_and_a_copy():
    model = drawn(0)
    soup = averaged([model])
    assert soup.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in soup.state_dict().items())
    assert not {p.data_ptr() for p in soup.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_parameters_are_means_and_buffers_are_the_first_models():
    one, two = drawn(1), drawn(2)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    soup = averaged([one, two])
    for name, parameter in soup.named_parameters():
        assert torch.equal(parameter, (one.get_parameter(name) + two.get_parameter(name)) / 2), name
    for name, buffer in soup.named_buffers():
        assert torch.equal(buffer, one.get_buffer(name)), name
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_the_order_of_the_models_does_not_show():
    models = [drawn(seed) for seed in range(3)]
    there, back = averaged(models), averaged([*models[1:], models[0]])
    assert all(torch.equal(p, back.get_parameter(name)) for name, p in there.named_parameters())


def test_an_average_of_encoders_leaves_the_decoder_to_the_first():
    one, two = drawn(1, "segformer"), drawn(2, "segformer")
    family = resolve_family(one)
    soup = averaged([one, two], lambda name: family.part_of(name) == "encoder")
    for name, parameter in soup.named_parameters():
        own, other = one.get_parameter(name), two.get_parameter(name)
        expected = (own + other) / 2 if family.part_of(name) == "encoder" else own
        assert torch.equal(parameter, expected) and not torch.equal(own, other), name


@pytest.mark.parametrize(
    "other, message",
    [
        (nn.Linear(3, 2), r"weight has the shapes \(2, 2\) and \(2, 3\)"),
        (nn.Linear(2, 2, bias=False), r"bias has the shapes \(2,\) and None"),
        (nn.Sequential(nn.Linear(2, 2)), "weight has the shapes .* and None"),
    ],
)
def test_models_of_other_shapes_have_no_average(other, message):
    with pytest.raises(UserError, match=message):
        averaged([nn.Linear(2, 2), other])


def test_greedy_starts_with_the_best_and_takes_what_does_no_harm():
    scores = {
        (0,): 0.3, (1,): 0.5, (2,): 0.4, (3,): 0.45, (1, 3): 0.45, (1, 2): 0.5, (1, 2, 0): 0.6,
    }  # fmt: skip
    asked = []

    def score(members):
        asked.append(tuple(members))
        return scores[tuple(members)]

    # 3 harms, 2 changes nothing, 0 helps though it is the worst.
    assert greedy([0, 1, 2, 3], score) == [1, 2, 0]
    assert asked == [(0,), (1,), (2,), (3,), (1, 3), (1, 2), (1, 2, 0)]
    assert greedy([0], score) == [0]
