"""GTA5 (Richter et al., ECCV 2016): palette pictures whose index is Cityscapes' id; splits in `split.mat`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deft_hf.data.official import Layout, Place
from deft_hf.utils.errors import UserError

# Frames that RobustNet's list of GTA5's training split leaves out, and with it the line of work that follows it.
_NOT_IN_LISTS = {12160, 12166, 12167, 12191, 12192, 12193, 12195, *range(12202, 12209), 19993}


def _members(root: Path, split: str, ids: Sequence[str]) -> list[str]:
    frames = _split_mat(root / "split.mat", split)
    if split == "train":
        frames -= _NOT_IN_LISTS
    return [f"{frame:05d}" for frame in sorted(frames)]


def _split_mat(path: Path, split: str) -> set[int]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; it is part of GTA5's read_mapping.zip. Put it there, or leave the split out"
        )
    from scipy.io import loadmat  # every command reads this table

    try:
        return {int(frame) for frame in loadmat(path)[f"{split}Ids"].ravel()}
    except Exception as error:  # SciPy raises whatever a damaged file makes it stumble over
        raise UserError(f"{path}: cannot be read as GTA5's splits ({error}); unpack read_mapping.zip again") from error


LAYOUTS = {
    "gtav": Layout(
        (Place("images", "labels"),),
        "cityscapes",
        "GTA5",
        "research and education only",
        "https://download.visinf.tu-darmstadt.de/data/from_games/",
        True,
        splits={"train": "train", "val": "val", "test": "test"},
        listed=True,
        members=_members,
        equal_sizes=True,
        signs=("split.mat",),
    )
}
