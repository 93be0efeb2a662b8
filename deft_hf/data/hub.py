"""Data sets of the Hub's kind: loading a split by name, folder or file."""

from __future__ import annotations

from pathlib import Path

import datasets

from deft_hf.utils.errors import UserError


def load_split(path: str, split: str, config: str | None, revision: str | None) -> datasets.Dataset:
    """A split of a data set on the Hub, in a folder, in a parquet file, or that `save_to_disk` wrote.

    Raises:
        UserError: It cannot be loaded.
    """
    try:
        if path.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files={split: path}, split=split)
        if not any(Path(path, file).is_file() for file in ("dataset_dict.json", "state.json")):
            return datasets.load_dataset(path, config, split=split, revision=revision)
        saved = datasets.load_from_disk(path)
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        if split not in splits:
            raise ValueError(f"its splits are {', '.join(splits)}")
        return splits[split]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: split {split!r} cannot be loaded: {error}") from error
