"""From a label export to the rows of a domain, in the classes of a label space."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deft_hf.data.annotations.export import Export, Item
from deft_hf.data.annotations.formats import FORMATS, detect, read
from deft_hf.data.constants import IGNORE_INDEX
from deft_hf.data.labels import REST, LabelSpace
from deft_hf.data.report import listed
from deft_hf.data.splitting import take_share
from deft_hf.utils.errors import UserError


@dataclass(frozen=True)
class Rows:
    """The labelled images of an export, or of a split of it.

    Args:
        columns (`dict[str, list[str]]`):
            `id`, path of the `image`, and either path of the `mask` or the `shapes` that it is drawn from.
        labels (`LabelSpace`):
            What the masks hold.
        without_labels (`list[str]`):
            Ids of images that the export does not label.
        without_image (`list[str]`):
            Ids of images that it labels, but that are not there.
        notes (`list[str]`):
            A line for each kind of thing that was left out.
    """

    columns: dict[str, list[str]]
    labels: LabelSpace
    without_labels: list[str]
    without_image: list[str]
    notes: list[str]


def rows(root: Path, labels: LabelSpace | None, form: str | None, split: str | float | None) -> Rows:
    """Reads an export, or a split of it; see `Domain.from_annotations`."""
    if form is None:
        found = detect(root)
        if found is None:
            raise UserError(f"{root}: looks like no label export of a known format ({', '.join(FORMATS)})")
        form = found.format
    elif form not in FORMATS:
        raise UserError(f"annotations: found {form!r}, expected one of {', '.join(FORMATS)}")
    export = read(root, form)
    items = export.of(split if isinstance(split, str) else None, root)
    pairs = [item for item in items if item.labelled and item.image is not None]
    _check_ids(pairs)
    if labels is None and len(export.names) == 1:
        raise UserError(f"{root}: has no shape of any class; give the classes as `labels`")
    space = by_name(labels or LabelSpace(tuple(export.names)), export.names, export.used(pairs), root)
    if isinstance(split, float):
        by_key = {item.key: item for item in pairs}
        pairs = [by_key[key] for key in take_share(by_key, split)]
    columns = {"id": [item.key for item in pairs], "image": [str(item.image) for item in pairs]}
    if all(item.mask is not None for item in pairs):
        columns["mask"] = [str(item.mask) for item in pairs]
        space = _by_value(space, export)
    else:
        columns["shapes"] = [export.cell(item, root) for item in pairs]
    without_labels = [item.key for item in items if not item.labelled]
    without_image = [item.key for item in items if item.labelled and item.image is None]
    return Rows(columns, space, without_labels, without_image, export.problems)


def by_name(labels: LabelSpace, names: Sequence[str], used: Collection[str], root: Path) -> LabelSpace:
    """The space of masks in which an id is the place of a class in a list of names.

    Args:
        labels (`LabelSpace`):
            The classes; `names` and `other_names` are looked at.
        names (`Sequence[str]`):
            The classes of an export.
        used (`Collection[str]`):
            Those of them that its masks may hold, which `labels` must know.
        root (`Path`):
            Its folder, for messages.

    Raises:
        UserError: `labels` does not know some that are used.
    """
    known = labels.label2id | dict(labels.other_names or {})
    if labels.ids is not None and REST in labels.ids:
        known = dict.fromkeys(names, labels.ids[REST]) | known
    if missing := [name for name in names if name in used and name not in known]:
        line = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {IGNORE_INDEX}" for name in missing)
        classes = ", ".join(f"{index} = {name}" for index, name in labels.id2label.items())
        raise UserError(
            f"{root}: has classes that labels.names lacks: {', '.join(missing)}. Name them there, or say in "
            f"labels.ids which class each is; ids: {{{line}}} ignores them ({classes}, {IGNORE_INDEX} = ignored)"
        )
    ids = {index: known[name] for index, name in enumerate(names) if name in known}
    return replace(labels, ids=ids, colors=None, other_names=None)


def _by_value(space: LabelSpace, export: Export) -> LabelSpace:
    """The space of masks that the export has, with its ids or colours."""
    assert space.ids is not None and export.values is not None
    train_ids = {name: space.ids.get(index, IGNORE_INDEX) for index, name in enumerate(export.names)}
    values = {value: IGNORE_INDEX if name is None else train_ids[name] for value, name in export.values.items()}
    by_id = all(isinstance(value, int) for value in values)
    return replace(space, ids=values if by_id else None, colors=None if by_id else values)


def _check_ids(pairs: Sequence[Item]) -> None:
    times = Counter(item.key for item in pairs)
    if repeated := [key for key, count in times.items() if count > 1]:
        first = [item for item in pairs if item.key == repeated[0]]
        places = [f"{item.source} (split {', '.join(item.splits)})" if item.splits else item.source for item in first]
        raise UserError(
            f"{len(repeated)} images are labelled more than once, such as {repeated[0]} by {listed(places)}; name a "
            "split, or keep one of them"
        )
