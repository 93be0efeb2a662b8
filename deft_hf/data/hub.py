"""Data sets in the Hub's format: loading a split by name, folder or file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from deft_hf.utils.errors import UserError, first_line

Answer = TypeVar("Answer")
_FAILURES = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
_MANY = 10**6  # rows of a split whose number is not known


def configurations(path: str) -> list[str]:
    """Names of a data set's configurations; a folder that `save_to_disk` wrote has none.

    Raises:
        UserError: It cannot be found.
    """
    return [] if _is_saved(path) else _asked(path, lambda: datasets.get_dataset_config_names(path))


def choose_configuration(path: str, wanted: str | None = None) -> str | None:
    """The configuration that is asked for, or that is loaded where none is: the only one, or the set's own default.

    Args:
        path (`str`):
            The data set.
        wanted (`str`, *optional*):
            The one that is asked for.

    Returns:
        `str` or `None`: its name; `None` where there is nothing to choose from.

    Raises:
        UserError: The data set cannot be found, has no such configuration, or several and no default.
    """
    names = configurations(path)
    if wanted is not None and wanted not in names:
        raise UserError(f"config: found {wanted}, but {path} has {_listed(names)}")
    if wanted is None and len(names) > 1:
        wanted = _asked(path, lambda: datasets.get_dataset_default_config_name(path))
        if wanted is None:
            raise UserError(f"{path}: has {_listed(names)}; name one of them as config")
    return wanted


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
        if config is None and isinstance(error, ValueError) and not path.endswith(".parquet"):
            choose_configuration(path)  # says so where one has to be named
        raise UserError(f"{path}: split {split!r} cannot be loaded: {_reason(path, error)}") from error


def _listed(names: list[str]) -> str:
    return f"the configurations {', '.join(names)}" if names else "no configurations"


def share_rows(one: str, two: str) -> bool:
    """Whether two splits of a data set, as `load_dataset` takes them, have rows in common, as far as they say.

    Of a slice in percent and one in rows only the data set could tell; they count as having none in common.

    Args:
        one (`str`):
            A split, such as `train[:80%]` or `train+validation`.
        two (`str`):
            Another.
    """
    sliced = [part for split in (one, two) for part in split.split("+") if "[" in part]
    if len({"%" in part for part in sliced}) > 1:
        return False
    try:
        first, second = map(_parts, (one, two))
    except ValueError:  # said when it is loaded
        return one == two
    return any(a.splitname == b.splitname and a.from_ < b.to and b.from_ < a.to for a in first for b in second)


def _parts(split: str) -> Sequence[Any]:
    names = {part.partition("[")[0].strip(): _MANY for part in split.split("+")}
    return datasets.ReadInstruction.from_spec(split).to_absolute(names)


def _is_saved(path: str) -> bool:
    return any(Path(path, file).is_file() for file in ("dataset_dict.json", "state.json"))


def _saved(path: str) -> Mapping[str, datasets.Dataset]:
    try:
        saved = datasets.load_from_disk(path)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"its JSON files are damaged ({type(error).__name__}: {error})") from error
    return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}


def _asked(path: str, ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except _FAILURES as error:
        if Path(path).exists():
            raise UserError(f"{path}: cannot be read as a data set: {first_line(error)}") from error
        raise UserError(f"{path}: found no such folder, and on the Hub: {_reason(path, error)}") from error


def _reason(path: str, error: Exception) -> str:
    """Why a data set of the Hub cannot be had, and the way out."""
    if Path(path).exists():
        return str(error)
    if constants.is_offline_mode() and isinstance(error, ConnectionError):
        return "the Hub is off (HF_HUB_OFFLINE), and it is not in the cache"
    log_in = "log in (hf auth login, or HF_TOKEN)"
    try:
        HfApi().auth_check(path, repo_type="dataset")
    except GatedRepoError:
        return f"it is gated: accept its terms at https://huggingface.co/datasets/{path}, then {log_in}"
    except RepositoryNotFoundError:
        return f"there is no data set of that name, or it is private: correct it, or {log_in}"
    except Exception:  # whatever keeps the Hub from answering: what failed before says it better
        pass
    return first_line(error)
