"""The model that travels with the package: a tiny SegFormer, for a first run without a network."""

from __future__ import annotations

import os
from importlib.resources import files

EMBEDDED = "embedded"


def resolved(name: str) -> str:
    """What `from_pretrained` takes for a model's name: a Hub name, or the path of a folder.

    Args:
        name (`str`):
            A Hub name, a folder (`~` is expanded), or `embedded`.
    """
    if name == EMBEDDED:
        return str(files("deft_hf") / "assets" / "tiny-segformer")
    return os.path.expanduser(name)
