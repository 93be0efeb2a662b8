"""YOLO segmentation: a text file beside each image with a row for each polygon, and `data.yaml` with names and splits.

`CLASS X1 Y1 X2 Y2 X3 Y3 ...`, coordinates as shares of width and height. The labels of `train/images/a.jpg` are
`train/labels/a.txt`: the last folder called `images` becomes `labels`. An image whose file is empty or missing is
background, as it is to Ultralytics. Later rows lie on top. Splits are the keys `train`, `val` and `test` of the YAML
file; without one, `classes.txt` or `obj.names` has the classes.

https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from deft_hf.data.annotations.export import Export, Item, Shape, counted, with_background
from deft_hf.data.annotations.reading import Images, damaged, read_text, ring

_SPLITS = ("train", "val", "test")
_NAME_LISTS = ("classes.txt", "obj.names")
# A little beyond the edge is rounding; Ultralytics leaves out images whose labels are further out.
_ROUNDING = 0.01


def recognises(folder: Path) -> bool:
    """Whether a folder holds a YOLO data set: its YAML file, or a list of names and a folder `labels`."""
    listed = any((folder / name).is_file() for name in _NAME_LISTS)
    return _yaml(folder) is not None or (listed and any(folder.rglob("labels")))


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    images = Images(folder)
    found = _yaml(folder)
    splits: dict[str | None, list[Path]] = {}
    problems: list[str] = []
    if found is None:
        names, splits = _listed_names(folder), {None: images.inside(folder)}
    else:
        path, content = found
        names = _names(path, content)
        for key in (key for key in _SPLITS if content.get(key)):
            files = _images_of(content[key], path, content.get("path"), images)
            splits |= {key: files} if files else {}
            problems += [] if files else [f"{path}: split {key}: found no images at {content[key]}"]
    items: list[Item] = []
    missing = []
    for split, files in splits.items():
        for image in files:
            labels = _labels_of(image, folder)
            missing += [] if labels.is_file() else [str(labels)]
            items.append(
                Item(images.key(image), image, str(labels), (split,) if split else (), list(_shapes(labels, names)))
            )
    items += [Item(images.key(path), path, str(path)) for path in images.others(item.image for item in items)]
    problems += counted(missing, "images without a file of labels, which are background")
    return Export(with_background(names.values()), items, [split for split in splits if split is not None], problems)


def _yaml(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            content = yaml.safe_load(read_text(path))
        except (yaml.YAMLError, RecursionError) as error:
            if path.stem == "data":
                raise damaged(path, f"is no valid YAML ({error})") from error
            continue
        if isinstance(content, dict) and "names" in content and any(content.get(split) for split in _SPLITS):
            return path, content
    return None


def _names(path: Path, content: dict[str, Any]) -> dict[int, str]:
    if "kpt_shape" in content:
        raise damaged(path, "describes key points (kpt_shape), which are no masks")
    names = content["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    found = {int(index): str(name) for index, name in pairs if str(index).isdigit()}
    if not found or len(found) < len(names):
        raise damaged(path, f"names: found {names!r}, expected a list or a mapping of ids to names")
    return found


def _listed_names(folder: Path) -> dict[int, str]:
    path = next((folder / name for name in _NAME_LISTS if (folder / name).is_file()), None)
    if path is None:
        raise damaged(folder, "has no YAML file with names and train, nor classes.txt")
    return dict(enumerate(line.strip() for line in read_text(path).splitlines() if line.strip()))


def _images_of(value: Any, path: Path, root: Any, images: Images) -> list[Path]:
    """The images of a split: those of a folder, of a list of files, or of several of them."""
    if isinstance(value, list):
        return [image for each in value for image in _images_of(each, path, root, images)]
    name = str(value)
    # Roboflow writes `../train/images` for a folder beside the YAML file.
    starts = [path.parent / str(root or ""), path.parent]
    places = [start / text for text in (name, name.removeprefix("../")) for start in starts]
    place = next((place.resolve() for place in places if place.exists()), None)
    if place is None:  # written where the data lay elsewhere
        place = _ending(name, images)
    if place is None:
        return []
    if place.is_dir():
        return [image for image in images.inside(images.folder) if image.resolve().is_relative_to(place)]
    lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    found = ((line, images.find(line.removeprefix("./"), [place.parent, *starts])) for line in lines)
    return [image for _, image in found if image is not None]


def _ending(name: str, images: Images) -> Path | None:
    """The only folder of images below the export whose path ends as a path of another machine does."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", "/")]
    below = {parent for image in images.inside(images.folder) for parent in image.relative_to(images.folder).parents}
    for start in range(max(1, len(parts) - 1)):  # `images` alone would be that of any split
        found = [folder for folder in below if folder.parts[-(len(parts) - start) :] == tuple(parts[start:])]
        if found:
            return (images.folder / found[0]).resolve() if len(found) == 1 else None
    return None


def _labels_of(image: Path, folder: Path) -> Path:
    folders = list(image.relative_to(folder).parts[:-1])
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return folder.joinpath(*folders, image.name).with_suffix(".txt")


def _shapes(path: Path, names: dict[int, str]) -> Iterator[Shape]:
    if not path.is_file():
        return
    for number, line in enumerate(read_text(path).splitlines(), 1):
        values = line.split()
        if not values:
            continue
        if len(values) == 5:
            raise damaged(path, f"row {number} is a box (5 numbers), and boxes are no masks: expected polygons")
        index, flat = values[0], ring(values[1:])
        if flat is None or not index.removesuffix(".0").isdigit():
            raise damaged(path, f"row {number} is {line[:60]!r}, expected a class and the x and y of 3 points or more")
        if min(flat) < -_ROUNDING or max(flat) > 1 + _ROUNDING:
            raise damaged(path, f"row {number} has {max(flat, key=abs)}, expected coordinates as shares from 0 to 1")
        if int(float(index)) not in names:
            raise damaged(path, f"row {number} has the class {index}, of which the names are {names}")
        yield Shape(names[int(float(index))], "relative rings", [flat])
