"""A look at every pair of a domain, of which those that an earlier start found to be well are not opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import datasets

from deft_hf.data import kept
from deft_hf.data.report import Finding
from deft_hf.data.shared_work import anywhere, looked_at


def findings(
    rows: datasets.Dataset,
    look: Callable[[int], Finding],
    description: str,
    progress: bool,
    shared: bool,
    cached: bool,
    *settings: Any,
) -> Iterator[Finding]:
    """What there is to say of each pair, in order.

    Args:
        rows (`datasets.Dataset`):
            The pairs.
        look (`Callable[[int], Finding]`):
            Opens the files of the pair at a position.
        description (`str`):
            As for [`~deft_hf.data.shared_work.looked_at`].
        progress (`bool`):
            As for [`~deft_hf.data.shared_work.looked_at`].
        shared (`bool`):
            As for [`~deft_hf.data.shared_work.looked_at`].
        cached (`bool`):
            Whether to take what an earlier check found in pairs where all was well, as long as their files were not
            touched since; and to keep it.
        settings (`Any`):
            What findings depend on beside the files.
    """
    listed, stamps = kept.stamps(rows) if cached else ("", [None] * len(rows))
    name = kept.name_of(listed, *settings) if cached else None
    known = _intact(kept.read("pairs", name))
    to_open = anywhere((index for index, stamp in enumerate(stamps) if stamp not in known), shared)
    new, found, contents = set(to_open), {}, []
    with closing(looked_at(lambda at: look(to_open[at]), len(to_open), description, progress, shared)) as looks:
        for index, stamp in enumerate(stamps):
            finding = next(looks) if index in new else Finding.from_kept(known[stamp])
            contents.append(finding.contents)
            if stamp is not None and finding.is_clean:
                found[stamp] = finding.to_kept()
            yield finding
    if not (cached and to_open):
        return
    now = kept.stamps(rows)[1]
    kept.write("pairs", name, {stamp: found[stamp] for stamp in now if stamp in found})
    if now == stamps:
        kept.write("contents", kept.joined(stamps), contents)


def _intact(pairs: Any) -> dict[str | None, Any]:
    """What is kept of pairs by stamp, without what is damaged, which is looked at again."""

    def reads(entry: Any) -> bool:
        try:
            return Finding.from_kept(entry).is_clean
        except (TypeError, ValueError, LookupError, AttributeError):
            return False

    return {stamp: entry for stamp, entry in pairs.items() if reads(entry)} if isinstance(pairs, dict) else {}
