"""Small label exports, drawn: an image of a size, and shapes with corners on whole pixels, whose masks are known."""

import json

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width, height

# What `two_shapes` draw: a house under a tree.
HOUSE = [10, 10, 30, 10, 30, 20, 10, 20]
TREE = [24, 5, 38, 5, 38, 15, 24, 15]


def expected(house=1, tree=2):
    """The mask of a house with a tree in front of it."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:20, 10:30] = house
    mask[5:15, 24:38] = tree
    return mask


def image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pairs(ring):
    return [ring[index : index + 2] for index in range(0, len(ring), 2)]


def relative(ring):
    return [value / SIZE[index % 2] for index, value in enumerate(ring)]


# --- one export of each format: a.png has a house and a tree, b.png nothing


def coco(root, folder="", name="annotations.json", annotations=None, **changes):
    """One COCO file; ids have gaps and no order."""
    for file in ("a.png", "b.png"):
        image(root / folder / file)
    content = {
        "images": [
            {"id": 7, "file_name": "b.png", "width": SIZE[0], "height": SIZE[1]},
            {"id": 3, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1]},
        ],
        "categories": [{"id": 9, "name": "tree"}, {"id": 4, "name": "house"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 4, "segmentation": [HOUSE], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 9, "segmentation": [TREE], "iscrowd": 0},
        ]
        if annotations is None
        else annotations,
    } | changes
    return write(root / folder / name, content)


def yolo(root, splits=("train", "val"), rows=None, names=("house", "tree")):
    lines = [f"0 {' '.join(map(str, relative(HOUSE)))}", f"1 {' '.join(map(str, relative(TREE)))}"]
    for split in splits:
        for file in ("a.png", "b.png"):
            image(root / split / "images" / file)
        write(root / split / "labels" / "a.txt", "\n".join(lines if rows is None else rows) + "\n")
        write(root / split / "labels" / "b.txt", "")
    paths = "".join(f"{split}: ../{split}/images\n" for split in splits)
    return write(root / "data.yaml", f"{paths}nc: {len(names)}\nnames: {list(names)}\n")
