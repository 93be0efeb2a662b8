"""Pictures from above: LoveDA (Wang et al., 2021) and ISPRS' Potsdam and Vaihingen.

LoveDA's ids: https://github.com/Junjue-Wang/LoveDA. ISPRS' colours, and the tiles of its contest's training and test
sets: https://www.isprs.org/education/benchmarks/UrbanSemLab/. Black is the eroded border in the masks that have one.
The mask of Potsdam's tile 6_7 has cars in (252, 255, 0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from deft_hf.data.official import Layout, Place
from deft_hf.data.spaces import classes, table

_LOVEDA = classes(
    ("background", (255, 255, 255)),
    ("building", (255, 0, 0)),
    ("road", (255, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (159, 129, 183)),
    ("forest", (0, 255, 0)),
    ("agricultural", (255, 195, 128)),
)
_ISPRS = classes(
    ("impervious surface", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
    ("clutter", (255, 0, 0)),
)
_COLORS: dict[tuple[int, int, int], str | None] = dict(zip(_ISPRS.palette, _ISPRS.names, strict=True))
LABELS = {
    "loveda": {"loveda": table(_LOVEDA, dict(enumerate([None, *_LOVEDA.names])))},
    "isprs": {"isprs": table(_ISPRS, _COLORS | {(252, 255, 0): "car", (0, 0, 0): None})},
}

_POTSDAM = {
    "train": "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
    "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12",
    "test": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
}
_VAIHINGEN = {
    "train": "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
    "test": "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
}


def _tiles(root: Path, split: str, ids: Sequence[str]) -> list[str]:
    tiles = (_VAIHINGEN if "area" in ids[0] else _POTSDAM)[split].split()
    return [key for key in ids if re.sub(r".*(area|potsdam_)", "", key) in tiles]


_TERMS = ("research, after registration", "https://www.isprs.org/education/benchmarks/UrbanSemLab/", True)
LAYOUTS = {
    "loveda": Layout(
        (Place("{split}/{condition}/images_png", "{split}/{condition}/masks_png"),),
        "loveda",
        "LoveDA",
        "CC BY-NC-SA 4.0",
        "https://github.com/Junjue-Wang/LoveDA",
        True,
        splits={"train": "Train", "val": "Val"},
        conditions={"urban": "Urban", "rural": "Rural"},
    ),
    "potsdam": Layout(
        tuple(
            Place(f"2_Ortho_RGB{inner[0]}", f"{masks}{inner[1]}", "_RGB", end)
            for masks, end in (
                ("5_Labels_all", "_label"),
                ("5_Labels_all_noBoundary", "_label_noBoundary"),
                ("5_Labels_for_participants", "_label"),
                ("5_Labels_for_participants_no_Boundary", "_label_noBoundary"),
            )
            for inner in (("", ""), ("/2_Ortho_RGB", f"/{masks}"))
        ),
        "isprs",
        "ISPRS Potsdam",
        *_TERMS,
        splits={"train": "train", "test": "test"},
        listed=True,
        members=_tiles,
    ),
    "vaihingen": Layout(
        (
            Place("top", "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"),
            Place("top", "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE", "", "_noBoundary"),
            Place("top", "gts_for_participants"),
        ),
        "isprs",
        "ISPRS Vaihingen",
        *_TERMS,
        splits={"train": "train", "test": "test"},
        listed=True,
        members=_tiles,
    ),
}
