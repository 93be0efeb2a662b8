"""IDD, the India Driving Dataset (Varma et al., WACV 2019): polygons, drawn as its own script draws them.

Ids, and the classes of level 3: https://github.com/AutoNUE/public-code (helpers/anue_labels.py); how polygons become
pixels: preperation/json2labelImg.py there. Polygons lie in the order of the file on `unlabeled`; Pillow fills them
with their outline. Deleted ones are left out, and `cargroup` is `car`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from deft_hf.data.annotations.reading import read_as
from deft_hf.data.official import Layout, Place
from deft_hf.data.spaces import CITYSCAPES, STREET7, classes, street, table
from deft_hf.utils.errors import UnreadableFile

# By id: name, train id of Cityscapes, class of level 3, class of level 1; -1 for none.
_ROWS = (
    ("road", 0, 0, 0),
    ("parking", -1, 1, 0),
    ("drivable fallback", -1, 1, 0),
    ("sidewalk", 1, 2, 1),
    ("rail track", -1, 3, 1),
    ("non-drivable fallback", 9, 3, 1),
    ("person", 11, 4, 2),
    ("animal", -1, 4, 2),
    ("rider", 12, 5, 2),
    ("motorcycle", 17, 6, 3),
    ("bicycle", 18, 7, 3),
    ("autorickshaw", -1, 8, 3),
    ("car", 13, 9, 3),
    ("truck", 14, 10, 3),
    ("bus", 15, 11, 3),
    ("caravan", -1, 12, 3),
    ("trailer", -1, 12, 3),
    ("train", 16, 12, 3),
    ("vehicle fallback", -1, 12, 3),
    ("curb", -1, 13, 4),
    ("wall", 3, 14, 4),
    ("fence", 4, 15, 4),
    ("guard rail", -1, 16, 4),
    ("billboard", -1, 17, 4),
    ("traffic sign", 7, 18, 4),
    ("traffic light", 6, 19, 4),
    ("pole", 5, 20, 4),
    ("polegroup", -1, 20, 4),
    ("obs-str-bar-fallback", -1, 21, 4),
    ("building", 2, 22, 5),
    ("bridge", -1, 23, 5),
    ("tunnel", -1, 23, 5),
    ("vegetation", 8, 24, 5),
    ("sky", 10, 25, 6),
    ("fallback background", -1, 25, 6),
    ("unlabeled", -1, -1, -1),
    ("ego vehicle", -1, -1, -1),
    ("rectification border", -1, -1, -1),
    ("out of roi", -1, -1, -1),
    ("license plate", -1, -1, -1),
)
_IDD26 = classes(
    ("road", (128, 64, 128)),
    ("drivable fallback", (81, 0, 81)),
    ("sidewalk", (244, 35, 232)),
    ("non-drivable fallback", (152, 251, 152)),
    ("person or animal", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
    ("autorickshaw", (255, 204, 54)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("vehicle fallback", (136, 143, 153)),
    ("curb", (220, 190, 40)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("guard rail", (180, 165, 180)),
    ("billboard", (174, 64, 67)),
    ("traffic sign", (220, 220, 0)),
    ("traffic light", (250, 170, 30)),
    ("pole", (153, 153, 153)),
    ("obs-str-bar-fallback", (169, 187, 214)),
    ("building", (70, 70, 70)),
    ("bridge or tunnel", (150, 100, 100)),
    ("vegetation", (107, 142, 35)),
    ("sky or fallback background", (70, 130, 180)),
)
_IDS = {name: raw for raw, (name, *_) in enumerate(_ROWS)}


def _named(space: tuple[str, ...], place: int) -> dict[int, str | None]:
    found = [row[place] for row in _ROWS]
    return {raw: space[int(train)] if int(train) >= 0 else None for raw, train in enumerate(found)}


_SEVEN = {raw: name for raw, name in _named(STREET7.names, 3).items() if name is not None}
LABELS = {
    "idd": street(_named(CITYSCAPES.names, 1), _SEVEN) | {"idd26": table(_IDD26, _named(_IDD26.names, 2))},
    "idd26": {"idd26": _IDD26},
}


def read_mask(row: dict[str, Any], name: str) -> tuple[Image.Image, str]:
    """Draws the polygons of a file as ids; see `deft_hf.data.opening.MaskReader`."""
    stored = row["mask"]
    path = Path(stored["path"])
    try:
        content = path.read_bytes() if stored["bytes"] is None else stored["bytes"]
        annotation = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableFile(f"{path}: cannot be read ({error}); replace the file or leave the pair out") from error
    with read_as(path, "file of polygons"):
        mask = Image.new("L", (int(annotation["imgWidth"]), int(annotation["imgHeight"])), _IDS["unlabeled"])
        canvas = ImageDraw.Draw(mask)
        for shape in annotation["objects"]:
            label = shape["label"]
            if not shape.get("deleted"):
                known = label in _IDS or not label.endswith("group")
                points = [(point[0], point[1]) for point in shape["polygon"]]
                canvas.polygon(points, fill=_IDS[label if known else label.removesuffix("group")])
    return mask, str(path)


def _place(root: str) -> Place:
    return Place(f"{root}leftImg8bit/{{split}}", f"{root}gtFine/{{split}}", "_leftImg8bit", "_gtFine_polygons.json")


LAYOUTS = {
    "idd": Layout(
        (_place(""), _place("IDD_Segmentation/"), _place("idd20kII/")),
        "idd",
        "IDD",
        "research, after registration",
        "https://idd.insaan.iiit.ac.in/",
        True,
        read_mask=read_mask,
    )
}
