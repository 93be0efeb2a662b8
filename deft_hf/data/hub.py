"""Data sets of the Hub's kind: loading a split by name, folder or file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import datasets

from deft_hf.utils.errors import UserError, first_line

_FAILURES = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)


def configurations(path: str) -> list[str]:
    """Names of a data set's configurations; a folder that `save_to_disk` wrote has none.

    Raises:
        UserError: It cannot be found.
    """
    return [] if _is_saved(path) else _asked(path, lambda: datasets.get_dataset_config_names(path))


def split_names(path: str, config: str | None = None) -> list[str]:
    """Names of a data set's splits.

    Raises:
        UserError: It cannot be found.
    """
    if _is_saved(path):
        return _asked(path, lambda: [*_saved(path)])
    return _asked(path, lambda: datasets.get_dataset_split_names(path, config))


def load_split(path: str, split: str, config: str | None, revision: str | None) -> datasets.Dataset:
    """A split of a data set on the Hub, in a folder, in a parquet file, or that `save_to_disk` wrote.

    Raises:
        UserError: It cannot be loaded.
    """
    try:
        if path.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files={split.partition("[")[0]: path}, split=split)
        if not _is_saved(path):
            return datasets.load_dataset(path, config, split=split, revision=revision)
        splits = _saved(path)
        asked = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(splits[name]) for name in splits})
        parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in asked]
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except _FAILURES as error:
        raise UserError(f"{path}: split {split!r} cannot be loaded: {error}") from error


def _is_saved(path: str) -> bool:
    return any(Path(path, file).is_file() for file in ("dataset_dict.json", "state.json"))


def _saved(path: str) -> Mapping[str, datasets.Dataset]:
    try:
        saved = datasets.load_from_disk(path)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"its JSON files are damaged ({type(error).__name__}: {error})") from error
    return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}


def _asked(path: str, ask: Callable[[], list[str]]) -> list[str]:
    try:
        return ask()
    except _FAILURES as error:
        raise UserError(
            f"{path}: found no such folder, and no data set of that name could be read from the Hub: "
            f"{first_line(error)}"
            if not Path(path).exists()
            else f"{path}: cannot be read as a data set: {first_line(error)}"
        ) from error
