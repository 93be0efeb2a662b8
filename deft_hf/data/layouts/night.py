"""Cityscapes' ids under adverse conditions: ACDC, Dark Zurich, Nighttime Driving.

Each is read by its `labelIds`, or by its `labelTrainIds` where those are not there.
"""

from __future__ import annotations

from deft_hf.data.labels import LabelSpace
from deft_hf.data.official import Layout, Place

LABELS: dict[str, dict[str, LabelSpace]] = {}  # those of Cityscapes


def _places(*places: tuple[str, str], suffix: str, kind: str) -> tuple[Place, ...]:
    held = (("labelIds", None), ("labelTrainIds", "cityscapes_train_ids"))
    return tuple(
        Place(images, masks, suffix, f"_{kind}_{name}", labels=labels)
        for images, masks in places
        for name, labels in held
    )


LAYOUTS = {
    "acdc": Layout(
        _places(
            ("rgb_anon/{condition}/{split}", "gt/{condition}/{split}"),
            ("rgb_anon_trainvaltest/rgb_anon/{condition}/{split}", "gt_trainval/gt/{condition}/{split}"),
            suffix="_rgb_anon",
            kind="gt",
        ),
        "cityscapes",
        "ACDC",
        "non-commercial, after registration",
        "https://acdc.vision.ee.ethz.ch/license",
        True,
        conditions={name: name for name in ("fog", "night", "rain", "snow")},
    ),
    "dark_zurich": Layout(
        _places(
            ("rgb_anon/{split}", "gt/{split}"),
            ("Dark_Zurich_val_anon/rgb_anon/{split}", "Dark_Zurich_val_anon/gt/{split}"),
            suffix="_rgb_anon",
            kind="gt",
        ),
        "cityscapes",
        "Dark Zurich",
        "non-commercial",
        "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
        True,
        splits={"val": "val"},
    ),
    "nighttime_driving": Layout(
        _places(
            ("leftImg8bit/{split}", "gtCoarse_daytime_trainvaltest/{split}"),
            suffix="_leftImg8bit",
            kind="gtCoarse",
        ),
        "cityscapes",
        "Nighttime Driving",
        "non-commercial",
        "http://people.ee.ethz.ch/~daid/NightDriving/",
        True,
        splits={"test": "test/night"},
    ),
}
