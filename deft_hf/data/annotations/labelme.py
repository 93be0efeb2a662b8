"""labelme: a JSON file for each image, beside it or elsewhere.

Shapes lie in the order of the file. Polygons, rectangles, circles and masks are areas; labelme's own exporter draws
lines too, ten pixels wide, and every outline half a pixel too wide, see `deft_hf.data.annotations.shapes`. An image
without a JSON file is not labelled; one whose file has no shapes is background. The class `__ignore__` is ignored.
`labels.txt`, if there is one, has the order of classes.

https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deft_hf.data.annotations.export import IGNORED, Export, Item, Shape, counted, with_background
from deft_hf.data.annotations.reading import Images, beginning, box, damaged, read_as, read_json, read_text, ring

_FILES_LOOKED_AT = 20


def recognises(folder: Path) -> bool:
    """Whether a folder holds labelme's files."""
    return any(_looks_right(path) for path in _files(folder)[:_FILES_LOOKED_AT])


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    images = Images(folder)
    items: list[Item] = []
    left_out: list[str] = []
    others: list[str] = []
    for path in _files(folder):
        content = read_json(path)
        if not isinstance(content, dict) or "shapes" not in content:
            others.append(str(path))
            continue
        with read_as(path, "file of labelme"):
            items.append(_item(path, content, images, left_out))
    if not items:
        raise damaged(folder, "has no JSON file of labelme (with shapes and imagePath)")
    items += [Item(images.key(path), path, str(path)) for path in images.others(item.image for item in items)]
    problems = counted(left_out, "shapes without an area, left out") + counted(others, "JSON files of another kind")
    drawn = {shape.name for item in items for shape in item.shapes or ()}
    listed = [name for name in _listed(folder) if name != IGNORED]
    return Export(with_background([*listed, *sorted(drawn)]), items, problems=problems)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))


def _looks_right(path: Path) -> bool:
    start = beginning(path)
    return start.lstrip().startswith(b"{") and b'"shapes"' in start


def _listed(folder: Path) -> list[str]:
    path = folder / "labels.txt"
    return [line.strip() for line in read_text(path).splitlines() if line.strip()] if path.is_file() else []


def _item(path: Path, content: dict[str, Any], images: Images, left_out: list[str]) -> Item:
    file = images.find(str(content.get("imagePath") or path.stem), [path.parent])
    if file is None:  # renamed with its JSON file
        beside = [image for image in images.inside(path.parent) if image.with_suffix(".json") == path]
        file = beside[0] if beside else None
    shapes = []
    for shape in content["shapes"]:
        kind = shape.get("shape_type") or "polygon"
        area = _AREAS[kind](shape) if kind in _AREAS else None
        if area is None:
            left_out.append(f"a {kind} in {path.name}")
        else:
            shapes.append(Shape(str(shape["label"]), *area))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    return Item(images.key(file or path), file, str(path), shapes=shapes, size=size)


def _polygon(shape: dict[str, Any]) -> tuple[str, Any] | None:
    flat = ring(shape["points"])
    return None if flat is None else ("rings", [flat])


def _rectangle(shape: dict[str, Any]) -> tuple[str, Any] | None:
    if len(shape["points"]) != 2:  # four corners in later versions
        return _polygon(shape)
    (x0, y0), (x1, y1) = shape["points"]
    return "rings", [box(x0, y0, x1, y1)]


def _circle(shape: dict[str, Any]) -> tuple[str, Any]:
    (x, y), edge = shape["points"]
    radius = math.dist((x, y), edge)
    return "ellipse", [x, y, radius, radius, 0]


def _mask(shape: dict[str, Any]) -> tuple[str, Any]:
    left, top = map(int, shape["points"][0])
    return "picture", {"png": shape["mask"], "zlib": False, "left": left, "top": top}


_AREAS: dict[str, Callable[[dict[str, Any]], tuple[str, Any] | None]] = {
    "circle": _circle,
    "mask": _mask,
    "oriented_rectangle": _polygon,
    "polygon": _polygon,
    "rectangle": _rectangle,
}
