"""Mapillary Vistas v1.2 (Neuhold et al., ICCV 2017): 66 ids in pictures with a palette.

Ids are the places in the list of `config.json`, or `config_v1.2.json` of the package of v2.0, which has these masks
too. Two maps to Cityscapes' classes are in use, whose scores do not compare: `mapillary` is that of RobustNet, HRDA
and DeFT, `mapillary_rein` that of Rein.
"""

from __future__ import annotations

from collections.abc import Mapping

from deft_hf.data.official import Layout, Place
from deft_hf.data.spaces import classes, street, table

# By id: name, colour, class of Cityscapes as RobustNet maps it.
_ROWS = (
    ("Bird", (165, 42, 42), None),
    ("Ground Animal", (0, 192, 0), None),
    ("Curb", (196, 196, 196), "sidewalk"),
    ("Fence", (190, 153, 153), "fence"),
    ("Guard Rail", (180, 165, 180), None),
    ("Barrier", (90, 120, 150), None),
    ("Wall", (102, 102, 156), "wall"),
    ("Bike Lane", (128, 64, 255), None),
    ("Crosswalk - Plain", (140, 140, 200), None),
    ("Curb Cut", (170, 170, 170), None),
    ("Parking", (250, 170, 160), None),
    ("Pedestrian Area", (96, 96, 96), None),
    ("Rail Track", (230, 150, 140), None),
    ("Road", (128, 64, 128), "road"),
    ("Service Lane", (110, 110, 110), None),
    ("Sidewalk", (244, 35, 232), "sidewalk"),
    ("Bridge", (150, 100, 100), None),
    ("Building", (70, 70, 70), "building"),
    ("Tunnel", (150, 120, 90), None),
    ("Person", (220, 20, 60), "person"),
    ("Bicyclist", (255, 0, 0), "rider"),
    ("Motorcyclist", (255, 0, 100), "rider"),
    ("Other Rider", (255, 0, 200), "rider"),
    ("Lane Marking - Crosswalk", (200, 128, 128), None),
    ("Lane Marking - General", (255, 255, 255), "road"),
    ("Mountain", (64, 170, 64), None),
    ("Sand", (230, 160, 50), None),
    ("Sky", (70, 130, 180), "sky"),
    ("Snow", (190, 255, 255), None),
    ("Terrain", (152, 251, 152), "terrain"),
    ("Vegetation", (107, 142, 35), "vegetation"),
    ("Water", (0, 170, 30), None),
    ("Banner", (255, 255, 128), None),
    ("Bench", (250, 0, 30), None),
    ("Bike Rack", (100, 140, 180), None),
    ("Billboard", (220, 220, 220), None),
    ("Catch Basin", (220, 128, 128), None),
    ("CCTV Camera", (222, 40, 40), None),
    ("Fire Hydrant", (100, 170, 30), None),
    ("Junction Box", (40, 40, 40), None),
    ("Mailbox", (33, 33, 33), None),
    ("Manhole", (100, 128, 160), "road"),
    ("Phone Booth", (142, 0, 0), None),
    ("Pothole", (70, 100, 150), None),
    ("Street Light", (210, 170, 100), None),
    ("Pole", (153, 153, 153), "pole"),
    ("Traffic Sign Frame", (128, 128, 128), None),
    ("Utility Pole", (0, 0, 80), "pole"),
    ("Traffic Light", (250, 170, 30), "traffic light"),
    ("Traffic Sign (Back)", (192, 192, 192), None),
    ("Traffic Sign (Front)", (220, 220, 0), "traffic sign"),
    ("Trash Can", (140, 140, 20), None),
    ("Bicycle", (119, 11, 32), "bicycle"),
    ("Boat", (150, 0, 255), None),
    ("Bus", (0, 60, 100), "bus"),
    ("Car", (0, 0, 142), "car"),
    ("Caravan", (0, 0, 90), None),
    ("Motorcycle", (0, 0, 230), "motorcycle"),
    ("On Rails", (0, 80, 100), "train"),
    ("Other Vehicle", (128, 64, 64), None),
    ("Trailer", (0, 0, 110), None),
    ("Truck", (0, 0, 70), "truck"),
    ("Wheeled Slow", (0, 0, 192), None),
    ("Car Mount", (32, 32, 32), None),
    ("Ego Vehicle", (120, 10, 10), None),
    ("Unlabeled", (0, 0, 0), None),
)
# Where Rein differs: more of the ground is road and sidewalk, street lights are poles, and manholes are ignored.
_REIN = {
    7: "road",
    8: "road",
    10: "road",
    14: "road",
    23: "road",
    41: None,
    9: "sidewalk",
    11: "sidewalk",
    44: "pole",
    46: "traffic sign",
    49: "traffic sign",
}
_MORE_OF_SEVEN = {
    "Bird": "living things",
    "Ground Animal": "living things",
    "Guard Rail": "roadside objects",
    "Barrier": "roadside objects",
    "Bike Lane": "drivable",
    "Crosswalk - Plain": "drivable",
    "Parking": "drivable",
    "Rail Track": "non-drivable",
    "Service Lane": "drivable",
    "Bridge": "far objects",
    "Tunnel": "far objects",
    "Lane Marking - Crosswalk": "drivable",
    "Billboard": "roadside objects",
    "Street Light": "roadside objects",
    "Caravan": "vehicles",
    "Other Vehicle": "vehicles",
    "Trailer": "vehicles",
    "Wheeled Slow": "vehicles",
}
_CITYSCAPES = {raw: name for raw, (*_, name) in enumerate(_ROWS)}
_SEVEN = {raw: _MORE_OF_SEVEN[name] for raw, (name, *_) in enumerate(_ROWS) if name in _MORE_OF_SEVEN}
_MAPILLARY65 = classes(*((name, color) for name, color, _ in _ROWS if name != "Unlabeled"))
_OWN: Mapping[int, str | None] = {raw: None if name == "Unlabeled" else name for raw, (name, *_) in enumerate(_ROWS)}

LABELS = {
    "mapillary": street(_CITYSCAPES, _SEVEN) | {"mapillary65": table(_MAPILLARY65, _OWN)},
    "mapillary_rein": street(_CITYSCAPES | _REIN, _SEVEN) | {"mapillary65": table(_MAPILLARY65, _OWN)},
    "mapillary65": {"mapillary65": _MAPILLARY65},
}
LAYOUTS = {
    "mapillary": Layout(
        (Place("{split}/images", "{split}/v1.2/labels"), Place("{split}/images", "{split}/labels")),
        "mapillary",
        "Mapillary Vistas v1.2",
        "CC BY-NC-SA 4.0",
        "https://www.mapillary.com/dataset/vistas",
        True,
        splits={"train": "training", "val": "validation"},
        signs=("config.json", "config_v1.2.json"),
    )
}
