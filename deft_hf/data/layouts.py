"""Data sets of street scenes as they are unpacked from their official downloads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from deft_hf.data.domains import Domain
from deft_hf.data.labels import LabelSpace
from deft_hf.data.look import opened
from deft_hf.utils.errors import UserError

# Frames that RobustNet's list of GTA5's training split leaves out, and with it the line of work that follows it.
_NOT_IN_LISTS = {12160, 12166, 12167, 12191, 12192, 12193, 12195, *range(12202, 12209), 19993}


@dataclass(frozen=True)
class Place:
    """Where images and masks are, `{split}` standing for the folder of a split; as `Domain.from_folder` takes it."""

    images: str
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""


@dataclass(frozen=True)
class Layout:
    """An official tree.

    Args:
        places (`tuple[Place, ...]`):
            Where its releases have images and masks; the first that is there counts.
        labels (`str`):
            The key in `PRESETS` of what its masks hold.
        splits (`Mapping[str, str]`, *optional*, defaults to `lambda: {'train': 'train', 'val': 'val'}()`):
            Folder of each split; where splits are no folders, the names of those that `split.mat` has.
        listed (`bool`, *optional*, defaults to `False`):
            Whether splits stand in `split.mat` and may be left out.
    """

    places: tuple[Place, ...]
    labels: str
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})
    listed: bool = False


LAYOUTS: dict[str, Layout] = {
    "bdd100k": Layout(
        (
            Place("images/10k/{split}", "labels/sem_seg/masks/{split}"),
            Place("seg/images/{split}", "seg/labels/{split}", mask_suffix="_train_id"),
        ),
        "cityscapes_train_ids",
    ),
    "cityscapes": Layout(
        tuple(
            Place(f"{images}leftImg8bit/{{split}}", f"{masks}gtFine/{{split}}", "_leftImg8bit", "_gtFine_labelIds")
            for images, masks in (("", ""), ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/"))
        ),
        "cityscapes",
    ),
    "gtav": Layout(
        (Place("images", "labels"),), "cityscapes", {"train": "train", "val": "val", "test": "test"}, listed=True
    ),
    "mapillary": Layout(
        (Place("{split}/images", "{split}/v1.2/labels"), Place("{split}/images", "{split}/labels")),
        "mapillary",
        {"train": "training", "val": "validation"},
    ),
}


def load_layout(
    layout: str, root: str | os.PathLike, labels: LabelSpace, split: str | None = None, name: str | None = None
) -> Domain:
    """A domain of an official tree; decodes no image.

    GTA5's pairs whose image and mask differ in size, which it is known for, are left out and named in the report
    (their headers are read), and in its training split the fifteen frames that RobustNet leaves out, so that 12,388
    are left as there. Without a split it is all of GTA5.

    Args:
        layout (`str`):
            One of `LAYOUTS`.
        root (`str` or `os.PathLike`):
            The folder that the downloads were unpacked in.
        labels (`LabelSpace`):
            What the masks hold; `PRESETS[LAYOUTS[layout].labels]` for the nineteen classes.
        split (`str`, *optional*):
            `train` or `val`; `test` too of GTA5, whose splits stand in `split.mat` (of `read_mapping.zip`).
        name (`str`, *optional*):
            Name of the domain; that of `root` by default.

    Raises:
        UserError: An unknown split, no such tree, or what `Domain.from_folder` refuses.
    """
    spec, root = LAYOUTS[layout], Path(root)
    if problem := split_problem(layout, split):
        raise UserError(f"{root}: {problem}")
    places = layout_places(layout, split)
    place = next((p for p in places if (root / p.images).is_dir() and (root / p.masks).is_dir()), None)
    if place is None:
        expected = " or ".join(f"{place.images} with {place.masks}" for place in places)
        raise UserError(f"{root}: is no tree of {layout}, in which {expected} would be; give the folder above them")
    domain = Domain.from_folder(root, labels, name, **vars(place))
    return _gtav_pairs(domain, root, split) if spec.listed else domain


def split_problem(layout: str, split: str | float | None) -> str | None:
    """What is wrong with the split of a layout, as `split: ...`."""
    spec = LAYOUTS[layout]
    if split in spec.splits or (split is None and spec.listed):
        return None
    return f"split: found {split}, expected one of {', '.join(spec.splits)} of the layout {layout}"


def layout_places(layout: str, split: str | None) -> list[Place]:
    """Where the releases of a layout have the images and masks of a split."""
    spec = LAYOUTS[layout]
    return [_in_split(place, spec.splits.get(split, "") if split else "") for place in spec.places]


def _in_split(place: Place, folder: str) -> Place:
    return replace(place, images=place.images.format(split=folder), masks=place.masks.format(split=folder))


def _gtav_pairs(domain: Domain, root: Path, split: str | None) -> Domain:
    wanted = domain.ids
    if split is not None:
        frames = _split_mat(root / "split.mat", split)
        if split == "train":
            frames -= _NOT_IN_LISTS
        wanted = [key for key in wanted if key.isdigit() and int(key) in frames]
        if not wanted:
            raise UserError(f"{root}: has none of the frames of the split {split}, such as {min(frames):05d}.png")
    chosen = domain.select(wanted)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        unequal = [text for text in pool.map(_unequal, chosen.dataset) if text]
    left_out = {text.split(":")[0] for text in unequal}
    kept = chosen.select([key for key in wanted if key not in left_out])
    kept.report = replace(domain.report, pairs=len(kept), left_out=unequal)
    return kept


def _unequal(row: dict) -> str | None:
    sizes = []
    for column in ("image", "mask"):
        try:
            with opened(row[column]["path"]) as picture:  # reads the header
                sizes.append(picture.size)
        except (OSError, ValueError):
            return None  # a look at every file says so
    if sizes[0] == sizes[1]:
        return None
    return f"{row['id']}: image {sizes[0][0]} x {sizes[0][1]}, mask {sizes[1][0]} x {sizes[1][1]}"


def _split_mat(path: Path, split: str) -> set[int]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; it is part of GTA5's read_mapping.zip. Put it there, or leave the split out"
        )
    try:
        return {int(frame) for frame in loadmat(path)[f"{split}Ids"].ravel()}
    except (MatReadError, OSError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read as GTA5's splits ({error}); unpack read_mapping.zip again") from error
