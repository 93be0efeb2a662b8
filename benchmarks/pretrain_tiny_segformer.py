"""Pretrains the tiny SegFormer encoder that ships with deft_hf, on drawn material that is not the quickstart's.

A pretrained encoder knows the world at large but not the task, and so must this one. It learns to tell materials and
objects apart in *heaps*: patches of ground, paving, grass, sky and brick cut at any angle, under facades, trees,
vehicles, people, posts and fences of any size, place, colour and tilt, photographed with random colour, light,
contrast, blur and noise. What it shares with the streets are the shapes of single objects. What it never sees:

* a street: no layout, perspective ground, horizon or scale that goes with depth, and not the seven street classes;
* the looks: depth-dependent fog, snow, rain, lit windows and lamps, dusk and night skies, or the other town's palette.

`layout.Street` is made unusable before the first picture is drawn, so that no street can slip in. Dark, pale and
tinted pictures do occur, since brightness, contrast and colour are drawn at random over the whole picture.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/pretrain_tiny_segformer.py
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from deft_hf.data.streets import layout, scenery, vehicles
from deft_hf.data.streets.canvas import cloudy_noise, noise_patch
from deft_hf.scoring.confusion import ConfusionMatrix

ROOT = Path(__file__).parents[1]
KINDS = ("air", "grain", "tiles", "grass", "bricks", "facade", "tree", "vehicle", "person", "post", "fence")
MATERIALS = 5  # the first kinds are backgrounds, the others are objects
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _forbidden(*_: object, **__: object) -> None:
    raise AssertionError("pretraining must not see the streets")


layout.Street.__init__ = _forbidden


TYPICAL = {"air": (150, 180, 215), "grain": (115, 113, 112), "tiles": (150, 143, 135), "grass": (85, 115, 55)}
TYPICAL |= {"bricks": (160, 100, 75)}


def any_color(rng: np.random.Generator, kind: str = "") -> np.ndarray:
    """A colour: mostly near what is typical of the kind, else any, half of the time a gray."""
    if kind in TYPICAL and rng.random() < 0.7:
        return np.clip(np.array(TYPICAL[kind]) * rng.uniform(0.6, 1.4) + rng.normal(0, 8, 3), 5, 250)
    gray = rng.uniform(25, 230)
    return np.clip(gray + rng.normal(0, rng.choice((4, 50)), 3), 5, 250)


def material(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A surface of one kind, float (height, width, 3) in 0..255."""
    fine, coarse = noise_patch(height, width, rng), cloudy_noise(height, width, rng)
    turn = rng.uniform(0, math.pi)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    u = columns * math.cos(turn) + rows * math.sin(turn)
    v = rows * math.cos(turn) - columns * math.sin(turn)
    color = any_color(rng, kind)
    if kind == "air":
        other = np.clip(color + rng.normal(0, 45, 3), 0, 255)
        color = np.clip(color + 40, 0, 255)
        share = np.clip(0.5 + v / (height + width) * rng.uniform(0.5, 2) + rng.uniform(0, 0.4) * coarse, 0, 1)
        return color + share[..., None] * (other - color)
    if kind == "grain":
        return color * (1 + rng.uniform(0.04, 0.14) * fine + rng.uniform(0, 0.1) * coarse)[..., None]
    if kind == "grass":
        return color * (1 + rng.uniform(0.2, 0.35) * fine + 0.1 * coarse)[..., None]
    long, short = rng.uniform(8, 26), rng.uniform(4, 14)
    course = np.floor(v / short)
    offset = course * 0.5 * long if kind == "bricks" else 0
    joint = np.maximum((v % short) < 1.2, ((u + offset) % long) < 1.2)
    shade = rng.uniform(-0.12, 0.12, 997)[(course * 31 + np.floor((u + offset) / long)).astype(int) % 997]
    return color * (1 + 0.08 * fine + shade + rng.choice((-0.35, 0.3)) * joint)[..., None]


