"""Roboflow: folders `train`, `valid` and `test`, each with `_annotations.coco.json`, or with masks beside the images.

The former is COCO. Of the latter ("Semantic Segmentation Masks") the mask of `a.jpg` is `a_mask.png`, and
`_classes.csv` has the class of each value. Roboflow's YOLO export is `yolo`.

https://docs.roboflow.com/datasets/dataset-versions/exporting-data
"""

from __future__ import annotations

from pathlib import Path

from deft_hf.data.annotations import coco
from deft_hf.data.annotations.export import Export, Item, with_background
from deft_hf.data.annotations.reading import Images, damaged, read_text

_COCO, _CLASSES, _MASK = "_annotations.coco.json", "_classes.csv", "_mask"


def recognises(folder: Path) -> bool:
    """Whether a folder holds files of Roboflow's names."""
    return bool(_named(folder, _COCO)) or any(_is_of_masks(path) for path in _named(folder, _CLASSES))


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    if _named(folder, _COCO):
        return coco.read(folder)
    lists = [path for path in _named(folder, _CLASSES) if _is_of_masks(path)]
    if not lists:
        raise damaged(folder, f"has neither {_COCO} nor a {_CLASSES} of masks, in it or in train, valid and test")
    values = _values(lists[0])
    items: list[Item] = []
    splits: list[str] = []
    for path in lists:
        if (other := _values(path)) != values:
            raise damaged(path, f"has the classes {other}, but {lists[0]} has {values}")
        split = () if path.parent == folder else (path.parent.name,)
        splits += split
        items += _items(path.parent, Images(folder), split)
    return Export(with_background(values.values()), items, splits, values=dict(values))


def _named(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()]


def _is_of_masks(path: Path) -> bool:
    """Other exports have a file of this name too, without values of pixels."""
    return read_text(path).lower().startswith("pixel value")


def _values(path: Path) -> dict[int, str]:
    values = {}
    for line in read_text(path).splitlines()[1:]:
        value, _, name = line.partition(",")
        if line.strip() and not (value.strip().isdigit() and name.strip()):
            raise damaged(path, f"has the line {line!r}, expected a value and a class")
        if line.strip():
            values[int(value)] = name.strip()
    return values


def _items(place: Path, images: Images, splits: tuple[str, ...]) -> list[Item]:
    found = {path: path.stem for path in images.inside(place)}
    masks = {stem.removesuffix(_MASK): path for path, stem in found.items() if stem.endswith(_MASK)}
    pictures = {stem: path for path, stem in found.items() if not stem.endswith(_MASK)}
    items = [Item(images.key(path), path, str(path), splits, mask=masks.get(stem)) for stem, path in pictures.items()]
    alone = {path.with_name(f"{stem}.png"): path for stem, path in masks.items() if stem not in pictures}
    return items + [Item(images.key(name), None, str(path), splits, mask=path) for name, path in alone.items()]
