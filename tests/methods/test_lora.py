import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from deft_hf.methods.core.ema import EMA
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.methods.lora import add_adapters, has_adapters, merged
from deft_hf.models.families import SegmentationFamily, resolve_family, untouched_parameters
from deft_hf.utils.errors import UserError
from tests import tiny

pytest.importorskip("peft")

RANK, ALPHA = 3, 12.0


@pytest.fixture(params=sorted(tiny.BUILDERS))
def model_type(request):
    return request.param


def adapted(model_type: str, seed: int = 0):
    """A tiny model with adapters, its family of before, and the one of after."""
    model = tiny.build(model_type)
    before = resolve_family(model)
    torch.manual_seed(seed)
    return model, before, add_adapters(model, before, RANK, ALPHA)


def batch(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    batch = tiny.with_masks(tiny.batch(seed=seed))
    return {**batch, "pixel_values": batch["pixel_values"].to(next(model.parameters()).dtype)}


def trained(model: nn.Module, family: SegmentationFamily) -> nn.Module:
    """`model` after three steps in training mode, in eval mode."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        items = batch(model, seed)
        family.objective.loss(model.train(), items, family.objective.count(model, items)).backward()
        optimizer.step()
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        family = resolve_family(model) if hasattr(model, "config") else SegmentationFamily("encoder")
        return family.semantic_logits(model, batch(model, 9)["pixel_values"])


def adaptable(model: nn.Module, family: SegmentationFamily) -> dict[str, nn.Module]:
    """The layers of a plain model that are to be adapted, by full name."""
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d) and module.groups == 1)
        and family.part_of(f"{name}.") == "encoder"
        and family.is_trained(f"{name}.weight")
    }


def test_outputs_at_the_start_are_those_of_the_plain_model(model_type):
    model, _, _ = adapted(model_type)
    assert has_adapters(model)
    assert torch.equal(logits(model.eval()), logits(tiny.build(model_type).eval()))


def test_gradients_reach_exactly_adapters_and_trained_decoder(model_type):
    plain = tiny.build(model_type)
    model, before, after = adapted(model_type)
    factors = {f"{layer}.lora_{factor}.default.weight" for layer in adaptable(plain, before) for factor in "AB"}
    decoder = {n for n, _ in plain.named_parameters() if before.part_of(n) == "decoder" and before.is_trained(n)}
    names = {name for name, _ in model.named_parameters()}
    assert factors <= names
    assert {name for name in names if after.is_trained(name)} == factors | decoder
    assert {after.part_of(name) for name in factors} == {"encoder"}
    assert {n for n, p in model.named_parameters() if p.requires_grad} >= factors | decoder
    frozen = {n for n in names if after.part_of(n) == "encoder"} - factors
    assert frozen and not any(model.get_parameter(name).requires_grad for name in frozen)
    assert set(untouched_parameters(model.train(), after, batch(model, 0))) == names - factors - decoder


def test_trained_parameters_are_in_exactly_one_part(model_type):
    model, _, family = adapted(model_type)
    encoder = {id(p) for path in family.encoders for p in model.get_submodule(path).parameters()}
    by_part = {
        part: {id(p) for n, p in model.named_parameters() if family.is_trained(n) and family.part_of(n) == part}
        for part in ("encoder", "decoder")
    }
    assert by_part["encoder"] and by_part["encoder"] <= encoder
    assert by_part["decoder"] and not by_part["decoder"] & encoder


def test_number_of_trained_encoder_parameters(model_type):
    model, before, after = adapted(model_type)
    sizes = []
    for layer in adaptable(tiny.build(model_type), before).values():
        if isinstance(layer, nn.Linear):
            sizes.append(layer.in_features + layer.out_features)
        else:
            sizes.append(layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] + layer.out_channels)
    encoder = [p for n, p in model.named_parameters() if after.part_of(n) == "encoder" and after.is_trained(n)]
    assert sum(p.numel() for p in encoder) == RANK * sum(sizes)


def test_from_the_smallest_components_the_start_is_the_same_function_and_gradients_flow(model_type):
    plain, model = tiny.build(model_type).double(), tiny.build(model_type).double()  # see below
    family = resolve_family(plain)
    after = add_adapters(model, family, RANK, ALPHA, "smallest")
    torch.testing.assert_close(logits(model.eval()), logits(plain.eval()), rtol=1e-9, atol=1e-9)
    state, scale = model.state_dict(), ALPHA / RANK
    for name, layer in adaptable(plain, family).items():
        first, second = (state[f"{name}.lora_{factor}.default.weight"].flatten(1) for factor in "AB")
        sizes = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        count = min(RANK, len(sizes))
        moved = torch.linalg.svdvals(scale * second @ first)
        torch.testing.assert_close(moved[:count], sizes[-count:], rtol=1e-6, atol=1e-9, msg=name)
        # The frozen weight keeps the others: it has nothing along what was moved.
        kept = state[f"{name}.base_layer.weight"].flatten(1)
        torch.testing.assert_close(torch.linalg.svdvals(kept)[: len(sizes) - count], sizes[:-count], msg=name)
        torch.testing.assert_close(
            kept @ first.T, torch.zeros(len(kept), len(first)).double(), rtol=0, atol=1e-9, msg=name
        )
    model.train()
    items = batch(model, 0)
    after.objective.loss(model, items, after.objective.count(model, items)).backward()
    factors = [p for n, p in model.named_parameters() if after.is_trained(n) and after.part_of(n) == "encoder"]
    assert all(p.grad is not None for p in factors) and sum(bool(p.grad.any()) for p in factors) > len(factors) // 2


def test_merged_model_is_plain_and_gives_the_same_logits(model_type, tmp_path):
    model, _, family = adapted(model_type)
    model.double()  # float32's rounding in deep models would hide what this is to show
    start = logits(model.eval())
    trained(model, family)
    state = copy.deepcopy(model.state_dict())
    plain = merged(model)

    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-10, atol=1e-10)
    assert (logits(plain) - start).abs().max() > 1e-3
    assert type(plain) is type(model)
    assert list(plain.state_dict()) == list(tiny.build(model_type).state_dict())
    assert not has_adapters(plain)
    assert not any(type(module).__module__.startswith("peft") for module in plain.modules())
    assert not any(hasattr(module, "peft_config") for module in plain.modules())

    assert has_adapters(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in model.parameters()}

    plain.save_pretrained(tmp_path)
    restored, keys = type(plain).from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not keys["missing_keys"] and not keys["unexpected_keys"]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in restored.state_dict().items())
    # Buffers that are not saved, such as sapiens2's frequencies, are made anew in another precision.
    torch.testing.assert_close(logits(restored.eval()), logits(plain), rtol=1e-4, atol=1e-6)


def test_training_goes_on_after_a_merge():
    straight, _, family = adapted("segformer")
    stopped = copy.deepcopy(straight)
    for model in (straight, stopped):
        torch.manual_seed(1)
        trained(model, family)
    merged(stopped)
    for model in (straight, stopped):
        torch.manual_seed(2)
        trained(model, family)
    assert torch.equal(logits(straight), logits(stopped))


def test_merged_weights_are_the_papers():
    model, before, family = adapted("segformer")
    trained(model, family)
    plain, start = merged(model), tiny.build("segformer")
    factors = model.state_dict()
    for name, layer in adaptable(start, before).items():
        first = factors[f"{name}.lora_A.default.weight"].flatten(1)
        second = factors[f"{name}.lora_B.default.weight"].flatten(1)
        assert first.shape[0] == second.shape[1] == RANK and second.any()
        change = (ALPHA / RANK * second @ first).view_as(layer.weight)
        torch.testing.assert_close(plain.get_submodule(name).weight, layer.weight + change, rtol=1e-5, atol=1e-6)
    adapted_layers = {f"{name}.weight" for name in adaptable(start, before)}
    for name, parameter in start.named_parameters():
        if before.part_of(name) == "encoder" and name not in adapted_layers:
            assert torch.equal(parameter, plain.get_parameter(name)), name


def test_what_the_smallest_components_became_is_merged():
    model = tiny.build("mobilenet_v2")
    family = add_adapters(model, resolve_family(model), RANK, ALPHA, "smallest")
    model.double()
    start = logits(model.eval())
    trained(model, family)
    torch.testing.assert_close(logits(merged(model)), logits(model), rtol=1e-10, atol=1e-10)
    assert (logits(model) - start).abs().max() > 1e-3


def test_a_layer_of_fewer_components_than_the_rank_gives_all_and_trains_the_rest():
    torch.manual_seed(0)
    model = Model()
    start = logits(model)
    family = add_adapters(model, SegmentationFamily("encoder", ("encoder.unread.*",)), 20, ALPHA, "smallest")
    torch.testing.assert_close(logits(model), start, rtol=1e-5, atol=1e-5)
    layer = model.encoder.block[0]  # of 8 x 8
    assert layer.get_base_layer().weight.abs().max() < 1e-6
    assert layer.lora_A.default.weight[8:].any() and not layer.lora_B.default.weight[:, 8:].any()
    trained(model, family)
    assert layer.lora_B.default.weight[:, 8:].any()


def test_a_model_without_adapters_is_given_back_as_it_is():
    model = tiny.build("segformer")
    assert merged(model) is model
    assert not has_adapters(model)


def test_batchnorm_keeps_its_affine_parameters_and_goes_on_with_its_statistics():
    model, _, family = adapted("mobilenet_v2")
    before = copy.deepcopy(model.state_dict())
    trained(model, family)
    norms = {n for n, m in model.mobilenet_v2.named_modules() if isinstance(m, nn.BatchNorm2d) and "conv_1x1" not in n}
    assert norms
    for norm in norms:
        for name, moves in (("weight", False), ("bias", False), ("running_mean", True), ("running_var", True)):
            key = f"mobilenet_v2.{norm}.{name}"
            assert torch.equal(model.state_dict()[key], before[key]) != moves, key


def test_deep_copies_are_equal_and_apart():
    model, _, family = adapted("beit")
    trained(model, family)
    twin = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(twin), before)
    trained(twin, family)
    assert torch.equal(logits(model), before) and not torch.equal(logits(twin), before)
    torch.testing.assert_close(logits(merged(twin)), logits(twin), rtol=0, atol=1e-5)


def test_pathways_train_adapters_and_average_them():
    model, _, family = adapted("mobilenet_v2")
    pathways = DualPathway(model, family).train()
    pathways.enter("decoupled", EMA(0.5, 0.5))
    pathways.snapshot()
    optimizer = torch.optim.SGD([p for p in pathways.usual.parameters() if p.requires_grad], lr=0.1)
    pathways(**tiny.batch())["loss"].backward()
    optimizer.step()
    pathways.update_generalized()
    moved = {
        name
        for name, parameter in pathways.generalized.named_parameters()
        if name in pathways.initial and not torch.equal(parameter, pathways.initial[name])
    }
    # A gets no gradient while B is 0.
    assert {name.split(".")[-3] for name in moved if family.part_of(name) == "encoder"} == {"lora_B"}
    plain = merged(pathways.generalized.eval())
    torch.testing.assert_close(logits(plain), logits(pathways.generalized), rtol=0, atol=1e-5)


def test_adapters_survive_a_state_dict_and_saving_keeps_them(tmp_path):
    model, _, family = adapted("segformer")
    trained(model, family)
    other, _, _ = adapted("segformer", seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other.eval()), logits(model))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert sum("lora_" in name for name in saved) == sum("lora_" in name for name in model.state_dict()) > 0


def test_draws_depend_on_the_global_seed_alone():
    def draws(model_type, seed, scale=1.0):
        model = tiny.build(model_type)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        torch.manual_seed(seed)
        add_adapters(model, resolve_family(model), RANK, ALPHA)
        return {n: p.detach() for n, p in model.named_parameters() if "lora_A" in n}

    one, same, other = draws("upernet", 1), draws("upernet", 1, scale=2.0), draws("upernet", 2)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not any(torch.equal(value, other[name]) for name, value in one.items())


class Doubling(nn.Conv2d):
    """A convolution that does not use its weight as it is."""

    def forward(self, x):
        return F.conv2d(x, self.weight * 2, self.bias, padding=self.padding)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, padding_mode="circular")
        self.same = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=2, padding_mode="reflect")
        self.grouped = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, padding=1, groups=2)})  # its name ends like another's
        self.derived = Doubling(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        self.unread = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        x = self.derived(self.grouped["conv"](self.same(self.conv(x))))
        tokens = x.flatten(2).transpose(1, 2) * self.scale
        tokens = self.block(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return tokens.transpose(1, 2).view_as(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Conv2d(8, tiny.NUM_LABELS, 1)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.head(self.encoder(pixel_values)))


def test_layers_of_every_geometry_merge_and_those_that_cannot_are_left_alone():
    torch.manual_seed(0)
    model = Model()
    before = SegmentationFamily("encoder", ("encoder.unread.*",))
    family = add_adapters(model, before, RANK, ALPHA)
    layers = {n.removesuffix(".lora_A.default.weight") for n, _ in model.named_parameters() if "lora_A" in n}
    assert layers == {"encoder.conv", "encoder.same", "encoder.block.0"}
    assert set(untouched_parameters(model, family, tiny.batch())) == {
        n for n, _ in model.named_parameters() if not family.is_trained(n)
    }
    start = logits(model)
    trained(model, family)
    plain = merged(model)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)
    assert (logits(plain) - start).abs().max() > 1e-3
    assert list(plain.state_dict()) == list(Model().state_dict())


def test_mistakes_say_the_way_out(monkeypatch):
    model = tiny.build("segformer")
    family = resolve_family(model)
    with pytest.raises(UserError, match="rank of the adapters is 0, expected at least 1"):
        add_adapters(model, family, 0, ALPHA)
    with pytest.raises(UserError, match="'decode_head.batch_norm' has no linear layer"):
        add_adapters(model, SegmentationFamily("decode_head.batch_norm"), RANK, ALPHA)
    with pytest.raises(UserError, match="'decode_head.classifier' has no linear layer"):
        add_adapters(model, SegmentationFamily("decode_head.classifier"), RANK, ALPHA)
    family = add_adapters(model, family, RANK, ALPHA)
    with pytest.raises(UserError, match="has adapters already"):
        add_adapters(model, family, RANK, ALPHA)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'deft-hf\[peft\]'"):
        add_adapters(tiny.build("segformer"), family, RANK, ALPHA)
