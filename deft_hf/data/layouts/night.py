"""Cityscapes' ids under adverse conditions: ACDC, Dark Zurich, Nighttime Driving.

Each is read by its `labelIds`, or by its `labelTrainIds` where those are not there.
"""

from __future__ import annotations

from deft_hf.data.layouts.cityscapes import in_ids_or_train_ids
from deft_hf.data.official import Layout

LAYOUTS = {
    "acdc": Layout(
        in_ids_or_train_ids(
            ("rgb_anon/{condition}/{split}", "gt/{condition}/{split}"),
            ("rgb_anon_trainvaltest/rgb_anon/{condition}/{split}", "gt_trainval/gt/{condition}/{split}"),
            suffix="_rgb_anon",
            kind="_gt",
        ),
        "cityscapes",
        "ACDC",
        "non-commercial, after registration",
        "https://acdc.vision.ee.ethz.ch/license",
        True,
        conditions={name: name for name in ("fog", "night", "rain", "snow")},
    ),
    "dark_zurich": Layout(
        in_ids_or_train_ids(
            ("rgb_anon/{split}", "gt/{split}"),
            ("Dark_Zurich_val_anon/rgb_anon/{split}", "Dark_Zurich_val_anon/gt/{split}"),
            suffix="_rgb_anon",
            kind="_gt",
        ),
        "cityscapes",
        "Dark Zurich",
        "non-commercial",
        "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
        True,
        splits={"val": "val"},
    ),
    "nighttime_driving": Layout(
        in_ids_or_train_ids(
            ("leftImg8bit/{split}", "gtCoarse_daytime_trainvaltest/{split}"),
            suffix="_leftImg8bit",
            kind="_gtCoarse",
        ),
        "cityscapes",
        "Nighttime Driving",
        "non-commercial",
        "http://people.ee.ethz.ch/~daid/NightDriving/",
        True,
        splits={"test": "test/night"},
    ),
}
