"""Reads a recipe's YAML and lays the overrides of the command line over it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from deft_hf.recipe.values import found
from deft_hf.utils.errors import UserError

_LARGEST = 100_000  # values of a recipe
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


def read_recipe(path: str | os.PathLike, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe as written, overrides included, its keys and values not checked yet.

    Args:
        path (`str` or `os.PathLike`):
            The YAML file.
        overrides (`Iterable[str]`, *optional*):
            `key.sub=value` each, the value in YAML. A number stands for an item of a list that the file has
            (`data.unseen.0.folder=coast`).

    Raises:
        UserError: No such file, no YAML, a key that is there twice, an empty file, or overrides that do not fit it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}); expected a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot read the recipe; expected YAML text in UTF-8") from None
    recipe = _parse(text, str(path))
    if not isinstance(recipe, dict):
        what = "the file is empty" if recipe is None else found(recipe)
        raise UserError(f"{path}: {what}, expected the sections model, method, data, training and publish")

    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        try:
            if not equals:
                raise UserError(f"override {override}: found no '=', expected KEY=VALUE, as in training.max_steps=100")
            _assign(recipe, key, _parse(value, f"override {override}"))
        except UserError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return recipe


def _parse(text: str, where: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _size(node, {}) > _LARGEST:
            raise yaml.YAMLError(f"its anchors and aliases make more than {_LARGEST} values of it")
        problems = list(_problems(node))
        value = None if node is None else loader.construct_document(node)
        _refuse_large_integers(value)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{where}, line {mark.line + 1}: invalid YAML: {error.problem}") from None
    except RecursionError:
        raise UserError(f"{where}: invalid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a character that no YAML may have; a date such as 2024-13-45
        raise UserError(f"{where}: invalid YAML: {' '.join(str(error).split())}") from None
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))
    return value


def _refuse_large_integers(value: Any) -> None:
    # Of thousands of digits Python makes no text, and nothing here is meant to be as large.
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for part in parts:
        _refuse_large_integers(part)
    if isinstance(value, int) and value.bit_length() > 64:
        raise yaml.YAMLError(f"found an integer of {value.bit_length()} bits, expected at most 64")


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a document has once its aliases are written out; looks at each node once."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _LARGEST  # of an alias to what it stands in
    parts = [] if node is None or isinstance(node, yaml.ScalarNode) else node.value
    children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
    known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _problems(node: yaml.Node | None, path: str = "") -> Iterator[str]:
    # PyYAML lets the last of two equal keys win without a word, and escapes write what no name or file can hold.
    if isinstance(node, yaml.ScalarNode) and (character := _UNUSABLE.search(str(node.value))):
        yield f"{path.removesuffix('.') or 'text'}: found the character {character[0]!a}, which no name can hold"
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _problems(item, f"{path}{index}.")
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            yield from _problems(key, f"{path}(a key)")
            if name in lines:
                yield f"{path}{name}: is there twice, on lines {lines[name]} and {line}; keep one"
            lines[name] = line
            yield from _problems(value, f"{path}{name}.")


def _assign(recipe: dict[str, Any], key: str, value: Any) -> None:
    node: Any = recipe
    *parents, last = key.split(".")
    for part in parents:
        step = _step(node, part, key)
        if isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
        node = node[step]
    node[_step(node, last, key)] = value


def _step(node: Any, part: str, key: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UserError(f"override of {key}: {found(node)} before '.{part}', expected a mapping or a list there")
    if not (part.isascii() and part.isdigit() and int(part) < len(node)):
        raise UserError(f"override of {key}: found '{part}', expected the number of one of {len(node)} items, from 0")
    return int(part)
