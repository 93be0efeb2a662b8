"""CamVid (Brostow et al., 2009): its own 32 colours, and the eleven classes of SegNet's package.

Colours: http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/data/label_colors.txt; what of them becomes which of
the eleven: SegNet (https://github.com/alexgkendall/SegNet-Tutorial). Void is ignored, so that 31 classes are left.
"""

from __future__ import annotations

from deft_hf.data.official import Layout, Place
from deft_hf.data.spaces import STREET7, classes, table

_ELEVEN = (
    ("Sky", (128, 128, 128), "sky"),
    ("Building", (128, 0, 0), "far objects"),
    ("Pole", (192, 192, 128), "roadside objects"),
    ("Road", (128, 64, 128), "drivable"),
    ("Pavement", (60, 40, 222), "non-drivable"),
    ("Tree", (128, 128, 0), "far objects"),
    ("SignSymbol", (192, 128, 128), "roadside objects"),
    ("Fence", (64, 64, 128), "roadside objects"),
    ("Car", (64, 0, 128), "vehicles"),
    ("Pedestrian", (64, 64, 0), "living things"),
    ("Bicyclist", (0, 128, 192), "living things"),
)
# Name, colour, class of the eleven.
_ROWS = (
    ("Animal", (64, 128, 64), "Pedestrian"),
    ("Archway", (192, 0, 128), "Building"),
    ("Bicyclist", (0, 128, 192), "Bicyclist"),
    ("Bridge", (0, 128, 64), "Building"),
    ("Building", (128, 0, 0), "Building"),
    ("Car", (64, 0, 128), "Car"),
    ("CartLuggagePram", (64, 0, 192), "Pedestrian"),
    ("Child", (192, 128, 64), "Pedestrian"),
    ("Column_Pole", (192, 192, 128), "Pole"),
    ("Fence", (64, 64, 128), "Fence"),
    ("LaneMkgsDriv", (128, 0, 192), "Road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "Road"),
    ("Misc_Text", (128, 128, 64), "SignSymbol"),
    ("MotorcycleScooter", (192, 0, 192), "Bicyclist"),
    ("OtherMoving", (128, 64, 64), "Car"),
    ("ParkingBlock", (64, 192, 128), "Pavement"),
    ("Pedestrian", (64, 64, 0), "Pedestrian"),
    ("Road", (128, 64, 128), "Road"),
    ("RoadShoulder", (128, 128, 192), "Pavement"),
    ("Sidewalk", (0, 0, 192), "Pavement"),
    ("SignSymbol", (192, 128, 128), "SignSymbol"),
    ("Sky", (128, 128, 128), "Sky"),
    ("SUVPickupTruck", (64, 128, 192), "Car"),
    ("TrafficCone", (0, 0, 64), "Pole"),
    ("TrafficLight", (0, 64, 64), "SignSymbol"),
    ("Train", (192, 64, 128), "Car"),
    ("Tree", (128, 128, 0), "Tree"),
    ("Truck_Bus", (192, 128, 192), "Car"),
    ("Tunnel", (64, 0, 64), "Building"),
    ("VegetationMisc", (192, 192, 0), "Tree"),
    ("Void", (0, 0, 0), None),
    ("Wall", (64, 192, 0), "Building"),
)
_CAMVID11 = classes(*((name, color) for name, color, _ in _ELEVEN))
_CAMVID31 = classes(*((name, color) for name, color, eleven in _ROWS if eleven is not None))
_SEVEN: dict[str | None, str | None] = {name: group for name, _, group in _ELEVEN}
_COLORS = {color: eleven for _, color, eleven in _ROWS}
_IDS = dict(enumerate([*_CAMVID11.names, None]))

LABELS = {
    "camvid": {
        "camvid31": table(_CAMVID31, {color: None if eleven is None else name for name, color, eleven in _ROWS}),
        "camvid11": table(_CAMVID11, _COLORS),
        "street7": table(STREET7, {color: _SEVEN.get(eleven) for color, eleven in _COLORS.items()}),
    },
    "camvid_segnet": {
        "camvid11": table(_CAMVID11, _IDS),
        "street7": table(STREET7, {raw: _SEVEN.get(eleven) for raw, eleven in _IDS.items()}),
    },
    "camvid31": {"camvid31": _CAMVID31},
    "camvid11": {"camvid11": _CAMVID11},
}

_TERMS = ("research, non-commercial", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/", True)
LAYOUTS = {
    "camvid": Layout(
        (
            Place("701_StillsRaw_full", "LabeledApproved_full", mask_suffix="_L"),
            Place("{split}", "{split}_labels", mask_suffix="_L"),
        ),
        "camvid",
        "CamVid",
        *_TERMS,
        splits={"train": "train", "val": "val", "test": "test"},
        listed=True,
    ),
    "camvid_segnet": Layout(
        (Place("{split}", "{split}annot"), Place("CamVid/{split}", "CamVid/{split}annot")),
        "camvid_segnet",
        "CamVid as packed by SegNet",
        *_TERMS,
        splits={"train": "train", "val": "val", "test": "test"},
    ),
}
