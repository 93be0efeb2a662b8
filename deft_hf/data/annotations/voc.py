"""Pascal VOC: `JPEGImages`, coloured masks in `SegmentationClass`, splits in `ImageSets/Segmentation`, `labelmap.txt`.

CVAT's "Segmentation mask 1.1" is the same. `labelmap.txt` has the colour of each class; without it, `class_names.txt`
(labelme's) or the classes of VOC have the colours of VOC. Its colour of borders, (224, 224, 192), is ignored. Grey
masks hold the line of a class. An image without a mask is not labelled.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deft_hf.data.annotations.export import Export, Item, with_background
from deft_hf.data.annotations.reading import Images, damaged, read_text
from deft_hf.data.look import opened
from deft_hf.data.masks import Color
from deft_hf.utils.errors import UserError

_MASKS, _IMAGES, _LISTS = "SegmentationClass", "JPEGImages", "ImageSets/Segmentation"
_BORDER = (224, 224, 192)
_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def recognises(folder: Path) -> bool:
    """Whether a folder, or one in it, holds masks where VOC has them."""
    return _root(folder) is not None


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    root = _root(folder)
    if root is None:
        raise damaged(folder, f"has no folder {_MASKS}, in it or in one of its folders")
    images, masks = Images(folder), Images(root / _MASKS)
    by_key = {masks.key(path): path for path in masks.inside(masks.folder)}
    if not by_key:
        raise damaged(root / _MASKS, "holds no masks")
    lists = {path.stem: _lines(path) for path in sorted((root / _LISTS).glob("*.txt"))}
    splits_of: dict[str, tuple[str, ...]] = {}
    for split, keys in lists.items():
        for key in keys:
            splits_of[key] = (*splits_of.get(key, ()), split)
    place = root / _IMAGES if (root / _IMAGES).is_dir() else root
    pictures = {path.relative_to(place).with_suffix("").as_posix(): path for path in _pictures(images, place)}
    items = [
        Item(key, pictures.get(key), str(by_key.get(key, key)), splits_of.get(key, ()), mask=by_key.get(key))
        for key in sorted({*by_key, *pictures, *splits_of})
    ]
    colors = _colors(root)
    values: dict[Any, str | None] = {_BORDER: None, **colors}
    if _is_grey(next(iter(by_key.values()))):
        values = dict(enumerate(colors.values()))
    return Export(with_background(colors.values()), items, list(lists), values=values)


def _root(folder: Path) -> Path | None:
    found = (path.parent for pattern in ("", "*/", "*/*/") for path in sorted(folder.glob(f"{pattern}{_MASKS}")))
    return next(found, None)


def _pictures(images: Images, place: Path) -> list[Path]:
    """The images that are no masks of classes or objects, nor views of them."""
    inside = {path: path.relative_to(place).parts for path in images.inside(place)}
    return [path for path, parts in inside.items() if not any(part.startswith("Segmentation") for part in parts)]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _is_grey(mask: Path) -> bool:
    try:
        with opened(str(mask)) as picture:
            return picture.mode not in ("P", "RGB", "RGBA")
    except (OSError, ValueError) as error:
        raise UserError(f"{mask}: cannot be read ({error}); replace the file or leave the pair out") from error


def _colors(root: Path) -> dict[Color, str]:
    if (root / "labelmap.txt").is_file():
        return _labelmap(root / "labelmap.txt")
    names = _CLASSES
    if (root / "class_names.txt").is_file():
        names = _lines(root / "class_names.txt")
    return {_color(index): name for index, name in enumerate(names)}


def _labelmap(path: Path) -> dict[Color, str]:
    colors: dict[Color, str] = {}
    for line in (line for line in _lines(path) if not line.startswith("#")):
        name, _, rest = line.partition(":")
        channels = rest.partition(":")[0].split(",")
        if len(channels) != 3 or not all(each.strip().isdigit() and int(each) < 256 for each in channels):
            raise damaged(path, f"has the line {line!r}, expected NAME:RED,GREEN,BLUE::")
        red, green, blue = map(int, channels)
        if (other := colors.setdefault((red, green, blue), name)) != name:
            raise damaged(path, f"gives {other} and {name} one colour, {(red, green, blue)}")
    if not colors:
        raise damaged(path, "names no class")
    return colors


def _color(index: int) -> Color:
    """VOC's colour of a class: its bits, from the lowest, are the bits of red, green and blue, from the highest."""
    red, green, blue = (
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)
    )
    return red, green, blue
