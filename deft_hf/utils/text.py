"""Names and texts from elsewhere, made fit for a line, a Markdown page or a picture: markup in them stays text."""

from __future__ import annotations

import re

from markupsafe import Markup

# Control characters, those that turn the direction of a line, and bytes of file names that are no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Whatever starts or ends something in Markdown or HTML. Underscores do so only at the edge of a word.
_MARKUP = re.compile(r"[&<>\"\\`*\[\]|$~^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)/(?=/)")
# In an address, and where one is written without its scheme.
_CREDENTIALS = re.compile(r"""(?<=://)[^\s/"'<>]*@|(?<![^\s"'=,(])[^\s/:@"'=,(]+:[^\s/@"']+@(?=\w)""")


def one_line(text: str) -> str:
    """`text` with white space as single spaces, and without characters that cannot be shown or encoded."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def markdown_text(text: object) -> str:
    """A text that Markdown, tables and HTML blocks included, shows as it is; [`~markupsafe.Markup`] is one already."""
    if isinstance(text, Markup):
        return text
    return Markup(_MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line(str(text))))


def markdown_code(text: object) -> str:
    """A code span that shows `text`, whatever it holds."""
    line = one_line(str(text))
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return Markup(f"{ticks}{space}{line}{space}{ticks}")


def markdown_block(text: str, language: str = "") -> str:
    """A code block that shows `text`, whatever it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    text = text.encode(errors="replace").decode()
    return Markup(f"{fence}{language}\n{text.strip()}\n{fence}")


def figure_text(text: str, most: int = 60) -> str:
    """A name in a picture, which would grow with it: one line of `most` letters in which `$` starts no formula."""
    line = one_line(text)
    line = line if len(line) <= most else line[: most - 1] + "…"
    return line.replace("$", r"\$")


def without_credentials(text: str) -> str:
    """`text` without the user and password of addresses: `https://user:password@host` becomes `https://host`."""
    return _CREDENTIALS.sub("", text)
