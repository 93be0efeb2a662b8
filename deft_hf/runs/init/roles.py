"""Which of the places that were found is trained on, which chosen on, and which only scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deft_hf.data.classes import Classes
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.likeness import split_of
from deft_hf.data.splitting import long_sequences, look_alikes, take_share
from deft_hf.data.survey import PairFacts
from deft_hf.runs.init.sources import Part, Sources
from deft_hf.utils.errors import UserError

_SHARES = (0.2, 0.25, 0.3, 0.15)
_PLACES_AT_MOST = 12  # more are samples or sequences of one set


@dataclass(frozen=True)
class Line:
    """An entry of a section of a recipe.

    Attributes:
        entry (`dict[str, Any]`):
            The entry.
        why (`str`):
            Why it stands there.
        off (`bool`, *optional*, defaults to `False`):
            Whether it is commented out.
    """

    entry: dict[str, Any]
    why: str
    off: bool = False


@dataclass
class Roles:
    """The sections `source`, `validation` and `unseen` of a recipe.

    Attributes:
        source (`list[Line]`, *optional*, defaults to `[]`):
            To train on.
        validation (`list[Line]`, *optional*, defaults to `[]`):
            To choose a checkpoint on.
        unseen (`list[Line]`, *optional*, defaults to `[]`):
            To be scored only.
        training_images (`int`, *optional*, defaults to `0`):
            How many images are trained on.
        shown (`list[tuple[str, Part]]`, *optional*, defaults to `[]`):
            For a picture, each labelled part under its section.
        notes (`list[str]`, *optional*, defaults to `[]`):
            What a person should know.
    """

    source: list[Line] = field(default_factory=list)
    validation: list[Line] = field(default_factory=list)
    unseen: list[Line] = field(default_factory=list)
    training_images: int = 0
    shown: list[tuple[str, Part]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def assign_roles(sources: Sources) -> Roles:
    """Trains on the place with most labelled images; others are unseen, and some of its own are held out.

    Raises:
        UserError: There are too few images, or none of one class, to hold some out.
    """
    roles = Roles()
    places: dict[str, list[Part]] = {}
    for part in sources.labelled:
        places.setdefault(part.place, []).append(part)
    if len(places) > _PLACES_AT_MOST and all(part.split is None for part in sources.labelled):
        _many(roles, places)
    else:
        order = sorted(places, key=lambda key: (_only_scored(places[key]), -sum(part.count for part in places[key])))
        if _only_scored(places[order[0]]):
            entry = places[order[0]][0].entry
            raise UserError(
                f"{entry['folder']}: has nothing to train on, only the split {entry['split']} of {entry['layout']}; "
                "unpack its training split, or train on another place and name this one in unseen"
            )
        _main(roles, places[order[0]], sources.classes, others=len(order) - 1)
        for place in order[1:]:
            official = [part for part in places[place] if "layout" in part.entry and part.split == "val"]
            for part in official or places[place]:
                name = place if len(places[place]) == 1 else f"{place}_{part.split or 'rest'}"
                _put(roles, "unseen", part, name, f"another place, {part.count} labelled images: only ever scored")
    taken = {
        line.entry.get("name", Path(line.entry.get("folder", line.entry.get("hub", ""))).name)
        for line in roles.unseen + roles.validation
    }
    homes = [
        Path(part.entry["folder"], part.entry.get("images", "."))
        for part in sources.labelled
        if "folder" in part.entry
    ]
    for part in (part for part in sources.parts if part.domain is None):
        images = Path(part.entry.get("folder", part.entry.get("hub", "")), part.entry.get("images", "."))
        entry = {**part.entry, "labels": "none"}
        if (name := part.place if part.place not in taken else f"{part.place}_unlabelled") != images.name:
            entry["name"] = name
        taken.add(name)
        nested = "folder" in part.entry and any(
            images.is_relative_to(home) or home.is_relative_to(images) for home in homes
        )
        why = f"{part.count} images without labels: looked at, never scored"
        if nested:
            roles.notes.append(
                f"{images}: {part.count} images without labels lie among labelled ones; to use them as "
                "an unseen place, move that folder out and name it in the recipe"
            )
        roles.unseen.append(Line(entry, why + ("; move them out of the labelled ones" if nested else ""), off=nested))
    return roles


def _only_scored(parts: Sequence[Part]) -> bool:
    """Whether a place is an official tree of which only what is there to be scored was unpacked."""
    return all("layout" in part.entry and part.split not in ("train", None) for part in parts)


def _put(roles: Roles, section: str, part: Part, name: str, why: str, **changes: Any) -> None:
    entry = {**part.entry, **changes}
    if Path(entry.get("folder", entry.get("hub", ""))).name != name:
        entry["name"] = name
    getattr(roles, section).append(Line(entry, why))
    roles.shown.append((section, part))


def _many(roles: Roles, places: dict[str, list[Part]]) -> None:
    held_out = set(take_share(places, -_SHARES[0]))
    for place, (part, *_) in places.items():
        if place in held_out:
            _put(roles, "validation", part, place, f"{part.count} images, held out")
        else:
            _put(roles, "source", part, place, f"{part.count} images")
            roles.training_images += part.count


def _main(roles: Roles, parts: Sequence[Part], classes: Classes, others: int) -> None:
    by_split = {part.split or "train": part for part in parts}
    train = by_split.get("train") or max(parts, key=lambda part: part.count)
    name = train.place
    most = " (the place with most of them; to train on others too, move them here)" if others else ""
    if (listed := _listed(train)) and "val" not in by_split:
        counts = {split: len(ids) for split, ids in listed.items()}
        _put(roles, "source", train, name, f"{counts['train']} images that split.json lists{most}", split="train")
        _put(roles, "validation", train, name, f"{counts['val']} images, as split.json says", split="val")
        if "test" in listed:
            why = f"{counts['test']} images: only ever scored"
            _put(roles, "unseen", train, f"{name}_test", why, split="test")
        roles.training_images = counts["train"]
        return
    if "val" in by_split and by_split["val"] is not train and _scorable(by_split["val"], classes):
        val = by_split["val"]
        _put(roles, "source", train, name, f"{train.count} labelled images{most}")
        own = str(val.entry.get("split", ""))
        only = f" {own}: it has none but this to choose on" if split_of(own) == "test" else ""
        _put(roles, "validation", val, name, f"{val.count} images of the set's own split{only}")
        roles.training_images = train.count
    elif "hub" not in train.entry and "split" in train.entry:
        raise UserError(
            f"{train.entry['folder']}: has the split {train.entry['split']}, but none with two classes or more to "
            "choose a checkpoint on, and of one split alone nothing can be held out; add labelled images as its split "
            f"{by_split['val'].entry['split'] if 'val' in by_split else 'val'}"
        )
    else:
        share, held_out, why = _share(roles, train, classes)
        rest: dict[str, Any] = {}
        last: dict[str, Any] = {"split": share}
        if "hub" in train.entry:
            rest, last = _cut(train.entry["split"], share)
        _put(roles, "source", train, name, f"{train.count - held_out} of {train.count} labelled images{most}", **rest)
        _put(roles, "validation", train, name, why, **last)
        roles.shown.pop()
        roles.training_images = train.count - held_out
    for split, part in by_split.items():
        if part is not train and split not in ("train", "val"):
            _put(roles, "unseen", part, f"{name}_{split}", f"{part.count} images of the split {split}: only scored")


def _cut(split: str, share: float) -> tuple[dict[str, str], dict[str, str]]:
    """A split of a data set in the Hub's format in two, as `datasets` slices it."""
    percent = round(100 * (1 - share))
    return {"split": f"{split}[:{percent}%]"}, {"split": f"{split}[{percent}%:]"}


