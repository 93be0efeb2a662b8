"""COCO: a JSON file a split with `images`, `annotations` and `categories`.

A split is called as the folder that its file lies in, or as the file: `instances_train2017.json` is `train2017`. Every
image that a file lists is labelled; without annotations it is background. Annotations lie as the file has them, later
ones on top, and regions of `iscrowd` are areas like others.

https://cocodataset.org/#format-data
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deft_hf.data.annotations.export import Export, Item, Shape, counted, with_background
from deft_hf.data.annotations.reading import Images, beginning, damaged, needs_pycocotools, read_as, read_json, ring

_LOOKED_AT = 2**16
_START = re.compile(rb'\s*(\xef\xbb\xbf)?\{.*?"(images|annotations|categories)"\s*:\s*\[', re.DOTALL)
_ROBOFLOW = "_annotations.coco.json"
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_")


def recognises(folder: Path) -> bool:
    """Whether a folder holds COCO files that are not called as Roboflow's."""
    return any(path.name != _ROBOFLOW for path in files(folder))


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    found = files(folder)
    if not found:
        raise damaged(
            folder, "has no COCO file (JSON with images, annotations, categories), in it or one folder below"
        )
    needs_pycocotools(found[0])
    images = Images(folder)
    splits = [_split(path, folder, len(found)) for path in found]
    sets = [_File(path, split, images) for path, split in zip(found, splits, strict=True)]
    items = [item for each in sets for item in each.items]
    left_out = [line for each in sets for line in each.left_out]
    if left_out and not any(item.shapes for item in items):
        raise damaged(found[0], "holds boxes or points without segmentation, which are no masks")
    items += [Item(images.key(path), path, str(path)) for path in images.others(item.image for item in items)]
    return Export(
        with_background(name for each in sets for name in each.names),
        items,
        [split for split in dict.fromkeys(splits) if split is not None],
        counted(left_out, "annotations without an area or an image, left out"),
    )


def files(folder: Path) -> list[Path]:
    """The COCO files in a folder and one below, in order."""
    found = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    return [path for path in found if not path.name.startswith(_OTHER_TASKS) and _begins(path)]


def _begins(path: Path) -> bool:
    start = beginning(path, _LOOKED_AT)
    whole = len(start) < _LOOKED_AT  # a list of categories alone is what Label Studio puts beside other exports
    return bool(_START.match(start)) and (b'"images"' in start or not whole)


def _split(path: Path, folder: Path, count: int) -> str | None:
    if path.parent not in (folder, folder / "annotations"):
        return path.parent.name
    return path.stem.removeprefix("instances_") if count > 1 else None


class _File:
    """What one file holds.

    Args:
        path (`Path`):
            The file.
        split (`str` or `None`):
            The split that it is.
        images (`Images`):
            The images of the export.
    """

    def __init__(self, path: Path, split: str | None, images: Images) -> None:
        self.path = path
        self.left_out: list[str] = []
        content = read_json(path)
        with read_as(path, "COCO file"):
            self.names = list(_used_names(content))
            categories = {category["id"]: str(category["name"]) for category in content["categories"]}
            shapes: dict[Any, list[Shape]] = defaultdict(list)
            known = {image["id"] for image in content["images"]}
            for annotation in content["annotations"]:
                self._add(annotation, categories, known, shapes)
            folder = images.folder
            near = [path.parent, *(folder / place for place in (split or "", f"images/{split}", "images"))]
            self.items = [self._item(image, shapes[image["id"]], split, images, near) for image in content["images"]]

    def _add(self, annotation: Any, categories: dict[Any, str], known: set[Any], shapes: dict[Any, Any]) -> None:
        name = f"annotation {annotation.get('id')} of {self.path.name}"
        if annotation["category_id"] not in categories:
            raise damaged(self.path, f"{name} has category_id {annotation['category_id']}, which categories lacks")
        area = _area(annotation.get("segmentation"))
        if area is None or annotation["image_id"] not in known:
            self.left_out.append(name)
        else:
            shapes[annotation["image_id"]].append(Shape(categories[annotation["category_id"]], "coco", area))

    def _item(self, image: Any, shapes: list[Shape], split: str | None, images: Images, near: list[Path]) -> Item:
        file = images.find(image["file_name"], near)
        source = f"{self.path}: {image['file_name']}"
        return Item(
            images.key(file or image["file_name"]), file, source, (split,) if split else (), shapes, size=_size(image)
        )


def _size(image: Any) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else None


def _area(segmentation: Any) -> list[list[float]] | dict[str, Any] | None:
    """A segmentation that covers something, as pycocotools takes it."""
    if isinstance(segmentation, dict):
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    if not isinstance(segmentation, list):
        return None
    polygons = segmentation if all(isinstance(polygon, list) for polygon in segmentation) else [segmentation]
    return [flat for flat in map(ring, polygons) if flat is not None] or None


def _used_names(content: Any) -> Iterator[str]:
    """The classes by id, without the one of id 0 that Roboflow puts above the others and never uses."""
    used = {annotation["category_id"] for annotation in content["annotations"]}
    above = {category.get("supercategory") for category in content["categories"]}
    for category in sorted(content["categories"], key=lambda each: each["id"]):
        is_top = category.get("supercategory") == "none" and category["name"] in above
        if category["id"] in used or not is_top:
            yield str(category["name"])
