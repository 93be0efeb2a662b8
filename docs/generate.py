"""A hook of MkDocs: tables and references made from the code, and the repository's own pages as pages of the site.

Pages link to each other and to files of the repository by relative paths, as they lie in it, so that a reader of the
plain files gets there too. The site has them under other addresses: `on_page_markdown` puts these in. A link to a file
that is no page of the site loses its link and keeps its text.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What of the repository is on the site beside `docs/`.
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "recipes/**/*", "benchmarks/**/*")
SHOWN = {".md", ".png", ".jpg", ".svg", ".yaml"}
# Stands where a table goes, for who reads the plain files.
MARK = "*(Table of {}, made from the registry when the site is built.)*"
API_PAGE, KEYS_PAGE = "reference/api.md", "reference/recipe_keys.md"
API = {
    "Training": ("trainer",),
    "Methods": ("methods",),
    "Models": ("models",),
    "Data": ("data",),
    "Scoring": ("scoring",),
    "Recipes and runs": ("recipe", "runs", "comparison"),
    "Publishing": ("publish",),
}
# Public, but imported from their modules.
ALSO = (
    "methods.register_method",
    "methods.methods",
    "methods.variants",
    "methods.base.Method",
    "methods.base.Ingredient",
    "methods.base.setting",
    "methods.base.Launcher",
    "methods.variant.Variant",
    "scoring.metrics.register_metric",
    "scoring.metrics.base.Metric",
    "scoring.metrics.base.Segmented",
    "runs.train.train",
    "runs.evaluate.evaluate",
    "runs.evaluate.score",
    "runs.predict.predict",
    "runs.export.export",
    "publish.push.push_folder",
    "comparison.experiment.compare",
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*)\]\(([^()\s#]*)(#[^()\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's own pages and those that are made from the code."""
    from mkdocs.structure.files import File

    for path in sorted({path for pattern in BESIDE for path in ROOT.glob(pattern) if path.suffix in SHOWN}):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name, content in ((API_PAGE, api()), (KEYS_PAGE, recipe_keys())):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put tables in, and addresses of the site."""
    markdown = re.sub(re.escape(MARK).replace(r"\{\}", r"(\w+)"), lambda mark: TABLES[mark[1]](), markdown)
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
    """Resolve references in docstrings, [`Name`] or [`~path.Name`], where they name something public."""
    if page.file.src_uri != API_PAGE:
        return html
    paths = public_names()

    def link(reference: re.Match[str]) -> str:
        name = reference[1].removeprefix("~").rpartition(".")[2] if reference[1].startswith("~") else reference[1]
        path = paths.get(name.partition(".")[0])
        return f'<a href="#{path}"><code>{name}</code></a>' if path else f"<code>{name}</code>"

    return re.sub(r"\[<code>([~\w.]+)</code>\]", link, html)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def methods_table() -> str:
    """The methods that can be trained."""
    from deft_hf.methods import methods

    rows = [
        [f"`{name}`", method.summary, ", then ".join(method.stages), _paper(method)]
        for name, method in methods().items()
    ]
    return table(["`method.name`", "what it is", "stages", "paper"], rows)


def ingredients_table() -> str:
    """What can be added to a method."""
    from deft_hf.methods import INGREDIENTS, Averaging

    rows = [[f"`{each.name}`", each.summary, _paper(each)] for each in (Averaging, *INGREDIENTS)]
    return table(["ingredient", "what it is", "paper"], rows)


def rows_table() -> str:
    """The rows that `compare` knows."""
    from deft_hf.methods import variants

    rows = [[f"`{name}`", variant.note, _settings(variant.own)] for name, variant in variants().items()]
    return table(["name", "what it is", "settings"], rows)


TABLES = {"methods": methods_table, "ingredients": ingredients_table, "rows": rows_table}


def _paper(about: Any) -> str:
    authors, _, address = (about.paper or "").rpartition(", ")
    return f"[{authors}]({address})" if authors else ""


def _settings(own: Mapping[str, Any]) -> str:
    texts = [f"`{key}={json.dumps(value)}`" for key, value in own.items() if key != "method.evaluate_usual"]
    return " ".join(text.replace('"', "") for text in texts)


def recipe_keys() -> str:
    """The reference of recipe keys."""
    from deft_hf.recipe.reference import reference

    return reference()


def api() -> str:
    """A page with every public name, for mkdocstrings to fill in."""
    names = public_names()
    sections = []
    for title, packages in API.items():
        blocks = [f"::: {path}" for path in names.values() if path.split(".")[1] in packages]
        sections.append(f"## {title}\n\n" + "\n\n".join(blocks))
    return "# API\n\n" + "\n\n".join(sections) + "\n"


def public_names() -> dict[str, str]:
    """Each public name, and the dotted path of its definition."""
    paths = {}
    for package in ("deft_hf", "deft_hf.data"):
        homes = import_module(package)._HOMES
        paths |= {name: f"{package}.{home}.{name}" for name, home in homes.items()}
    return paths | {path.rpartition(".")[2]: f"deft_hf.{path}" for path in ALSO}