def thing(kind: str, tall: float, rng: np.random.Generator) -> Image.Image:
    """An object of one kind, RGBA, about `tall` pixels high."""
    color = tuple(any_color(rng).tolist())
    if kind == "facade":
        width, storeys = rng.uniform(4, 14), int(rng.integers(1, 6))
        roof = tuple(any_color(rng).tolist())
        flat, shop = rng.random() < 0.5, rng.random() < 0.4
        sprite = scenery.facade(width, storeys, color, roof, flat, shop, tall / (3 * storeys + 3), rng)
    elif kind == "tree":
        size = rng.uniform(4, 12)
        sprite = scenery.tree(str(rng.choice(("leafy", "leafy", "bare", "conifer"))), size, tall / size, rng)
    elif kind == "vehicle" and rng.random() < 0.25:
        sprite = vehicles.crossing_car(color, tall / 1.5, rng)
    elif kind == "vehicle":
        model = str(rng.choice(list(vehicles.VEHICLES)))
        scale = tall / vehicles.VEHICLES[model][1]
        side, eye, near = rng.uniform(-5, 5), rng.uniform(0.8, 2.5), rng.uniform(5, 30)
        sprite = vehicles.vehicle(model, color, scale, side, eye, near, rng.random() < 0.5, rng)
    elif kind == "person":
        sprite = scenery.person(tall / 1.8, rng, rng.random() < 0.35)
    elif kind == "fence":
        high = rng.uniform(0.8, 1.8)
        sprite = scenery.fence(rng.uniform(3, 9), high, 0.5 * tall / high, rng)
    else:
        draw = (scenery.sign, scenery.traffic_light, scenery.lamp_post)[rng.integers(3)]
        if draw is scenery.lamp_post:
            sprite = draw(6.0, float(rng.choice((-1.3, 1.3))), tall / 6.0, rng)
        else:
            sprite = draw(tall / 3.3, rng)
    rgba = sprite.rgba
    if rng.random() < 0.15:
        rgba = rgba[..., [*rng.permutation(3), 3]]
    return Image.fromarray(np.ascontiguousarray(rgba))


