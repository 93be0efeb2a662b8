"""What masks hold, by the names that a recipe's `labels` knows, read as the usual classes.

The tables stand with the data sets, in `deft_hf.data.layouts`, and the classes that several share in
`deft_hf.data.spaces`.
"""

from __future__ import annotations

from deft_hf.data.labels import LabelSpace
from deft_hf.data.layouts import LABELS

# Those of street scenes first.
PRESETS: dict[str, LabelSpace] = {
    held: next(iter(LABELS[held].values()))
    for held in sorted(LABELS, key=lambda held: "cityscapes" not in LABELS[held])
}
