"""What a data set of the Hub, or one that `datasets` saved, has of images and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download

from deft_hf.data.domains import Domain
from deft_hf.data.hub import choose_configuration, configurations, load_split, split_names
from deft_hf.data.likeness import called, split_of
from deft_hf.data.tree import find_places
from deft_hf.runs.init.sources import UNKNOWN, Part, Sources, safe_name, surveyed
from deft_hf.utils.errors import UserError

_EXPECTED = {"image": ("image", "img", "pixel_values"), "mask": ("mask", "label", "annotation")}
_NAMES = "id2label.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder is a data set of `datasets`' own kind: saved by `save_to_disk`, or of parquet files."""
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    tables = any(any(folder.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet"))
    return saved or (tables and not find_places(folder))  # a table beside images is no data set of its own


def find_in_hub(name: str, config: str | None = None, progress: bool = False) -> Sources:
    """Looks for images and masks in a data set of the Hub.

    Args:
        name (`str`):
            Its name on the Hub, or a folder that `datasets` saved.
        config (`str`, *optional*):
            Its configuration, where it has several and none of them is its default.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Raises:
        UserError: It cannot be loaded, its columns cannot be told, or it has masks that cannot be used.
    """
    notes = []
    chosen = choose_configuration(name, config)
    if chosen != config:
        others = ", ".join(other for other in configurations(name) if other != chosen)
        notes.append(f"{name}: took its default configuration {chosen}; to choose another (config): {others}")
    config = chosen
    parts: list[Part] = []
    unlabelled: list[Part] = []
    names: dict[int, str] = {}
    for split in split_names(name, config):
        features = load_split(name, split, config, None).features
        columns = _columns(name, split, features)
        place = safe_name(Path(name).resolve().name)
        domain = Domain.from_hub(name, UNKNOWN, split, place, columns["image_column"], columns["mask_column"], config)
        missing = domain.dataset.data.column("mask").null_count
        if 0 < missing < len(domain):
            notes.append(f"{name}: {missing} of {len(domain)} rows of the split {split} have no mask, it is left out")
            continue
        own = {key: column for key, column in columns.items() if column != key.removesuffix("_column")}
        entry = {"hub": name, "split": split, **own} | ({"config": config} if config else {})
        if missing:
            entry.pop("mask_column", None)
            unlabelled.append(Part(entry, f"{place}_{split}", split_of(split), None, len(domain)))
            continue
        parts.append(Part(entry, place, split_of(split), domain, len(domain)))
        names = names or _listed(features)
    if not parts:
        raise UserError(f"{name}: no split has a mask in every row, which training needs")
    return surveyed(
        Path(name), parts + unlabelled, progress, "a data set in the Hub's format", [_home(name)], names, notes
    )


def _columns(name: str, split: str, features: Mapping[str, Any]) -> dict[str, str]:
    pictures = [column for column, feature in features.items() if _holds_pictures(feature)]
    found = {}
    for kind, usual in _EXPECTED.items():
        fitting = [column for column in pictures if called([column]) == kind]
        exact = [column for column in usual if column in pictures]
        found[kind] = exact[0] if exact else fitting[0] if len(fitting) == 1 else None
    if len(pictures) == 2:
        for kind, other in (("image", "mask"), ("mask", "image")):
            if found[kind] is None and found[other] is not None:
                found[kind] = next(column for column in pictures if column != found[other])
    if None in found.values() or found["image"] == found["mask"]:
        there = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
        expected = " and ".join(f"one of {kind}s (such as {', '.join(usual)})" for kind, usual in _EXPECTED.items())
        raise UserError(
            f"{name}: cannot tell which columns hold images and masks; found {there}; expected two columns of "
            f"pictures, {expected}. Write the entry into a recipe by hand, with the right columns:\n"
            f"  source: [{{hub: {name}, split: {split}, image_column: COLUMN, mask_column: COLUMN}}]"
        )
    return {f"{kind}_column": str(column) for kind, column in found.items()}


def _holds_pictures(feature: Any) -> bool:
    binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image) or binary or (isinstance(feature, dict) and "bytes" in feature)


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _listed(features: Mapping[str, Any]) -> dict[int, str]:
    """Names of a list of classes in each row; a `ClassLabel` of its own says what the whole image is."""
    for feature in features.values():
        inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
        if isinstance(inner, datasets.ClassLabel):
            return dict(enumerate(inner.names))
    return {}


def _home(name: str) -> Path:
    """Where a list of the classes' names may be."""
    if Path(name).exists():
        return Path(name)
    try:
        return Path(hf_hub_download(name, _NAMES, repo_type="dataset")).parent
    except (OSError, ValueError):  # most sets have none
        return Path(name)
