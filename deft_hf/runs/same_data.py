"""Whether a run resumes on the data that it was started on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from deft_hf.data.roles import Domains
from deft_hf.runs.provenance import data_lists, same_list
from deft_hf.utils.console import say
from deft_hf.utils.errors import UserError
from deft_hf.utils.files import DATA_LISTS, METRICS
from deft_hf.utils.integrity import checkpoints, replace_text

Lists = Mapping[str, Sequence[Mapping[str, Any]]]
"""By section of a recipe, its domains as `data_lists` gives them."""


def claim_data(
    folder: Path,
    methods: Collection[Path],
    domains: Domains,
    resume_anyway: bool = False,
    transform: Mapping[str, str] | None = None,
) -> None:
    """Notes which images a run is made of; where it was started on others, treats them as a changed recipe.

    Args:
        folder (`Path`):
            The output folder, claimed.
        methods (`Collection[Path]`):
            The folders of its methods.
        domains (`Domains`):
            The data, loaded.
        resume_anyway (`bool`, *optional*, defaults to `False`):
            Resume on other images than the run was started on, and name the differences.
        transform (`Mapping[str, str]`, *optional*):
            Name and hash of the user's own transform.

    Raises:
        UserError: Something was trained on other images.
    """
    noted = folder / DATA_LISTS
    state = PartialState()
    lists: list[Any] = [None]
    if state.is_main_process:  # which has the digests from the check, or else reads every file
        lists = [data_lists(source=domains.source, validation=domains.validation, unseen=domains.unseen)]
    (present,) = broadcast_object_list(lists)
    if transform is not None:
        present["transform"] = [dict(transform)]
    before = _read(noted)
    started = any(any(checkpoints(method)) or (method / METRICS).is_file() for method in methods)
    differences = list(data_differences(before, present)) if started and before is not None else []
    if differences:
        found = f"{folder}: the data changed since the run was started: {'; '.join(differences)}"
        if done := [path for path in (method / METRICS for method in methods) if path.is_file()]:
            raise UserError(
                f"{found}. It has results on the data before ({done[0]}), with which others would not compare; choose "
                "another training.output_dir."
            )
        if not resume_anyway:
            raise UserError(
                f"{found}. Choose another training.output_dir, or remove the folder; --resume-anyway resumes on the "
                "changed data."
            )
        say(f"warning: {found}")
    state.wait_for_everyone()  # every process has looked before one writes
    if state.is_main_process and present != before:
        replace_text(noted, json.dumps(present, indent=2) + "\n")


def data_differences(before: Lists, now: Lists) -> Iterator[str]:
    """In words, what differs between the data of two starts, domain by domain.

    Args:
        before (`Mapping`):
            What `data_lists` gave then.
        now (`Mapping`):
            What it gives now.
    """
    for section, domains in now.items():
        for old, new in zip_longest(before.get(section, ()), domains):
            if old is None or new is None or old.get("name") != new["name"]:
                yield f"{section} has the domains {_names(domains)}, before {_names(before.get(section, ()))}"
                break
            if old.get("images") != new.get("images"):
                yield f"{new['name']} of {section} has {new['images']} images, before {old.get('images')}"
            elif not same_list(old, new):
                what = f"images or masks ({new['images']} as before)" if "images" in new else "source code"
                yield f"{new['name']} of {section} has other {what}"


def _names(domains: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(domain.get("name")) for domain in domains) or "none"


def _read(path: Path) -> Lists | None:
    """What was noted; `None` where nothing was, by an earlier version, or nothing that can be read."""
    try:
        lists = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(lists, dict) and all(
        isinstance(section, list) and all(isinstance(domain, dict) for domain in section) for section in lists.values()
    )
    return lists if known else None
