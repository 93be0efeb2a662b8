"""What other installed packages add, named as entry points."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any


def load_extensions(group: str, kind: str, register: Callable[[Any], Any]) -> None:
    """Register what installed packages name in a group of entry points; a broken one is a warning.

    Args:
        group (`str`):
            Name of the group.
        kind (`str`):
            What is registered, in a word.
        register (`Callable`):
            Takes what an entry point names.
    """
    for point in entry_points(group=group):
        try:
            register(point.load())
        except Exception as error:  # of another package: it must not take the commands with it
            warnings.warn(f"the {kind} {point.name} of {point.value} cannot be loaded: {error}", stacklevel=2)
