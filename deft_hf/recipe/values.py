"""Values of recipes: what YAML leaves text becomes what a type asks for, and what a type allows is said in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MISTAKE = "mistake"
SHOWN_AT_MOST = 12
TEXT = "text"
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: TEXT,
    NoneType: "null",
    dict: "a mapping",
}


def mistake(text: str) -> PydanticCustomError:
    """The error for a validator to raise, with the text that follows `FILE: KEY: ` in the user's line."""
    return PydanticCustomError(MISTAKE, "{text}", {"text": text})


def found(value: object) -> str:
    """`found VALUE`, near enough to how the user wrote it, and short."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except TypeError:  # a date as a key
        text = str(value)
    return "found " + (text if len(text) <= 80 else text[:77] + "...")


def nearest(word: object, names: Iterable[str]) -> str:
    """`; did you mean NAME?` if one of the names is near, else nothing."""
    names = list(names)
    close = [name for name in names if name.startswith(str(word))] or get_close_matches(str(word), names, n=1)
    return f"; did you mean {close[0]}?" if close and word != "" else ""


# ---- what stands beside a type in `Annotated`


@dataclass(frozen=True)
class Expected:
    """What a value must be, in words for error messages, where the type alone does not say it well."""

    text: str


@dataclass(frozen=True, eq=False)
class OneOf:
    """The text must be one of the names when it is validated: a registry may grow until then.

    Args:
        names (`Collection[str]`):
            The names, or a registry with these keys.
    """

    names: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, word: str) -> str:
        if word not in self.names:
            raise ValueError(f"{word} is none of the names")
        return word


_Pair = TypeVar("_Pair", bound=tuple[float, float])


def rising(pair: _Pair) -> _Pair:
    """Refuses a pair whose first number is the larger one."""
    if pair[0] > pair[1]:
        raise ValueError("the first is the larger one")
    return pair


Positive = Annotated[int, Field(gt=0), Expected("a whole number above 0")]
Size = Annotated[tuple[Positive, Positive], Expected("[height, width], two whole numbers above 0")]


def _sides(size: Any) -> Any:
    if isinstance(size, dict) and not (size and {*size} <= {"short", "long"}):
        raise ValueError("unknown sides")
    if isinstance(size, dict) and len(size) == 2 and size["short"] > size["long"]:
        raise ValueError("the shorter side is the longer one")
    return size


EvalSize = Annotated[
    tuple[Positive, Positive] | dict[str, Positive] | Literal["own"],
    AfterValidator(_sides),
    Expected("[height, width], {short: N}, {long: N} or {short: N, long: M}, whole numbers above 0, or own"),
]


# ---- from YAML to a type


def convert(hint: Any, value: Any) -> Any:
    """The value as the type wants it where YAML could not know that; a value that does not fit comes back as it is.

    `6e-5` is text in YAML 1.1, `no` is false, and there are lists but no tuples. Strict validation follows.

    Args:
        hint (`Any`):
            A type annotation. Under `Any` (not `object`) text of the form `1e-7` becomes a number.
        value (`Any`):
            What YAML made of the text.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return convert(members[0], value)
    if origin in (Union, UnionType):
        if any(_fits(member, value) for member in members):
            members = tuple(member for member in members if _fits(member, value))
        converted = (convert(member, value) for member in members)
        return next((new for new in converted if new is not value), value)
    if isinstance(value, list):
        return _convert_list(origin or hint, members, value)
    if isinstance(value, dict):
        inside = Any if hint in (Any, dict) else members[1] if origin is dict else object
        return {key: convert(inside, item) for key, item in value.items()}
    if is_enum(hint):
        word = "no" if value is False else value  # how everybody writes `eval_strategy: no`
        return hint(word) if word in choices(hint) else value
    if get_origin(hint) is Literal and isinstance(value, bool):
        return "no" if value is False and "no" in members else str(value)  # 0 and 1 are equal to them
    if hint is Any and isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return _NUMBERS[hint](value) if hint in _NUMBERS else value


def _convert_list(hint: Any, members: tuple[Any, ...], value: list[Any]) -> Any:
    if hint is tuple:
        fits = len(value) == len(members)
        return tuple(convert(*pair) for pair in zip(members, value, strict=True)) if fits else value
    inside = Any if hint is Any else members[0] if hint is list and members else object
    return [convert(inside, item) for item in value]


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _fits(get_args(hint)[0], value)
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _whole_number(value: Any) -> Any:
    number = _number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


_NUMBERS: dict[Any, Callable[[Any], Any]] = {int: _whole_number, float: _number}


# ---- from a type to words


def is_enum(hint: Any) -> bool:
    """Whether the type is an enumeration."""
    return isinstance(hint, type) and issubclass(hint, Enum)


def choices(hint: Any) -> list[str]:
    """The words that a type allows, at whatever depth."""
    if is_enum(hint):
        return [member.value for member in hint]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    if get_origin(hint) is Annotated and (named := _first(OneOf, get_args(hint))):
        return [*named.names]
    return [choice for member in get_args(hint) for choice in choices(member)]


def describe(hint: Any, at_most: int | None = SHOWN_AT_MOST) -> str:
    """What a type allows, in words: `a whole number, or null`.

    Args:
        hint (`Any`):
            A type annotation.
        at_most (`int`, *optional*, defaults to `12`):
            How many words of a choice to show; `None` for all.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if expected := _first(Expected, members):
            return expected.text
        return _one_of(choices(hint), at_most) if _first(OneOf, members) else describe(members[0], at_most)
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(describe(member, at_most) for member in members))
    if origin is list:
        return f"a list, each item {describe(members[0], at_most)}"
    return _one_of(choices(hint), at_most) or _WORDS.get(origin or hint, _WORDS[dict])


def _one_of(words: list[str], at_most: int | None) -> str:
    more = ", ..." if len(words) > len(words[:at_most]) else ""
    return "one of " + ", ".join(words[:at_most]) + more if words else ""


_Marker = TypeVar("_Marker", Expected, OneOf)


def _first(kind: type[_Marker], items: Iterable[Any]) -> _Marker | None:
    return next((item for item in items if isinstance(item, kind)), None)
