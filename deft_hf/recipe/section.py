"""What all sections of a recipe have in common: strict values, and one line for every mistake."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

from deft_hf.recipe.values import (
    MISTAKE,
    SHOWN_AT_MOST,
    TEXT,
    choices,
    convert,
    describe,
    found,
    is_enum,
    mistake,
    nearest,
)

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, use_enum_values=True)


class Section(BaseModel):
    """A mapping in a recipe. Every mistake in it is one error: `loc` is the key, `msg` the text for the user."""

    model_config = ConfigDict(extra="forbid", **_CONFIG)

    advice: ClassVar[dict[str, str]] = {}
    """What to tell those who write a key that this section does not have, or has no longer."""

    @classmethod
    def keys(cls) -> dict[str, FieldInfo]:
        """The keys of the section, those among them that are known only when it is validated."""
        return cls.model_fields

    @classmethod
    def advice_on(cls, key: str) -> str | None:
        """What to tell somebody who writes a key that this section does not have."""
        return cls.advice.get(key)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: Any) -> Any:
        if isinstance(values, cls):
            return values
        if not isinstance(values, dict):
            raise cls._error({(): f"{found(values)}, expected a mapping{cls._list_keys(' with the keys')}"}, values)
        keys = cls.keys()
        if other := [key for key in values if not isinstance(key, str)]:  # numbers, dates, null
            raise cls._error({(str(key),): cls._unknown(str(key)) for key in other}, values)
        mistakes: dict[tuple[Any, ...], str] = {}  # by key: pydantic reports each member of a union
        converted = {key: convert(hint_of(keys[key]), item) if key in keys else item for key, item in values.items()}
        for key in values:
            if key not in keys:
                mistakes[(key,)] = cls._unknown(key)
            elif keys[key] is not cls.model_fields.get(key):
                try:
                    converted[key] = _adapter(hint_of(keys[key])).validate_python(converted[key])
                except ValidationError:
                    mistakes[(key,)] = what_is_wrong(keys[key], values[key])
        section = None
        try:
            section = handler(converted)
        except ValidationError as error:
            for detail in error.errors():
                loc = detail["loc"]
                if detail["type"] == MISTAKE:
                    mistakes[loc] = detail["msg"]
                elif loc[0] not in values:
                    mistakes[loc[:1]] = f"missing, expected {expected(keys[str(loc[0])])}"
                elif loc[:1] not in mistakes:
                    mistakes[loc[:1]] = what_is_wrong(keys[str(loc[0])], values[loc[0]])
        if mistakes:
            raise cls._error(mistakes, values)
        return section

    @classmethod
    def _unknown(cls, key: Any) -> str:
        if advice := cls.advice_on(key):
            return f"unknown key; {advice}"
        return "unknown key" + (nearest(key, cls.keys()) or cls._list_keys(", expected one of"))

    @classmethod
    def _list_keys(cls, before: str) -> str:
        keys = list(cls.model_fields)
        return f"{before} {', '.join(keys)}" if len(keys) <= SHOWN_AT_MOST else ""

    @classmethod
    def _error(cls, mistakes: dict[tuple[Any, ...], str], values: Any) -> ValidationError:
        lines = [InitErrorDetails(type=mistake(text), loc=loc, input=values) for loc, text in mistakes.items()]
        return ValidationError.from_exception_data(cls.__name__, lines)


def hint_of(field: FieldInfo) -> Any:
    """The annotation of a field with what stood beside it."""
    hint: Any = field.annotation
    for beside in field.metadata:
        hint = Annotated[hint, beside]
    return hint


def expected(field: FieldInfo) -> str:
    """What the field takes, in words."""
    return describe(hint_of(field))


def what_is_wrong(field: FieldInfo, value: Any) -> str:
    """`found VALUE, expected ...`, with the nearest of the words that the field takes."""
    text = f"{found(value)}, expected {expected(field)}"
    words = choices(hint_of(field))
    wrong = [word for word in (value if isinstance(value, list) else [value]) if word not in words]
    if words and wrong:
        text += nearest(wrong[0], words)
    elif expected(field).startswith(TEXT) and not isinstance(value, list | dict | NoneType):
        text += "; put it in quotes"
    return text


def fields_of(arguments: type[Any]) -> dict[str, FieldInfo]:
    """The fields of a dataclass as those of a section, with `help` and `choices` from their metadata.

    Args:
        arguments (`type`):
            The dataclass.
    """
    hints, fields = get_type_hints(arguments), {}
    for field in dataclasses.fields(arguments):
        factory = field.default_factory
        fields[field.name] = FieldInfo(
            annotation=_annotation(hints[field.name], field.metadata.get("choices")),
            default=field.default if factory is dataclasses.MISSING else factory(),
            description=field.metadata.get("help"),
        )
    return fields


def _annotation(hint: Any, words: Any) -> Any:
    if words is not None:
        literal: Any = Literal[tuple(words)]
        return literal | None if NoneType in get_args(hint) else literal
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = [dict if _is_mapping(member) else member for member in get_args(hint)]
    if any(is_enum(member) for member in members):
        # `SchedulerType | str` means the enum or the way it is written; as a union it would let every text pass.
        members.remove(str)
    return Union[tuple(members)]  # noqa: UP007 (known at run time only)


def _is_mapping(hint: Any) -> bool:
    return get_origin(hint) is dict or dataclasses.is_dataclass(hint)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_CONFIG)
