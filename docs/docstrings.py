"""An extension of Griffe that reads docstrings in Hugging Face's style as Google's, which it knows."""

from __future__ import annotations

import re
from typing import Any

import griffe

# The signature has types and defaults already: "name (`int`, *optional*, defaults to 3):" becomes "name:".
_ARGUMENT = re.compile(r"^(\s+[*\w][\w, *]*) \((?:`.*`|\*optional\*).*\):", re.MULTILINE)
_RETURNED = re.compile(r"^((?:Returns|Yields):\n\s+)`([^`\n]+)`:", re.MULTILINE)


class HuggingFace(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """See `griffe.Extension`."""
        if obj.docstring and not obj.is_alias:
            text = _ARGUMENT.sub(r"\1:", obj.docstring.value)
            obj.docstring.value = _RETURNED.sub(r"\1\2:", text)
