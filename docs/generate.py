"""A hook of MkDocs: tables and references made from the code, and the repository's own pages as pages of the site.

Pages link to each other and to files of the repository by relative paths, as they lie in it, so that a reader of the
plain files gets there too. The site has them under other addresses: `on_page_markdown` puts these in. A link to a file
that is no page of the site loses its link and keeps its text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What of the repository is on the site beside `docs/`.
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "recipes/**/*", "benchmarks/**/*")
SHOWN = {".md", ".png", ".jpg", ".svg", ".yaml"}
METHODS, ROWS = (f"<!-- {name}: made from the registry when the site is built -->" for name in ("methods", "rows"))
API_PAGE = "reference/api.md"
KEYS_PAGE = "reference/recipe_keys.md"
API = {
    "Training": ("trainer",),
    "Methods": ("methods",),
    "Models": ("models",),
    "Data": ("data",),
    "Scoring": ("scoring",),
    "Recipes and runs": ("recipe", "runs", "comparison"),
    "Publishing": ("publish",),
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*)\]\(([^()\s#]*)(#[^()\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's own pages and those that are made from the code."""
    from mkdocs.structure.files import File

    for path in sorted({path for pattern in BESIDE for path in ROOT.glob(pattern) if path.suffix in SHOWN}):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, API_PAGE, content=api()))
    files.append(File.generated(config, KEYS_PAGE, content=recipe_keys()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put tables in, and addresses of the site."""
    if METHODS in markdown:
        markdown = markdown.replace(METHODS, methods_table()).replace(ROWS, rows_table())
    source = page.file.src_uri
    there = source if (ROOT / source).is_file() else f"docs/{source}"

    def address(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.groups()
        if not target or re.match(r"[a-z]+:", target):
            return link[0]
        repository = posixpath.normpath(posixpath.join(posixpath.dirname(there), target))
        inside = repository.removeprefix("docs/")
        if files.get_file_from_path(inside):
            return f"{picture}[{text}]({posixpath.relpath(inside, posixpath.dirname(source) or '.')}{anchor or ''})"
        return text if (ROOT / repository).exists() else link[0]

    # Outside of code blocks.
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else _LINK.sub(address, part) for index, part in enumerate(parts))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Resolve references in docstrings, [`Name`] or [`~path.Name`], that name something public."""
    if page.file.src_uri != API_PAGE:
        return html
    paths = dict(public_names())

    def link(reference: re.Match[str]) -> str:
        name = reference[1].removeprefix("~").rpartition(".")[2] if reference[1].startswith("~") else reference[1]
        path = paths.get(name.partition(".")[0])
        return f'<a href="#{path}"><code>{name}</code></a>' if path else f"<code>{name}</code>"

    return re.sub(r"\[<code>([~\w.]+)</code>\]", link, html)


def recipe_keys() -> str:
    """Every key of a recipe, from its sections."""
    from deft_hf.recipe.reference import reference

    return reference()


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def methods_table() -> str:
    """The methods that can be trained."""
    from deft_hf.methods import methods

    rows = [[f"`{name}`", ", then ".join(method.stages), method.summary] for name, method in methods().items()]
    return table(["`method.name`", "stages", "what it is"], rows)


def rows_table() -> str:
    """The rows that `compare` knows."""
    from deft_hf.methods import variants

    return table(["name", "what it is"], [[f"`{name}`", variant.note] for name, variant in variants().items()])


def api() -> str:
    """A page with every public name, for mkdocstrings to fill in."""
    names = dict(public_names())
    sections = []
    for title, packages in API.items():
        blocks = [f"::: {path}" for path in names.values() if path.split(".")[1] in packages]
        if blocks:
            sections.append(f"## {title}\n\n" + "\n\n".join(blocks))
    return "# API\n\nImported from `deft_hf` or from the package that is named.\n\n" + "\n\n".join(sections) + "\n"


def public_names() -> Iterator[tuple[str, str]]:
    """Each public name and the dotted path of its definition."""
    for package in ("deft_hf", "deft_hf.data"):
        module = import_module(package)
        for name, home in module._HOMES.items():
            yield name, f"{package}.{home}.{name}"
