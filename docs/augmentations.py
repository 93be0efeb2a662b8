"""Draws the pictures of augmentation: `python docs/augmentations.py` writes augment_NAME.jpg and styles.jpg.

Those of the presets show a drawn picture and its mask at the left, and six training crops of it; what is ignored is
white. That of the styles has a row for each way to change the colours alone, of one picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deft_hf.data import AUGMENTATIONS, TrainTransform, draw_street
from deft_hf.data.streets import STREETS
from deft_hf.data.styles import STYLES

IMAGES = Path(__file__).parent / "images"
SIDE, COLUMNS, GAP = 144, 6, 6
AERIAL = [(104, 140, 70), (168, 152, 96), (96, 98, 104), (176, 88, 70), (34, 84, 44)]
AERIAL_PALETTE = [(152, 251, 152), (210, 180, 80), (128, 64, 128), (220, 60, 60), (20, 110, 40)]
CELL_PALETTE = [(230, 200, 220), (70, 40, 140)]


def street(look: str, seed: int) -> tuple[np.ndarray, np.ndarray, list]:
    return *draw_street(look, seed, (288, 384)), [*STREETS.palette]


def aerial() -> tuple[np.ndarray, np.ndarray, list]:
    """Meadows and fields with roads, houses and trees, from above."""
    rng = np.random.default_rng(4)
    mask = Image.new("L", (384, 288), 0)
    draw = ImageDraw.Draw(mask)
    for x, y in [(-10, 170), (210, -40), (235, 150)]:
        draw.polygon([(x, y), (x + 170, y + 12), (x + 160, y + 130), (x - 12, y + 118)], fill=1)
    draw.line([(-10, 120), (150, 150), (200, 140), (400, 60)], fill=2, width=20)
    draw.line([(186, 140), (205, 300)], fill=2, width=14)
    for left in range(12, 180, 44):
        top = 72 + left // 6 + int(rng.integers(-6, 6))
        draw.rectangle((left, top, left + 26, top + 20), fill=3)
    for _ in range(60):
        x, y, radius = int(rng.integers(384)), int(rng.integers(288)), int(rng.integers(4, 10))
        if mask.getpixel((x, y)) == 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=4)
    labels = np.array(mask)
    image = np.array(AERIAL, float)[labels]
    rows = np.arange(288)[:, None, None]
    image += np.where((labels == 1)[..., None], 10 * np.sin(rows * 1.1), 0) + rng.normal(0, 9, (288, 384, 1))
    # Roofs have a lit and a dark side, and what stands up casts a shadow.
    image *= np.where((np.roll(labels, (4, 4), (0, 1)) >= 3) & (labels < 3), 0.55, 1)[..., None]
    return _photograph(image, 0.6), labels, AERIAL_PALETTE


def cells() -> tuple[np.ndarray, np.ndarray, list]:
    """Stained tissue with nuclei."""
    rng = np.random.default_rng(2)
    tissue = Image.fromarray(rng.integers(0, 256, (36, 48), np.uint8)).resize((384, 288), Image.Resampling.BICUBIC)
    image = np.array([226, 178, 206], float) + (np.asarray(tissue, float)[..., None] - 128) * [0.10, 0.18, 0.12]
    labels = np.zeros((288, 384), np.uint8)
    rows, columns = np.mgrid[:288, :384]
    for _ in range(75):
        y, x, length, width = rng.uniform(0, 288), rng.uniform(0, 384), rng.uniform(8, 15), rng.uniform(6, 10)
        angle = rng.uniform(0, np.pi)
        along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (along / length) ** 2 + (across / width) ** 2 < 1
        labels[inside] = 1
        image[inside] = np.array([104, 66, 150]) + rng.normal(0, 12)
    image += rng.normal(0, 8, image.shape) * (1 + labels[..., None])
    return _photograph(image, 0.8), labels, CELL_PALETTE


def _photograph(image: np.ndarray, blur: float) -> np.ndarray:
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)))


SCENES = {
    "street": lambda: street("clear", 11),
    "aerial": aerial,
    "microscopy": cells,
    "handheld": lambda: street("other_town", 5),
}


def sheet(name: str) -> Image.Image:
    """The picture of a preset."""
    image, mask, palette = SCENES[name]()
    colors = np.full((256, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = TrainTransform((192, 192), **AUGMENTATIONS[name], max_class_share=0.9, **plain)
    pairs = [(image, mask)]
    for seed in range(COLUMNS):
        item = transform(Image.fromarray(image), mask, np.random.default_rng((seed, 5)))
        pixels = (item["pixel_values"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        labels = item["labels"].numpy().astype(np.uint8)
        pairs.append((np.where((labels == 255)[..., None], np.uint8(255), pixels), labels))
    width = SIDE * 4 // 3
    page = Image.new("RGB", (width + COLUMNS * (SIDE + GAP), 2 * SIDE + GAP), "white")
    left = 0
    for picture, labels in pairs:
        size = (width if left == 0 else SIDE, SIDE)
        page.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), (left, 0))
        page.paste(Image.fromarray(colors[labels]).resize(size, Image.Resampling.NEAREST), (left, SIDE + GAP))
        left += size[0] + GAP
    return page


def looks() -> Image.Image:
    """The picture of the styles."""
    image, mask, _ = street("clear", 11)
    page = Image.new("RGB", (7 * (SIDE * 4 // 3 + GAP) - GAP, 4 * (SIDE + GAP) - GAP), "white")
    for row, changes in enumerate([{"photometric_distortion": True}, *({"style": name} for name in STYLES)]):
        plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "scale": (1, 1), "flip": 0.0, "jitter": None, "blur": None}
        transform = TrainTransform((288, 384), **plain, **changes, style_probability=1.0, max_class_share=1.0)
        for column in range(7):
            item = transform(Image.fromarray(image), mask, np.random.default_rng((column, 1)))
            pixels = (item["pixel_values"].permute(1, 2, 0).numpy().clip(0, 1) * 255).round().astype(np.uint8)
            picture = Image.fromarray(pixels if column else image)
            place = column * (SIDE * 4 // 3 + GAP), row * (SIDE + GAP)
            page.paste(picture.resize((SIDE * 4 // 3, SIDE), Image.Resampling.LANCZOS), place)
    return page


if __name__ == "__main__":
    looks().save(IMAGES / "styles.jpg", quality=70, optimize=True)
    for preset in AUGMENTATIONS:
        sheet(preset).save(IMAGES / f"augment_{preset}.jpg", quality=70, optimize=True)
