"""Facts about other packages that they do not promise, and whether what is installed still has them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

OPTIONAL = ("deepspeed", "peft")


@dataclass(frozen=True)
class Fact:
    """Something of another package that is not promised. The least that is relied on is that it exists.

    Args:
        place (`str`):
            Place of the object, `module:dotted.path`.
        breaks (`str`):
            What follows from a change: `loud` is an error, `silent` is a run that is wrong.
        takes (`str`, *optional*):
            Its parameters in order.
        returns (`int`, *optional*):
            How many values it returns.
        says (`tuple[str, ...]`, *optional*, defaults to `()`):
            What its source contains, in this order; any white space counts as one space.
        value (`Any`, *optional*):
            What it is equal to.
    """

    place: str
    breaks: str
    takes: str | None = None
    returns: int | None = None
    says: tuple[str, ...] = ()
    value: Any = None


def problem(fact: Fact) -> str | None:
    """How what is installed differs from `fact`; `None` where it does not, or an optional package is missing."""
    package = fact.place.partition(":")[0].partition(".")[0]
    if package in OPTIONAL and find_spec(package) is None:
        return None
    try:
        found = _resolve(fact.place)
    except (ImportError, AttributeError) as error:
        return f"is gone ({error})"
    if fact.value is not None and found != fact.value:
        return f"is {found!r}, expected {fact.value!r}"
    if fact.takes is not None:
        takes = " ".join(inspect.signature(found).parameters)
        if takes != fact.takes:
            return f"takes ({takes}), expected ({fact.takes})"
    if fact.returns is not None and (counts := _returned(found)) != {fact.returns}:
        return f"returns {sorted(counts)} values, expected {fact.returns}"
    if fact.says:
        source, place = " ".join(inspect.getsource(found).split()), 0
        for text in fact.says:
            place = source.find(text, place)
            if place < 0:
                return f"has no `{text}` any more, or not in this order"
            place += len(text)
    return None


def _resolve(place: str) -> Any:
    module, _, path = place.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if isinstance(found, property):
        found = found.fget
    return found.func if isinstance(found, cached_property) else found


def _returned(function: Any) -> set[int]:
    """How many values the `return`s of a function have."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    values = [node.value for node in ast.walk(definition) if isinstance(node, ast.Return)]
    return {len(value.elts) if isinstance(value, ast.Tuple) else 1 for value in values}
