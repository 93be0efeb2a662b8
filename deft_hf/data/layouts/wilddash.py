"""WildDash 2 (Zendel et al., CVPR 2022): panoptic pictures, whose segments have a category in `panoptic.json`.

Ids and how they map to Cityscapes: the "unified label policy" of the authors
(https://github.com/ozendelait/wilddash_scripts, wd2_unified_label_policy.json). The earlier package with grey `labels`
is read too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deft_hf.data.annotations.reading import read_as, read_json
from deft_hf.data.masks import as_stored
from deft_hf.data.official import Layout, Place
from deft_hf.data.opening import decode, open_mask
from deft_hf.data.spaces import classes, street, table
from deft_hf.utils.errors import UserError

# By id: name, class of Cityscapes, class of WildDash's evaluation.
_ROWS = (
    ("unlabeled", None, None),
    ("egovehicle", None, "egovehicle"),
    ("overlay", None, None),
    ("outofroi", None, None),
    ("static", None, None),
    ("dynamic", None, None),
    ("ground", None, None),
    ("road", "road", "road"),
    ("sidewalk", "sidewalk", "sidewalk"),
    ("parking", None, None),
    ("railtrack", None, None),
    ("building", "building", "building"),
    ("wall", "wall", "wall"),
    ("fence", "fence", "fence"),
    ("guardrail", None, "guardrail"),
    ("bridge", None, None),
    ("tunnel", None, None),
    ("pole", "pole", "pole"),
    ("polegroup", None, "pole"),
    ("trafficlight", "traffic light", "trafficlight"),
    ("trafficsign", "traffic sign", "trafficsign"),
    ("vegetation", "vegetation", "vegetation"),
    ("terrain", "terrain", "terrain"),
    ("sky", "sky", "sky"),
    ("person", "person", "person"),
    ("rider", "rider", "rider"),
    ("car", "car", "car"),
    ("truck", "truck", "truck"),
    ("bus", "bus", "bus"),
    ("caravan", None, None),
    ("trailer", None, None),
    ("onrails", "train", "onrails"),
    ("motorcycle", "motorcycle", "motorcycle"),
    ("bicycle", "bicycle", "bicycle"),
    ("pickup", "truck", "pickup"),
    ("van", "car", "van"),
    ("billboard", None, "billboard"),
    ("streetlight", None, "streetlight"),
    ("roadmarking", "road", "roadmarking"),
    ("junctionbox", None, None),
    ("mailbox", None, None),
    ("manhole", "road", "road"),
    ("phonebooth", None, None),
    ("pothole", "road", "road"),
    ("bikerack", None, None),
    ("trafficsignframe", "pole", "pole"),
    ("utilitypole", "pole", "pole"),
    ("motorcyclist", "rider", "rider"),
    ("bicyclist", "rider", "rider"),
    ("otherrider", "rider", "rider"),
    ("bird", None, None),
    ("groundanimal", None, None),
    ("curb", "sidewalk", "sidewalk"),
    ("trafficsignany", None, None),
    ("trafficsignback", None, None),
    ("trashcan", None, None),
    ("otherbarrier", "wall", "wall"),
    ("othervehicle", None, None),
    ("autorickshaw", "motorcycle", "motorcycle"),
    ("bench", None, None),
    ("mountain", None, None),
    ("tramtrack", "road", "road"),
    ("wheeledslow", None, None),
    ("boat", None, None),
    ("bikelane", "road", "road"),
    ("bikelanesidewalk", "sidewalk", "sidewalk"),
    ("banner", None, None),
    ("dashcammount", None, "egovehicle"),
    ("water", None, None),
    ("sand", None, None),
    ("pedestrianarea", "road", "road"),
    ("firehydrant", None, None),
    ("cctvcamera", None, None),
    ("snow", None, None),
    ("catchbasin", "road", "road"),
    ("crosswalkplain", "road", "road"),
    ("crosswalkzebra", "road", "road"),
    ("manholesidewalk", "sidewalk", "sidewalk"),
    ("curbterrain", "terrain", "sidewalk"),
    ("servicelane", "road", "road"),
    ("curbcut", "sidewalk", "sidewalk"),
)
_MORE_OF_SEVEN = {
    "parking": "drivable",
    "railtrack": "non-drivable",
    "guardrail": "roadside objects",
    "bridge": "far objects",
    "tunnel": "far objects",
    "polegroup": "roadside objects",
    "caravan": "vehicles",
    "trailer": "vehicles",
    "billboard": "roadside objects",
    "streetlight": "roadside objects",
    "bird": "living things",
    "groundanimal": "living things",
    "othervehicle": "vehicles",
    "wheeledslow": "vehicles",
}
_IDS = {name: raw for raw, (name, *_) in enumerate(_ROWS)}
_WILDDASH26 = classes(
    ("egovehicle", (0, 20, 50)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("guardrail", (180, 165, 180)),
    ("pole", (152, 152, 152)),
    ("trafficlight", (250, 170, 30)),
    ("trafficsign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("onrails", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
    ("pickup", (40, 0, 100)),
    ("van", (0, 40, 120)),
    ("billboard", (174, 64, 67)),
    ("streetlight", (210, 170, 100)),
    ("roadmarking", (196, 176, 128)),
)
LABELS = {
    "wilddash2": street(
        {raw: name for raw, (_, name, _) in enumerate(_ROWS)},
        {_IDS[name]: group for name, group in _MORE_OF_SEVEN.items()},
    )
    | {"wilddash26": table(_WILDDASH26, {raw: name for raw, (*_, name) in enumerate(_ROWS)})},
    "wilddash26": {"wilddash26": _WILDDASH26},
}


def _segments(root: Path, ids: Sequence[str]) -> dict[str, list[str]]:
    """The category of each segment of the images, from `panoptic.json`; nothing for the package with grey labels."""
    path = root / "panoptic.json"
    if not (root / "panoptic").is_dir():
        return {}
    content = read_json(path)
    with read_as(path, "file of WildDash 2's panoptic labels"):
        found = {
            Path(each["file_name"]).stem: {int(part["id"]): int(part["category_id"]) for part in each["segments_info"]}
            for each in content["annotations"]
        }
    if missing := [key for key in ids if key not in found]:
        raise UserError(f"{path}: says nothing of {missing[0]}.png; unpack the download again, as it is")
    return {"segments": [json.dumps(found[key]) for key in ids]}


def read_mask(row: dict[str, Any], name: str) -> tuple[Image.Image, str]:
    """Reads the category of each segment as an id; see `deft_hf.data.opening.MaskReader`."""
    if "segments" not in row:
        return open_mask(row["mask"], name)
    categories = {int(segment): category for segment, category in json.loads(row["segments"]).items()}
    return decode(row["mask"], name, lambda picture, known: _categories(as_stored(picture, known), known, categories))


def _categories(picture: Image.Image, name: str, categories: dict[int, int]) -> Image.Image:
    if picture.mode != "RGB":
        raise UserError(f"{name}: has the mode {picture.mode}, expected segments in RGB; unpack the download again")
    channels = np.asarray(picture).astype(np.int32)
    table = np.full(1 << 24, _IDS["unlabeled"], np.uint8)
    table[[*categories]] = [*categories.values()]
    return Image.fromarray(table[channels[..., 0] | channels[..., 1] << 8 | channels[..., 2] << 16])


LAYOUTS = {
    "wilddash2": Layout(
        (Place("images", "panoptic"), Place("images", "labels")),
        "wilddash2",
        "WildDash 2",
        "CC BY-NC 4.0, after registration",
        "https://wilddash.cc/license/wilddash",
        True,
        splits={},
        read_mask=read_mask,
        columns=_segments,
        signs=("panoptic.json",),
    )
}
