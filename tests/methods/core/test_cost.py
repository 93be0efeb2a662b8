import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deft_hf.methods.core.cost import equal_compute_steps, method_flops, step_flops
from deft_hf.methods.core.pathways import DualPathway
from deft_hf.models.families import resolve_family
from tests import tiny

# By model, patterns of layers: the first of the encoder, the first of the decoder, what runs without being trained.
LAYERS = {
    "segformer": (r"segformer\.stages\.0\.patch_embeddings\.proj", r"decode_head\.linear_projections\..*", "-"),
    "mobilenet_v2": (
        r"mobilenet_v2\.conv_stem\.first_conv\..*",
        r"segmentation_head\.conv_(pool|aspp)\..*",
        r"mobilenet_v2\.conv_1x1\..*",
    ),
    "dpt": (r"dpt\..*patch_embeddings\..*", r"neck\.reassemble_stage\.readout_projects\..*", r"auxiliary_head\..*"),
}
STAGES = ("warmup", "decoupled", "joint")


@pytest.fixture(params=sorted(LAYERS))
def model_type(request):
    return request.param


def pathways(model_type: str, stage: str) -> DualPathway:
    model = tiny.build(model_type)
    both = DualPathway(model, resolve_family(model))
    both.enter(stage)
    return both


def forward_flops(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tiny.batch()["pixel_values"])
    return counter.get_total_flops()


def layer_flops(model: nn.Module, pattern: str) -> int:
    """Two operations for each weight that meets a number, from shapes alone."""
    counts = []

    def count(layer, inputs, output):
        # Each place of the output (of a transposed convolution: of the input) meets the whole weight once.
        transposed = isinstance(layer, nn.ConvTranspose2d)
        places = inputs[0].numel() / layer.in_channels if transposed else output.numel() / layer.weight.shape[0]
        counts.append(2 * places * layer.weight.numel())

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and re.fullmatch(pattern, name):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(tiny.batch()["pixel_values"])
    return int(sum(counts))


def test_stages_cost_the_passes_that_they_are_made_of(model_type):
    model = tiny.build(model_type)
    family = resolve_family(model)
    if model_type != "mobilenet_v2":
        model.set_attn_implementation("eager")  # whose products the counter sees
    encoder = forward_flops(model.get_submodule(family.encoder))
    decoder = forward_flops(model) - encoder
    # The first trained layers need no gradient of their inputs: one forward less in each backward. What is not trained
    # has no backward, two forwards less.
    encoder_first, decoder_first, untrained = (layer_flops(copy.deepcopy(model), p) for p in LAYERS[model_type])
    untrained_encoder = untrained if model_type == "mobilenet_v2" else 0
    untrained_decoder = untrained - untrained_encoder
    assert encoder_first and decoder_first
    joint = 3 * encoder - encoder_first - 2 * untrained_encoder + 3 * decoder - 2 * untrained_decoder
    warmup = encoder + 3 * decoder - decoder_first - 2 * untrained_decoder
    encoder_pathway = 3 * encoder - encoder_first - 2 * untrained_encoder + 2 * decoder - untrained_decoder
    counted = {stage: step_flops(pathways(model_type, stage), tiny.batch()) for stage in STAGES}
    assert counted == {"warmup": warmup, "decoupled": encoder_pathway + warmup, "joint": joint}


def test_counts_are_in_proportion_to_the_images():
    one, two = (step_flops(pathways("segformer", "decoupled"), tiny.batch(size=size)) for size in (1, 2))
    assert two == 2 * one


def test_the_model_is_left_as_it_was():
    both, batch = pathways("mobilenet_v2", "decoupled"), tiny.batch()
    both.usual.eval()
    state, modes = copy.deepcopy(both.state_dict()), [module.training for module in both.modules()]
    flags = [parameter.requires_grad for parameter in both.parameters()]
    weight = both.usual.segmentation_head.classifier.convolution.weight
    weight.grad = torch.ones_like(weight)
    random = torch.get_rng_state()
    first = step_flops(both, batch)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in both.state_dict().items())
    assert [module.training for module in both.modules()] == modes and len(set(modes)) == 2
    assert [parameter.requires_grad for parameter in both.parameters()] == flags
    assert all(parameter.grad is None for parameter in both.parameters())
    assert step_flops(both, batch) == first
    with pytest.raises(RuntimeError):
        step_flops(both, {**batch, "pixel_values": batch["pixel_values"][:, :1]})
    assert [module.training for module in both.modules()] == modes


def test_dropout_of_a_step_is_that_of_a_step_without_counting():
    both = pathways("segformer", "joint").train()
    losses = []
    for counts in (False, True):
        torch.manual_seed(3)
        if counts:
            step_flops(both, tiny.batch())
        losses.append(float(both(**tiny.batch())["loss"].detach()))
    assert losses[0] == losses[1]


def test_a_run_costs_its_stages_times_their_steps():
    model, batch = tiny.build("segformer"), tiny.batch()
    state, places = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    step = {stage: step_flops(pathways("segformer", stage), batch) for stage in STAGES}
    family = resolve_family(model)
    stages = [("warmup", 7), ("joint", 2), ("warmup", 1), ("decoupled", 30)]
    assert (
        method_flops(model, family, stages, batch) == 8 * step["warmup"] + 2 * step["joint"] + 30 * step["decoupled"]
    )
    assert method_flops(model, family, [], batch) == 0
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_costs_no_gradient_and_stays_frozen():
    model, batch = tiny.build("segformer"), tiny.batch()
    family = resolve_family(model)
    whole = method_flops(model, family, [("joint", 1)], batch)
    model.decode_head.classifier.requires_grad_(False)
    assert method_flops(model, family, [("joint", 1)], batch) < whole
    assert not model.decode_head.classifier.weight.requires_grad and model.decode_head.linear_fuse.weight.requires_grad


def test_equal_compute_gives_the_baseline_more_steps():
    model, batch = tiny.build("segformer"), tiny.batch()
    family = resolve_family(model)
    assert equal_compute_steps(method_flops(model, family, [("joint", 11)], batch), model, family, batch) == 11
    deft = method_flops(model, family, [("warmup", 10), ("decoupled", 100)], batch)
    step = {stage: step_flops(pathways("segformer", stage), batch) for stage in STAGES}
    exact = (10 * step["warmup"] + 100 * step["decoupled"]) / step["joint"]
    steps = equal_compute_steps(deft, model, family, batch)
    assert 100 < exact - 1 < steps <= exact


def test_adapters_save_weight_gradients():
    pytest.importorskip("peft")
    from deft_hf.methods.lora import add_adapters

    model, batch = tiny.build("segformer"), tiny.batch()
    family = resolve_family(model)
    whole = method_flops(model, family, [("joint", 1)], batch)
    adapted = add_adapters(model, family, rank=1, alpha=1.0)
    assert (
        method_flops(model, family, [("warmup", 1)], batch)
        < method_flops(model, adapted, [("joint", 1)], batch)
        < whole
    )
