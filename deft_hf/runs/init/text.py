"""A recipe as text, with the reason of each choice beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from deft_hf.runs.init.roles import Line

_WIDTH = 118


class RecipeText:
    """Lines of YAML with comments."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def comment(self, text: str = "") -> None:
        """A comment of its own, wrapped."""
        self._lines += [f"# {line}".rstrip() for line in _wrapped(text, _WIDTH - 2)] if text else ["#"]

    def section(self, name: str) -> None:
        """Starts a section of the recipe."""
        self._lines.append(f"{name}:")

    def add(self, key: str, value: Any, why: str = "", depth: int = 1, off: bool = False) -> None:
        """A key, its value and why it has it."""
        self._put(f"{key}: {flow(value)}", why, depth, off)

    def block(self, key: str, why: str = "", depth: int = 1) -> None:
        """Starts a mapping or a list below a section."""
        self._put(f"{key}:", why, depth)

    def item(self, value: Any, why: str = "") -> None:
        """An item of a list, or of a mapping as a mapping of one key, below `labels`."""
        text = (
            ", ".join(f"{flow(key)}: {flow(each)}" for key, each in value.items()) if isinstance(value, dict) else ""
        )
        self._put(text or f"- {flow(value)}", why, 3)

    def entries(self, key: str, lines: Sequence[Line]) -> None:
        """A list of domains."""
        if all(line.off for line in lines):
            self._lines.append(f"  {key}: []")
        else:
            self.block(key)
        for line in lines:
            self._put(f"- {flow(line.entry)}", line.why, 2, line.off)

    def _put(self, text: str, why: str, depth: int, off: bool = False) -> None:
        text = "  " * depth + ("# " if off else "") + text
        if why and len(text) + len(why) + 4 > _WIDTH:
            indent = "  " * depth
            self._lines += [f"{indent}# {line}" for line in _wrapped(why, _WIDTH - 2 - len(indent))]
            why = ""
        self._lines.append(f"{text}  # {why}" if why else text)

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    # In a list, so that what would end an item in a line is put into quotes.
    return yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in " ".join(text.split()).split(" "):
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
