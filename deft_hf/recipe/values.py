"""Strict values and sections for recipes: types that coerce what YAML leaves text, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

_MISTAKE = "mistake"
_SHOWN_AT_MOST = 12
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    dict: "a mapping",
}


def mistake(text: str) -> PydanticCustomError:
    """The error for a validator to raise, with the text that follows `FILE: KEY: ` in the user's line."""
    return PydanticCustomError(_MISTAKE, "{text}", {"text": text})


def found(value: object) -> str:
    """`found VALUE`, near enough to how the user wrote it, and short."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return "found " + (text if len(text) <= 80 else text[:77] + "...")


def nearest(word: object, names: Iterable[str]) -> str:
    """`; did you mean NAME?` if one of the names is near, else nothing."""
    names = list(names)
    close = [name for name in names if name.startswith(str(word))] or get_close_matches(str(word), names, n=1)
    return f"; did you mean {close[0]}?" if close and word != "" else ""


# ---- values: a `description` says what is expected, where the bare type does not say it well


def _number(value: object) -> object:
    # YAML 1.1 reads 6e-5 as a string, and Python counts true and false among the integers.
    if isinstance(value, bool):
        raise ValueError("a boolean is no number")
    return float(value) if isinstance(value, str) else value


def rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first is the larger one")
    return pair


def _numbers_inside(value: Any) -> Any:
    # `lr_scheduler_kwargs: {lr_end: 1e-7}`: no field type tells that the string is a number, so its form must.
    if isinstance(value, dict):
        return {key: _numbers_inside(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_inside(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
FreeMapping = Annotated[dict[str, Any], AfterValidator(_numbers_inside)]
Positive = Annotated[Integer, Field(gt=0, description="a whole number above 0")]
Size = Annotated[tuple[Positive, Positive], Field(description="[height, width], two whole numbers above 0")]


def _strict_type(hint: Any) -> Any:
    """The strict counterpart of the type of a dataclass field."""
    if get_origin(hint) in (Union, UnionType):
        members = get_args(hint)
        if any(_is_enum(member) for member in members):
            # `SchedulerType | str` means the enum or the way it is written; as a union it would let every text pass.
            members = tuple(member for member in members if member is not str)
        return Union[tuple(_strict_type(member) for member in members)]  # noqa: UP007 (members known at run time only)
    if _is_enum(hint):
        # `eval_strategy: no` is how everybody writes it, and YAML reads that as false.
        return Annotated[hint, BeforeValidator(lambda value: "no" if value is False else value)]
    if get_origin(hint) is dict:
        return FreeMapping
    return {bool: StrictBool, int: Integer, float: Number, dict: FreeMapping}.get(hint, hint)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _choices(hint: Any) -> list[str]:
    """The words that a type allows, at whatever depth."""
    if _is_enum(hint):
        return [member.value for member in hint]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [choice for member in get_args(hint) for choice in _choices(member)]


def _describe(hint: Any) -> str:
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        descriptions = [item.description for item in members[1:] if isinstance(item, FieldInfo) and item.description]
        return descriptions[0] if descriptions else _describe(members[0])
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(_describe(member) for member in members))
    if origin is list:
        return f"a list, each item {_describe(members[0])}"
    if choices := _choices(hint):
        return "one of " + ", ".join(choices[:_SHOWN_AT_MOST]) + (", ..." if len(choices) > _SHOWN_AT_MOST else "")
    return _WORDS.get(origin or hint, _WORDS[dict])


# ---- sections


class Section(BaseModel):
    """A mapping in a recipe. Every mistake in it is one error: `loc` is the key, `msg` the text for the user."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_enum_values=True)

    advice: ClassVar[dict[str, str]] = {}
    """What to tell those who write a key that this section does not have, or has no longer."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: Any) -> Any:
        try:
            return handler(values)
        except ValidationError as error:
            mistakes: dict[tuple, PydanticCustomError] = {}  # by key: pydantic reports each member of a union
            for detail in error.errors():
                loc = detail["loc"]
                if detail["type"] == _MISTAKE:
                    mistakes[loc] = mistake(detail["msg"])
                elif loc:
                    mistakes[loc[:1]] = mistake(cls._what_is_wrong(loc[0], values))
                else:
                    mistakes[loc] = mistake(f"{found(values)}, expected a mapping{cls._keys(' with the keys')}")
            lines = [InitErrorDetails(type=text, loc=loc, input=values) for loc, text in mistakes.items()]
            raise ValidationError.from_exception_data(cls.__name__, lines) from None

    @classmethod
    def _what_is_wrong(cls, key: Any, values: dict) -> str:
        if key not in cls.model_fields:
            if key in cls.advice:
                return f"unknown key; {cls.advice[key]}"
            return "unknown key" + (nearest(key, cls.model_fields) or cls._keys(", expected one of"))
        field = cls.model_fields[key]
        expected = field.description or _describe(field.annotation)
        if key not in values:
            return f"missing, expected {expected}"
        value = values[key]
        text = f"{found(value)}, expected {expected}"
        choices = _choices(field.annotation)
        wrong = [word for word in (value if isinstance(value, list) else [value]) if word not in choices]
        if choices and wrong:
            text += nearest(wrong[0], choices)
        elif expected.startswith(_WORDS[str]) and not isinstance(value, list | dict | NoneType):
            text += "; put it in quotes"
        return text

    @classmethod
    def _keys(cls, before: str) -> str:
        keys = list(cls.model_fields)
        return f"{before} {', '.join(keys)}" if len(keys) <= _SHOWN_AT_MOST else ""


def section_of(name: str, arguments: type, /, leave_out: Iterable[str], **own: Any) -> type[Section]:
    """A section with the fields of a dataclass, so that no field is listed twice.

    Args:
        name: Name of the new class.
        arguments: The dataclass. A field's `choices` in its metadata are the only values that it takes.
        leave_out: Fields of the dataclass that the section does not have.
        own: Fields that the dataclass lacks or declares otherwise, as `create_model` takes them; they come first.
    """
    hints = get_type_hints(arguments)
    fields = dict(own)
    for field in dataclasses.fields(arguments):
        if field.name not in own and field.name not in leave_out:
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            fields[field.name] = (_field_type(hints[field.name], field.metadata.get("choices")), default)
    return create_model(name, __base__=Section, **fields)


def _field_type(hint: Any, choices: Iterable[str] | None) -> Any:
    if choices is None:
        return _strict_type(hint)
    words = Literal[tuple(choices)]
    return words | None if NoneType in get_args(hint) else words
