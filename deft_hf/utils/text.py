"""Names and texts from elsewhere, made fit for a line, a Markdown page or a picture: markup in them stays text."""

from __future__ import annotations

import re
from html import unescape

from markupsafe import Markup

# Control characters, those that turn the direction of a line, and bytes of file names that are no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Whatever starts or ends something in Markdown or HTML. Underscores do so only at the edge of a word.
_MARKUP = re.compile(r"[&<>\"\\`*\[\]|$~^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What becomes a link, a mention or a picture without any markup, once entities are read: mail@host, @user,
# https://host, www.host, :smile:. It does not where a word joiner, which is not seen, stands behind.
_LIVE = re.compile(r"@(?=\w)|:(?=//)|(?<!\d):(?=[\w+-]+:)|\bwww(?=\.)", re.IGNORECASE)
_JOINER = "\N{WORD JOINER}"
# In an address, and where one is written without its scheme.
_CREDENTIALS = re.compile(r"""(?<=://)[^\s/"'<>]*@|(?<![^\s"'=,(])[^\s/:@"'=,(]+:[^\s/@"']+@(?=\w)""")


def one_line(text: str) -> str:
    """`text` with white space as single spaces, and without characters that cannot be shown or encoded."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def printable(text: str) -> str:
    """`text` for a terminal, which control characters of a file name would steer: they are written as escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in "\n\t" else ascii(found[0])[1:-1], text)


def markdown_text(text: object) -> str:
    """A text that Markdown, tables and HTML blocks included, shows as it is; [`~markupsafe.Markup`] is one already."""
    if isinstance(text, Markup):
        return text
    escaped = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line(str(text)))
    return Markup(_LIVE.sub(lambda found: f"{found[0]}&#{ord(_JOINER)};", escaped))


def without_markup(text: str) -> str:
    """What a reader sees of a [`markdown_text`]."""
    return unescape(text).replace(_JOINER, "")


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
