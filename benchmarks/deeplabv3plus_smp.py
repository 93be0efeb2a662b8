"""One step of both stages of DeFT on DeepLabV3+: deft_hf against segmentation_models_pytorch with the same weights.

    python -m venv smp && smp/bin/pip install segmentation-models-pytorch -e .
    smp/bin/python benchmarks/deeplabv3plus_smp.py [NETWORK ...]

It takes an environment of its own, since segmentation_models_pytorch needs torchvision, and deft_hf does without. On
one side stands `DeFTTrainer` with the authors' settings (SGD with momentum 0.9, rate 1e-2, weight decay 5e-3 and then
5e-4, on norms and biases too) on the DeepLabV3+ of deft_hf; on the other the equations of the method, written out,
with `torch.optim.SGD` on `segmentation_models_pytorch.DeepLabV3Plus`. Its encoder (torchvision's ResNet, dilated by
itself), its pyramid, its resizing and its forward are left as they are. What its authors built otherwise is set to the
plain form that DeFT's authors have:

* the rates of the pyramid are 6, 12 and 18 (12, 24 and 36 at output stride 8), its convolutions not separable, without
  dropout (arguments of the class);
* the separable convolution between the pyramid and the decoder is taken out;
* two plain 3x3 convolutions stand where one separable one does.

The EMA's decay is 0.9 rather than 0.9999, so that a step of it can be seen. Each network is trained in float32, where
rounding differs from one kernel to the next, and in float64, where a difference would be one of substance. Compared
are the logits before, the three losses, and every parameter and BatchNorm statistic of the four parts afterwards: by
itself, and how far it went.

Writes `benchmarks/results/deeplabv3plus_smp.json`; the suite holds the figures of the smallest network in it. Some
minutes on a CPU.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import ResNetConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deft_hf import DeFTTrainer, DeFTTrainingArguments  # noqa: E402
from deft_hf.models.own import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "deeplabv3plus_smp.json"
CLASSES, DECAY, RATE, WARMUP_DECAY, LATER_DECAY = 19, 0.9, 1e-2, 5e-3, 5e-4
# Blocks of each stage, output stride, channels of the decoder, side of the two images.
NETWORKS = {
    "tiny": ([1, 1, 1, 2], 16, 32, 64),
    "resnet50_os16": ([3, 4, 6, 3], 16, 256, 128),
    "resnet50_os8": ([3, 4, 6, 3], 8, 256, 128),
    "resnet101_os16": ([3, 4, 23, 3], 16, 256, 128),
}
PARTS = ("encoder", "decoder")
FLAGS: dict[str, Any] = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}


def main() -> None:
    torch.set_num_threads(2)
    figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    packages = ("torch", "torchvision", "segmentation-models-pytorch", "transformers")
    figures["versions"] = {package: version(package) for package in packages}
    for name in sys.argv[1:] or NETWORKS:
        for dtype in (torch.float32, torch.float64):
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            figures[key] = compared(name, dtype)
            print(key, json.dumps(figures[key], indent=1), flush=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    del figures["versions"]
    # In float32 a change of a hundred-thousandth is itself rounded.
    agree = ("logits", "losses", "tensors")
    sys.exit(
        any(found["apart"][key] > 1e-5 for found in figures.values() for key in agree)
        or any(found["apart"]["changes"] > 1e-5 for key, found in figures.items() if "float64" in key)
    )


def compared(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """What came out with segmentation_models_pytorch, and how far from it deft_hf is, relative to it."""
    depths, output_stride, size, side = NETWORKS[name]
    model, items = drawn(depths, output_stride, size).to(dtype), Items(side, dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = theirs(model, depths, output_stride, size)
    with torch.no_grad():
        found, expected = model.eval()(items.pixels).logits, reference.eval()(items.pixels)
    their_states, losses = reference_steps(reference, items)
    states, own_losses = our_steps(model, items)
    expected_states = {
        component: {name: tensors[their_name(name)] for name in before} for component, tensors in their_states.items()
    }
    sizes = norms(expected_states, dict.fromkeys(states, {name: 0 * value for name, value in before.items()}))
    moved = norms(expected_states, dict.fromkeys(states, before))
    difference = norms(states, expected_states)
    apart = {
        "logits": float((found - expected).abs().max() / expected.abs().max()),
        "losses": max(abs(own / other - 1) for own, other in zip(own_losses, losses, strict=True)),
        "tensors": max(difference[key] / sizes[key] for key in sizes),
        "changes": max(difference[key] / moved[key] for key in moved),
    }
    return {"losses": losses, "changes": moved, "apart": apart}


# ---- ours


def drawn(depths: list[int], output_stride: int, size: int) -> DeepLabV3PlusForSemanticSegmentation:
    """The network of deft_hf with weights and BatchNorm statistics from a generator, the same in every version."""
    backbone = ResNetConfig.from_dict({"depths": depths, "out_features": ["stage1", "stage4"]})
    config = DeepLabV3PlusConfig(backbone, output_stride=output_stride, hidden_size=size, num_labels=CLASSES)
    model = DeepLabV3PlusForSemanticSegmentation(config)
    generator = torch.Generator().manual_seed(304)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(std=math.sqrt(2 / tensor[0].numel()), generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(std=0.1, generator=generator)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


class Items(Dataset):
    """Two images with a tenth of their pixels ignored."""

    def __init__(self, side: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(305)
        self.labels = torch.randint(CLASSES, (2, side, side), generator=generator)
        self.labels[torch.rand(self.labels.shape, generator=generator) < 0.1] = 255
        self.pixels = torch.randn(2, 3, side, side, generator=generator).to(dtype)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def our_steps(model: Any, items: Items) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """The components after a step of each stage with `DeFTTrainer`, and the three losses on the way."""
    # The trainer hands out pixels in float32, which loses nothing of these.
    model.backbone.embedder.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(model.dtype),))
    with tempfile.TemporaryDirectory() as folder:
        args = DeFTTrainingArguments(
            folder,
            max_steps=1,
            decoder_warmup_steps=1,
            optim="sgd",
            optim_args="momentum=0.9",
            learning_rate=RATE,
            weight_decay=LATER_DECAY,
            decoder_warmup_weight_decay=WARMUP_DECAY,
            decay_norm_and_bias=True,
            ema_decay=DECAY,
            ema_decay_steps=None,
            batchnorm="reference",
            lr_scheduler_type="polynomial",
            lr_scheduler_kwargs={"power": 0.9, "lr_end": 0.0},
            max_grad_norm=0.0,
            per_device_train_batch_size=2,
            logging_steps=1,
            **FLAGS,
        )
        trainer = DeFTTrainer(model=model, args=args, train_dataset=items)
        trainer.train()
    log = trainer.state.log_history
    losses = [entry[f"{part}_loss"] for part in ("decoder", "encoder") for entry in log if f"{part}_loss" in entry]
    components = {"usual": trainer.pathways.usual, "generalized": trainer.pathways.generalized}
    return {name: component.state_dict() for name, component in components.items()}, losses


# ---- theirs


def theirs(model: nn.Module, depths: list[int], output_stride: int, size: int) -> nn.Module:
    """segmentation_models_pytorch's DeepLabV3+ in its plain form, see above, with the weights of `model`."""
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
    from torchvision.models.resnet import Bottleneck

    rates = [rate * 16 // output_stride for rate in (6, 12, 18)]
    network = smp.DeepLabV3Plus(
        "resnet50",
        encoder_weights=None,
        encoder_output_stride=output_stride,
        decoder_channels=size,
        decoder_atrous_rates=rates,
        decoder_aspp_separable=False,
        decoder_aspp_dropout=0.0,
        classes=CLASSES,
    )
    widths = (3, 64, 256, 512, 1024, 2048)
    network.encoder = ResNetEncoder(widths, block=Bottleneck, layers=depths, output_stride=output_stride)
    network.encoder.make_dilated(output_stride)
    network.decoder.aspp = nn.Sequential(network.decoder.aspp[0])
    network.decoder.block2 = nn.Sequential(*_plain(size + 48, size), *_plain(size, size))
    state = {their_name(name): value for name, value in model.state_dict().items()}
    network.to(model.dtype).load_state_dict(state)  # every tensor of one is in the other
    return network


def _plain(channels: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]


def their_name(name: str) -> str:
    """What segmentation_models_pytorch calls a tensor of ours."""
    words = name.split(".")
    end = words[-1]
    if words[0] == "backbone":
        norm = words[-2] == "normalization"
        if words[1] == "embedder":
            return f"encoder.{'bn1' if norm else 'conv1'}.{end}"
        place = f"encoder.layer{int(words[3]) + 1}.{words[5]}"
        if words[6] == "shortcut":
            return f"{place}.downsample.{int(norm)}.{end}"
        return f"{place}.{'bn' if norm else 'conv'}{int(words[7]) + 1}.{end}"
    places = {
        "classifier": "segmentation_head.0",
        "low_level": "decoder.block1",
        "fusion.0": "decoder.block2",
        "pyramid.projection": "decoder.aspp.0.project",
    }
    for ours, place in places.items():
        if name.startswith(f"decode_head.{ours}."):
            return f"{place}{name.removeprefix(f'decode_head.{ours}')}"
    if words[1] == "fusion":
        return f"decoder.block2.{3 + int(words[3])}.{end}"
    if words[2] == "image_level":
        return f"decoder.aspp.0.convs.4.{1 + int(words[3])}.{end}"
    return f"decoder.aspp.0.convs.{words[3]}.{words[4]}.{end}"


def reference_steps(network: Any, items: Items) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """The equations of docs/methods.md: components after a step of each stage, under our names, and the losses."""
    encoder, decoder = network.encoder.train(), nn.ModuleList([network.decoder, network.segmentation_head]).train()
    shipped = copy.deepcopy(encoder)

    def loss(of_encoder: nn.Module, of_decoder: Any) -> Tensor:
        logits = of_decoder[1](of_decoder[0](of_encoder(items.pixels)))
        return F.cross_entropy(logits, items.labels, ignore_index=255)

    def step(parameters: list[nn.Parameter], value: Tensor, decay: float) -> None:
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = gradient
        torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=decay).step()

    warmup = loss(encoder, decoder)
    step(list(decoder.parameters()), warmup, WARMUP_DECAY)
    usual = {"encoder": shipped, "decoder": copy.deepcopy(decoder)}
    generalized = {"encoder": encoder, "decoder": decoder}
    encoder_loss = loss(usual["encoder"], generalized["decoder"])
    decoder_loss = loss(generalized["encoder"], usual["decoder"])
    for part, value in (("encoder", encoder_loss), ("decoder", decoder_loss)):
        step(list(usual[part].parameters()), value, LATER_DECAY)
    with torch.no_grad():
        for part in PARTS:
            for mean, own in zip(generalized[part].parameters(), usual[part].parameters(), strict=True):
                mean.copy_(DECAY * mean + (1 - DECAY) * own)
    states = {name: _flat(component) for name, component in (("usual", usual), ("generalized", generalized))}
    return states, [warmup.item(), decoder_loss.item(), encoder_loss.item()]


def _flat(component: dict[str, Any]) -> dict[str, Tensor]:
    named = {"encoder": component["encoder"], "decoder": component["decoder"][0]}
    state = {f"{part}.{name}": value for part, module in named.items() for name, value in module.state_dict().items()}
    return state | {f"segmentation_head.{name}": v for name, v in component["decoder"][1].state_dict().items()}


# ---- figures


def norms(states: dict[str, dict[str, Tensor]], others: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """By component, part and kind of tensor, the L2 norm of the difference of two."""
    squares: dict[str, float] = {}
    for component, tensors in states.items():
        for name, value in tensors.items():
            if not value.is_floating_point():
                continue
            part = "encoder" if name.startswith("backbone.") else "decoder"
            kind = "statistics" if "running_" in name else "parameters"
            key = f"{component} {part}, {kind}"
            distance = (value.double() - others[component][name].double()).square().sum()
            squares[key] = squares.get(key, 0.0) + float(distance)
    return {key: math.sqrt(square) for key, square in squares.items()}


if __name__ == "__main__":
    main()
