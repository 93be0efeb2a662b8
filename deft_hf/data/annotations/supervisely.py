"""Supervisely: `meta.json`, and folders of a data set each with `img` and `ann` (`img/a.jpg`, `ann/a.jpg.json`).

Polygons with their holes, bitmaps and rectangles are areas, in the order of the file. Whole numbers are centres of
pixels, as Supervisely defines them: a rectangle has its last row and column, and corners of polygons lie half a pixel
further; fractions are places. An image whose file has no objects is background, one without a file is not labelled.
Splits are the data sets.

https://developer.supervisely.com/getting-started/supervisely-annotation-format
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deft_hf.data.annotations.export import Export, Item, Shape, counted, with_background
from deft_hf.data.annotations.reading import Images, box, damaged, read_as, read_json, ring


def recognises(folder: Path) -> bool:
    """Whether a folder is a project of Supervisely."""
    return (folder / "meta.json").is_file() and bool(_sets(folder))


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    meta = folder / "meta.json"
    if not recognises(folder):
        raise damaged(folder, "has no meta.json, or no folder with img and ann")
    content = read_json(meta)
    with read_as(meta, "meta.json of Supervisely"):
        names = [str(each["title"]) for each in content["classes"]]
    images = Images(folder)
    items: list[Item] = []
    left_out: list[str] = []
    splits = {place: place.relative_to(folder).as_posix() for place in _sets(folder)}
    for place, split in splits.items():
        files = {path.name: path for path in images.inside(place / "img")}
        for name in sorted({*files, *_labelled(place, files)}):
            path = next((path for path in _files_of(place, name) if path.is_file()), None)
            item = Item(f"{split}/{Path(name).stem}", files.get(name), str(path or files[name]), (split,))
            if path is not None:
                _fill(item, path, names, left_out)
            items.append(item)
    return Export(
        with_background(names), items, [*splits.values()], counted(left_out, "objects without an area, left out")
    )


def _sets(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("ann") if path.is_dir() and (path.parent / "img").is_dir())


def _files_of(place: Path, name: str) -> list[Path]:
    return [place / "ann" / f"{name}.json", place / "ann" / f"{Path(name).stem}.json"]


def _labelled(place: Path, files: dict[str, Path]) -> list[str]:
    """Names of images that have a file of labels, but are not there."""
    stems = {Path(name).stem for name in files}
    names = [path.name.removesuffix(".json") for path in (place / "ann").glob("*.json")]
    return [name for name in names if name not in files and name not in stems]


def _fill(item: Item, path: Path, names: list[str], left_out: list[str]) -> None:
    content = read_json(path)
    with read_as(path, "annotation of Supervisely"):
        item.size = int(content["size"]["height"]), int(content["size"]["width"])
        item.shapes = []
        for entry in content["objects"]:
            area = _area(entry)
            if entry["classTitle"] not in names:
                raise damaged(path, f"has an object of the class {entry['classTitle']}, which meta.json lacks")
            if area is None:
                left_out.append(f"a {entry.get('geometryType')} in {path.name}")
            else:
                item.shapes.append(Shape(entry["classTitle"], *area))


def _area(entry: dict[str, Any]) -> tuple[str, Any] | None:
    bitmap = entry.get("bitmap")
    if bitmap:
        left, top = bitmap["origin"]
        return "picture", {"png": bitmap["data"], "zlib": True, "left": left, "top": top}
    kind = entry.get("geometryType", "polygon")
    if kind == "rectangle":
        (left, top), (right, bottom) = entry["points"]["exterior"]
        last = 1 if _are_pixels([left, top, right, bottom]) else 0
        return "rings", [box(left, top, right + last, bottom + last)]
    rings = [ring(points) for points in (entry["points"]["exterior"], *entry["points"].get("interior", []))]
    if kind != "polygon" or rings[0] is None:
        return None
    found = [flat for flat in rings if flat is not None]
    half = 0.5 if all(map(_are_pixels, found)) else 0
    return "rings", [[value + half for value in flat] for flat in found]


def _are_pixels(values: list[float]) -> bool:
    return all(float(value).is_integer() for value in values)
