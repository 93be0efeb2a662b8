"""What `init` says of folders that nothing can be made of."""

from __future__ import annotations

from pathlib import Path

from deft_hf.data.survey import Survey
from deft_hf.data.tree import Place


def without_labels(folder: Path, places: list[Place]) -> str:
    """The message for a folder of images alone.

    Args:
        folder (`Path`):
            The folder.
        places (`list[Place]`):
            Where images are in it.
    """
    count = sum(place.pairs for place in places)
    if rows := next((path for path in sorted(folder.rglob("labels/**/*.txt"))), None):
        return (
            f"{folder}: found {count} images, and text files such as {rows}, as YOLO has them, but no YAML file with "
            "`names` and `train`; put it there, or name the folder that has it"
        )
    return (
        f"{folder}: found {count} images and no labels; expected a mask for each in a folder of its own (images/a.jpg "
        "with masks/a.png), beside it under a longer name (a.jpg with a_mask.png), or an export of a labelling tool. "
        "Images without labels can only be looked at: give them as a place beside labelled ones"
    )


def unusable(folder: Path, found: Survey) -> str:
    """The message for a folder with files that training would stop at.

    Args:
        folder (`Path`):
            The folder.
        found (`Survey`):
            What its pairs hold.
    """
    first = f"{folder}: found files that cannot be used among {len(found.pairs)} sound pairs"
    problems = [*found.unfit, *found.unreadable]
    shown = [f"  {problem}" for problem in problems[:8]]
    more = [f"  and {len(problems) - 8} more"] if len(problems) > 8 else []
    return "\n".join([first, *shown, *more, "repair or remove these files"])
