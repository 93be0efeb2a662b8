"""The columns of a domain's data set."""

from __future__ import annotations

import datasets

FEATURES = {
    "id": datasets.Value("string"),
    "image": datasets.Image(decode=False),
    "mask": datasets.Image(decode=False),
    "shapes": datasets.Value("large_string"),
    "segments": datasets.Value("large_string"),
}


def as_dataset(columns: dict[str, list]) -> datasets.Dataset:
    """The rows of a domain, of columns that `FEATURES` has."""
    return datasets.Dataset.from_dict(columns, features=datasets.Features({key: FEATURES[key] for key in columns}))