def heap(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 (height, width, 3) of materials with objects on them, and the kind of every pixel uint8."""
    pixels = np.empty((height, width, 3), np.float32)
    mask = np.empty((height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for patch in range(rng.integers(1, 4)):
        kind = int(rng.integers(MATERIALS))
        angle, ripple = rng.uniform(0, 2 * math.pi), rng.uniform(0, 25) * cloudy_noise(height, width, rng)
        side = (columns - rng.uniform(0, width)) * math.cos(angle) + (rows - rng.uniform(0, height)) * math.sin(angle)
        inside = side + ripple * (rng.random() < 0.4) > 0 if patch else np.ones_like(mask, bool)
        pixels[inside] = material(KINDS[kind], height, width, rng)[inside]
        mask[inside] = kind
    picture, labels = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), Image.fromarray(mask)
    for _ in range(rng.integers(2, 7)):
        kind = int(rng.integers(MATERIALS, len(KINDS)))
        tall = height * rng.uniform(0.2, 1.1)
        sprite = thing(KINDS[kind], max(tall, 8), rng)
        tilt = rng.uniform(-180, 180) if rng.random() < 0.15 else rng.normal(0, 6)
        sprite = sprite.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
        squeeze = rng.uniform(0.5, 1.2) if KINDS[kind] in ("facade", "fence") else rng.uniform(0.85, 1.15)
        sprite = sprite.resize((max(2, round(sprite.width * squeeze)), sprite.height))
        place = int(rng.integers(-sprite.width // 2, width)), int(rng.integers(-sprite.height // 2, height))
        place = place[0] - sprite.width // 4, place[1] - sprite.height // 4
        picture.paste(sprite, place, sprite)
        labels.paste(
            kind, (*place, place[0] + sprite.width, place[1] + sprite.height), sprite.getchannel(3).point(_solid)
        )
    return np.asarray(picture), np.asarray(labels)


def _solid(alpha: int) -> int:
    return 255 if alpha > 127 else 0


def photograph(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture under random light and through a random camera, float32 (height, width, 3) in 0..1."""
    height, width = picture.shape[:2]
    wild = float(rng.choice((0.3, 0.3, 1.0)))  # two pictures of three are tame
    blur = ImageFilter.GaussianBlur(rng.uniform(0, 1.3) if rng.random() < 0.6 * wild else 0)
    color = np.asarray(Image.fromarray(picture).filter(blur), np.float32) / 255
    light = np.exp(wild * (rng.normal(0, 0.3) + rng.normal(0, 0.12, 3)))
    color = color ** np.exp(wild * rng.normal(0, 0.3)) * np.float32(light)
    if rng.random() < 0.5 * wild:
        color = color @ np.float32(np.eye(3) + rng.normal(0, 0.1, (3, 3)))
    gray = color.mean(2, keepdims=True)
    color = gray + np.float32(1 + wild * rng.uniform(-0.9, 0.4)) * (color - gray)
    if rng.random() < 0.4 * wild:
        flat = rng.uniform(0, 1, 3)
        color = flat + rng.uniform(0.35, 1) * (color - flat)
    if rng.random() < 0.5 * wild:
        color = color * np.clip(1 + rng.uniform(0, 0.5) * cloudy_noise(height, width, rng), 0.2, 2)[..., None]
    noise = rng.standard_normal(color.shape, np.float32)
    return np.clip(color + wild * rng.uniform(0, 0.07) * noise, 0, 1).astype(np.float32)


class Heaps(Dataset):
    """Random views of `scenes` heaps, each drawn once; view `i` is a pure function of (seed, part, i)."""

    def __init__(self, seed: int, part: int, scenes: int, views: int, size: tuple[int, int]):
        self.seed, self.part, self.scenes, self.views, self.size = seed, part, scenes, views, size
        self.drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.views

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, self.part, 0, index))
        scene = int(rng.integers(self.scenes))
        height, width = self.size
        if scene not in self.drawn:
            drawing = np.random.default_rng((self.seed, self.part, 1, scene))
            self.drawn[scene] = heap(drawing, height * 4 // 3, width * 4 // 3)
        picture, mask = self.drawn[scene]
        top, left = (int(rng.integers(1 + whole - part)) for whole, part in zip(mask.shape, self.size, strict=True))
        window = np.s_[top : top + height, left : left + width]
        pixels = (photograph(picture[window], rng) - np.float32(MEAN)) / np.float32(STD)
        mask = mask[window]
        if rng.random() < 0.5:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        return {
            "pixel_values": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "labels": torch.from_numpy(mask.astype(np.int64)),
        }


def evaluate(model: SegformerForSemanticSegmentation, loader: DataLoader) -> dict[str, object]:
    """mIoU and IoU by kind on held-out heaps."""
    matrix = ConfusionMatrix(len(KINDS))
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            logits = model(pixel_values=batch["pixel_values"]).logits
            size = batch["labels"].shape[-2:]
            logits = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
            matrix.update(logits.argmax(1), batch["labels"])
    scores = matrix.compute(KINDS)
    return {"mean_iou": scores.mean_iou, "iou": dict(zip(KINDS, scores.iou, strict=True))}


def save(model: SegformerForSemanticSegmentation, folder: Path) -> None:
    """Writes encoder and processor. Weights are stored as float16 to halve the package, and load as float32."""
    model.config.num_labels = 2  # the default, which is not written: the kinds are nothing that a user should see
    model.segformer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    SegformerImageProcessor(
        do_resize=True,
        size={"height": 192, "width": 256},
        do_rescale=True,
        do_normalize=True,
        image_mean=MEAN,
        image_std=STD,
        do_reduce_labels=False,
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--scenes", type=int, default=2500, help="heaps to train on")
    parser.add_argument("--held-out", type=int, default=256, help="heaps to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "deft_hf/assets/tiny-segformer")
    parser.add_argument("--log", type=Path, default=ROOT / "benchmarks/results/pretrain_tiny_segformer.json")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    config = SegformerConfig(
        hidden_sizes=[16, 32, 64, 128],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        initializer_range=0.1,  # 0.02 is meant for wide models: this narrow one would hardly start to learn
        num_labels=len(KINDS),
    )
    model = SegformerForSemanticSegmentation(config)
    size = tuple(args.size)
    views = Heaps(args.seed, 0, args.scenes, args.steps * args.batch_size, size)
    train = DataLoader(views, args.batch_size, num_workers=1)
    held_out = DataLoader(Heaps(args.seed, 1, args.held_out, args.held_out, size), args.batch_size)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)

    start, losses, curve = time.time(), [], []
    model.train()
    for step, batch in enumerate(train, 1):
        # Against labels at the logits' own quarter size: on a CPU the loss at full size costs as much as the encoder.
        logits = model(pixel_values=batch["pixel_values"]).logits
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 2::4, 2::4])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == args.steps:
            curve.append({"step": step, "loss": round(float(np.mean(losses)), 4)})
            losses.clear()
            print(f"step {step}/{args.steps}  loss {curve[-1]['loss']:.3f}  {time.time() - start:.0f} s", flush=True)
    seconds = time.time() - start
    scores = evaluate(model, held_out)
    print(f"held-out mIoU {100 * scores['mean_iou']:.1f}", flush=True)
    save(model, args.output)
    log = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "scenes": args.scenes,
        "size": list(size),
        "learning_rate": args.learning_rate,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} thread and one worker that draws",
        "parameters": sum(parameter.numel() for parameter in model.segformer.parameters()),
        "bytes": (args.output / "model.safetensors").stat().st_size,
        "held_out": {"images": args.held_out, **scores},
        "loss": curve,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
    args.log.parent.mkdir(parents=True, exist_ok=True)
    args.log.write_text(json.dumps(log, indent=2) + "\n")


if __name__ == "__main__":
    main()