def _scorable(part: Part, classes: Classes) -> bool:
    return len(classes_of(part.pairs, classes).keys() - {IGNORE_INDEX}) > 1


def _listed(part: Part) -> dict[str, list[str]] | None:
    """The splits of a split.json beside the images, where it has both that are needed."""
    if "annotations" in part.entry or "folder" not in part.entry:
        return None
    try:
        listed = json.loads(Path(part.entry["folder"], "split.json").read_text("utf-8"))
        known = {pair.id for pair in part.pairs}
        whole = all(set(listed[split]) <= known and listed[split] for split in ("train", "val"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return listed if whole else None


def _share(roles: Roles, part: Part, classes: Classes) -> tuple[float, int, str]:
    """The share to hold out, how many images that is, and why."""
    ids = part.domain.ids if part.domain is not None else []
    if len(ids) < 2:
        raise UserError(
            f"{part.place}: found one labelled image, which cannot be both trained and chosen on; label a second one"
        )
    present = {pair.id: {train for train in classes.train_ids(pair) if train != IGNORE_INDEX} for pair in part.pairs}
    everywhere = set().union(*present.values())
    best: tuple[tuple[bool, int], float, int, set[int]] | None = None
    for share in _SHARES:
        start = round(round(100 * (1 - share)) * len(ids) / 100)
        held_out = set(ids[start:] if "hub" in part.entry else take_share(ids, -share))
        both = [
            set().union(*(found for key, found in present.items() if (key in held_out) is side))
            for side in (True, False)
        ]
        missing = everywhere - (both[0] & both[1])
        badness = min(map(len, both)) < 2, len(missing)
        if best is None or badness < best[0]:
            best = badness, share, len(held_out), missing
    assert best is not None
    (useless, _), share, chosen, missing = best
    if useless:
        raise UserError(
            f"{part.place}: no share of its {len(ids)} images has two classes on both sides, which a score needs; "
            "label more images"
        )
    groups = look_alikes(ids)
    if "hub" in part.entry:
        how = "the last rows, since neighbours may look alike"
    elif len(groups) == len(ids):
        how = "drawn image by image: no two names look like neighbours"
    elif cut := long_sequences(groups):
        how = "the end of " + ("the sequence" if len(groups) == 1 else "each long sequence")
        how += ", since neighbours look alike" if len(cut) == len(groups) else ", and whole groups of look-alikes"
    else:
        how = f"{len(groups)} groups of look-alike names (sequences, tiles, copies), each on one side"
    names = classes.space.names
    if missing:
        lost = ", ".join(names[index] for index in sorted(missing))
        roles.notes.append(f"no split has every class on both sides; missing from one: {lost}")
        how += f"; without {lost} on one side"
    return share, chosen, f"{chosen} of {len(ids)} images, {how}"


def classes_of(pairs: Sequence[PairFacts], classes: Classes) -> dict[int, int]:
    """Pixels of each class in some pairs, the ignored ones at 255."""
    total: dict[int, int] = {}
    for pair in pairs:
        for train, count in classes.train_ids(pair).items():
            total[train] = total.get(train, 0) + count
    return total
