"""CVAT for images 1.1: `annotations.xml`, with the images in `images`.

Shapes lie by `z_order`. Polygons, boxes (turned ones too), ellipses and masks are areas, as in CVAT's mask exports;
polygons and boxes are drawn as there, by pycocotools. An `<image>` without shapes is background. Splits are the
subsets of a project.

https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from deft_hf.data.annotations.export import Export, Item, Shape, counted, with_background
from deft_hf.data.annotations.reading import Images, beginning, box, damaged, needs_pycocotools, read_as, ring

_LOOKED_AT = 4096


def recognises(folder: Path) -> bool:
    """Whether a folder holds a file of CVAT's."""
    return bool(_files(folder))


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    files = _files(folder)
    if not files:
        raise damaged(folder, "has no XML file of CVAT (<annotations>), such as annotations.xml")
    needs_pycocotools(files[0])
    images = Images(folder)
    names: list[str] = []
    items: list[Item] = []
    left_out: list[str] = []
    for path in files:
        try:
            tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            raise damaged(path, f"cannot be read as XML ({error})") from error
        if tree.find("track") is not None:
            raise damaged(path, "is CVAT for video (<track>); choose the format CVAT for images 1.1")
        labels = (label for label in tree.findall("meta//labels/label") if label.find("parent") is None)
        names += [name for label in labels if (name := label.findtext("name"))]
        with read_as(path, "file of CVAT for images 1.1"):
            items += [_item(path, element, images, left_out) for element in tree.findall("image")]
    items += [Item(images.key(path), path, str(path)) for path in images.others(item.image for item in items)]
    drawn = [shape.name for item in items for shape in item.shapes or ()]
    splits = sorted({split for item in items for split in item.splits})
    return Export(
        with_background([*names, *drawn]), items, splits, counted(left_out, "shapes without an area, left out")
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.xml")) if b"<annotations>" in beginning(path, _LOOKED_AT)]


def _item(path: Path, element: ElementTree.Element, images: Images, left_out: list[str]) -> Item:
    name, subset = element.attrib["name"], element.get("subset")
    near = [images.folder / "images" / (subset or ""), images.folder / "images", images.folder]
    shapes = []
    for child in sorted(element, key=lambda each: int(each.get("z_order", 0))):  # a stable order
        shape = _AREAS[child.tag](child) if child.tag in _AREAS else None
        if shape is not None:
            shapes.append(Shape(child.attrib["label"], *shape))
        elif child.tag != "tag":
            left_out.append(f"a {child.tag} of {name} in {path.name}")
    file = images.find(name, near)
    size = int(element.attrib["height"]), int(element.attrib["width"])
    splits = (subset,) if subset else ()
    return Item(images.key(file or name), file, f"{path}: {name}", splits, shapes, size=size)


def _polygon(element: ElementTree.Element) -> tuple[str, list[list[float]]] | None:
    flat = ring([list(map(float, point.split(","))) for point in element.attrib["points"].split(";")])
    return None if flat is None else ("coco", [flat])


def _box(element: ElementTree.Element) -> tuple[str, list[list[float]]]:
    left, top, right, bottom = (float(element.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    return "coco", [turned(box(left, top, right, bottom), (left + right) / 2, (top + bottom) / 2, _degrees(element))]


def _ellipse(element: ElementTree.Element) -> tuple[str, list[float]]:
    return "ellipse", [*(float(element.attrib[key]) for key in ("cx", "cy", "rx", "ry")), _degrees(element)]


def _mask(element: ElementTree.Element) -> tuple[str, dict[str, object]]:
    counts = list(map(int, element.attrib["rle"].split(",")))
    return "runs", {"counts": counts} | {key: int(element.attrib[key]) for key in ("left", "top", "width", "height")}


def _degrees(element: ElementTree.Element) -> float:
    return float(element.get("rotation", 0))


def turned(flat: list[float], x: float, y: float, degrees: float) -> list[float]:
    """A ring turned clockwise, as the image is seen, around a point."""
    if not degrees:
        return flat
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(flat[index] - x, flat[index + 1] - y) for index in range(0, len(flat), 2)]
    return [value for dx, dy in corners for value in (x + dx * cosine - dy * sine, y + dx * sine + dy * cosine)]


_AREAS = {"box": _box, "ellipse": _ellipse, "mask": _mask, "polygon": _polygon}
