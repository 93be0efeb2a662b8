"""Label Studio: its JSON export, a list of tasks, with the images anywhere in the folder.

Polygons, rectangles, ellipses (in per cent of the image) and brushes are areas, in the order of the results. Of
several annotations of a task the one marked as ground truth counts, else the last; skipped ones never do. A task whose
annotation is empty is background, one without annotations is not labelled. The image is found by the end of its path
(`/data/local-files/?d=...`, a URL, `/data/upload/1/1a2b3c4d-name.jpg`), with the upload's prefix or without.

https://labelstud.io/guide/task_format
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from deft_hf.data.annotations.cvat import turned
from deft_hf.data.annotations.export import Export, Item, Shape, counted, with_background
from deft_hf.data.annotations.reading import Images, beginning, box, damaged, read_as, read_json, ring
from deft_hf.data.files import IMAGE_SUFFIXES

_START = re.compile(rb'\s*(\xef\xbb\xbf)?\[\s*\{.*?"(annotations|completions|annotation_id)"\s*:', re.DOTALL)
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def recognises(folder: Path) -> bool:
    """Whether a folder holds an export of Label Studio."""
    return bool(_files(folder))


def read(folder: Path) -> Export:
    """Reads an export; see `deft_hf.data.annotations.read`."""
    files = _files(folder)
    if not files:
        raise damaged(folder, "has no JSON file of Label Studio (a list of tasks with annotations)")
    images = Images(folder)
    items: list[Item] = []
    left_out: list[str] = []
    several: list[str] = []
    for path in files:
        content = read_json(path)
        with read_as(path, "export of Label Studio"):
            if any("annotation_id" in task for task in content):
                raise damaged(path, "is Label Studio's JSON-MIN; choose the format JSON")
            items += [_item(path, task, images, left_out, several) for task in content]
    items += [Item(images.key(path), path, str(path)) for path in images.others(item.image for item in items)]
    problems = counted(left_out, "results without a label or an area, left out")
    problems += counted(several, "tasks with several annotations, of which the ground truth or the last counts")
    drawn = sorted({shape.name for item in items for shape in item.shapes or ()})
    return Export(with_background(drawn), items, problems=problems)


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.json"))
    return [path for path in found if _START.match(beginning(path))]


def _item(path: Path, task: dict[str, Any], images: Images, left_out: list[str], several: list[str]) -> Item:
    source = f"{path}: task {task.get('id')}"
    values = [*task["data"].values(), task.get("file_upload")]
    name = next((name for value in values if (name := _file_name(value))), None)
    if name is None:
        raise damaged(path, f"task {task.get('id')} has no image in its data: {str(task['data'])[:80]}")
    file = images.find(name, [images.folder])
    if file is None:
        folder, _, last = name.rpartition("/")
        file = images.find(f"{folder}/{_UPLOAD_PREFIX.sub('', last)}".lstrip("/"), [images.folder])
    annotations = [each for each in task.get("annotations", task.get("completions", [])) if not _is_skipped(each)]
    item = Item(images.key(file or name), file, source)
    if not annotations:
        return item
    several += [source] if len(annotations) > 1 else []
    chosen = next((each for each in annotations if each.get("ground_truth")), annotations[-1])
    item.shapes = []
    drawn: set[str] = set()
    labels = {each.get("id"): label for each in chosen["result"] if (label := _label(each))}
    for result in chosen["result"]:
        if "original_width" in result:
            item.size = int(result["original_height"]), int(result["original_width"])
        if result.get("image_rotation"):
            raise damaged(path, f"task {task.get('id')} was labelled on an image that was turned in Label Studio")
        if result.get("id") in drawn:  # again, with a choice or a text for the region
            continue
        area = _area(result)
        label = _label(result) or labels.get(result.get("id"))
        if area is not None and label is not None:
            item.shapes.append(Shape(label, *area))
            drawn |= {result["id"]} if "id" in result else set()
        elif area is not None or label is not None and "x" in result["value"]:
            left_out.append(f"a {result.get('type')} of task {task.get('id')}")
    return item


def _is_skipped(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))


def _label(result: dict[str, Any]) -> str | None:
    """The class of a result: `polygonlabels` and the like, or `labels` of a region that another result draws."""
    value = result.get("value") or {}
    found = (value[key][0] for key in value if key.endswith("labels") and value[key])
    return next((str(label) for label in found), None)


def _area(result: dict[str, Any]) -> tuple[str, Any] | None:
    value = result.get("value") or {}
    if "rle" in value:
        return "brush", base64.b64encode(bytes(value["rle"])).decode()
    width, height = result.get("original_width", 0) / 100, result.get("original_height", 0) / 100
    if "points" in value:
        flat = ring([(x * width, y * height) for x, y in value["points"]])
        return None if flat is None else ("rings", [flat])
    if "radiusX" in value:
        radii = value["radiusX"] * width, value["radiusY"] * height
        return "ellipse", [value["x"] * width, value["y"] * height, *radii, value.get("rotation", 0)]
    if "width" in value and "height" in value:
        left, top = value["x"] * width, value["y"] * height
        corners = box(left, top, left + value["width"] * width, top + value["height"] * height)
        return "rings", [turned(corners, left, top, value.get("rotation", 0))]
    return None


def _file_name(value: Any) -> str | None:
    """The path of an image in the data of a task, if the value is one."""
    if not isinstance(value, str):
        return None
    url = urlsplit(value)
    query = parse_qs(url.query)
    path = query["d"][0] if "d" in query else unquote(url.path)
    if "fileuri" in query:  # of cloud storage, in base64
        path = urlsplit(base64.b64decode(query["fileuri"][0] + "==").decode(errors="replace")).path
    return path.replace("\\", "/").lstrip("/") if path.lower().endswith(IMAGE_SUFFIXES) else None
