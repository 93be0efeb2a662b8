"""The nineteen Cityscapes classes, as data sets of street scenes have them in their masks.

Ids of Cityscapes: https://github.com/mcordts/cityscapesScripts (helpers/labels.py). GTA5's palette has the same ids
(Richter et al., ECCV 2016). Ids of Mapillary Vistas v1.2 are the places in its config's list of 66 labels.
"""

from __future__ import annotations

from dataclasses import replace

from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import LabelSpace

# Name, colour, id in Cityscapes and GTA5, ids in Mapillary as RobustNet, HRDA and DeFT map them, as Rein maps them.
_CLASSES = (
    ("road", (128, 64, 128), 7, (13, 24, 41), (7, 8, 10, 13, 14, 23, 24)),
    ("sidewalk", (244, 35, 232), 8, (2, 15), (2, 9, 11, 15)),
    ("building", (70, 70, 70), 11, (17,), (17,)),
    ("wall", (102, 102, 156), 12, (6,), (6,)),
    ("fence", (190, 153, 153), 13, (3,), (3,)),
    ("pole", (153, 153, 153), 17, (45, 47), (44, 45, 47)),
    ("traffic light", (250, 170, 30), 19, (48,), (48,)),
    ("traffic sign", (220, 220, 0), 20, (50,), (46, 49, 50)),
    ("vegetation", (107, 142, 35), 21, (30,), (30,)),
    ("terrain", (152, 251, 152), 22, (29,), (29,)),
    ("sky", (70, 130, 180), 23, (27,), (27,)),
    ("person", (220, 20, 60), 24, (19,), (19,)),
    ("rider", (255, 0, 0), 25, (20, 21, 22), (20, 21, 22)),
    ("car", (0, 0, 142), 26, (55,), (55,)),
    ("truck", (0, 0, 70), 27, (61,), (61,)),
    ("bus", (0, 60, 100), 28, (54,), (54,)),
    ("train", (0, 80, 100), 31, (58,), (58,)),
    ("motorcycle", (0, 0, 230), 32, (57,), (57,)),
    ("bicycle", (119, 11, 32), 33, (52,), (52,)),
)
_TRAIN_IDS = LabelSpace(tuple(name for name, *_ in _CLASSES), tuple(color for _, color, *_ in _CLASSES))


def _mapped(raw: list[tuple[int, ...]], count: int) -> LabelSpace:
    """The classes with raw ids; those of 0 to `count` - 1 that belong to none are ignored."""
    ids = dict.fromkeys(range(count), IGNORE_INDEX)
    ids |= {raw_id: train for train, raw_ids in enumerate(raw) for raw_id in raw_ids}
    return replace(_TRAIN_IDS, ids=ids)


PRESETS: dict[str, LabelSpace] = {
    # To 34, the licence plate: -1 in Cityscapes, where a mask has 255 for it.
    "cityscapes": _mapped([(raw,) for *_, raw, _, _ in _CLASSES], 35),
    "cityscapes_train_ids": _TRAIN_IDS,
    "mapillary": _mapped([raw for *_, raw, _ in _CLASSES], 66),
    "mapillary_rein": _mapped([raw for *_, raw in _CLASSES], 66),
}
