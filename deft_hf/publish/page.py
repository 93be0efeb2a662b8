"""The page of a run: tables and pictures in one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from deft_hf.publish.card import CardFacts, as_in_a_recipe, contents, shareable
from deft_hf.publish.facts import RunFacts
from deft_hf.scoring.report import percent, unseen_mean
from deft_hf.utils.text import without_markup


def render_page(facts: CardFacts, folder: Path) -> str:
    """The page as HTML, with the pictures in it; like the card without folders of the machine and tokens.

    Args:
        facts (`CardFacts`):
            What the card is made of.
        folder (`Path`):
            Which `facts.figures` lie in.
    """
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    jinja.filters |= {"shareable": shareable, "table": html_table, "value": as_in_a_recipe}
    template = jinja.from_string(files("deft_hf.publish").joinpath("page.html").read_text(encoding="utf-8"))
    known = contents(facts)
    known["figures"] = [(_inlined(folder / path), caption) for path, caption in facts.figures.items()]
    known["places"] = [replace(place, figure=_inlined(folder / place.figure)) for place in facts.places]
    return template.render(**known, headline=_headline(facts), origin=_origin(facts.run))


def html_table(markdown: str) -> Markup:
    """A table of [`~deft_hf.scoring.report.markdown_table`] as HTML, bold cells bold."""
    header, _, *rows = ([_cell(cell) for cell in _cells(line)] for line in markdown.splitlines())
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
        for first, *others in rows
    )
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _cell(text: str) -> Markup:
    text = without_markup(text)
    bold = re.fullmatch(r"\*\*(.*)\*\*", text)
    return Markup(f"<strong>{escape(bold[1])}</strong>") if bold else escape(text)


def _headline(facts: CardFacts) -> list[tuple[str, str, bool]]:
    """The numbers to see first, each with what it is, and whether it is a result: a difference of one seed is none."""
    own = facts.results[facts.run.method]
    means = [("source", unseen_mean(own, facts.source)), ("unseen", unseen_mean(own, facts.unseen))]
    tiles = [(percent(mean), f"mean IoU on {kind} domains, per cent", True) for kind, mean in means if mean == mean]
    for other, scores in facts.results.items():
        gain = unseen_mean(own, facts.unseen) - unseen_mean(scores, facts.unseen)
        if other != facts.run.method and gain == gain:
            what = f"points on unseen domains against {other}, with one seed: chance alone may account for that"
            tiles.append((f"{100 * gain:+.1f}", what, False))
    return tiles


def _origin(run: RunFacts) -> dict[str, str]:
    """What else a run came from, by name in words: commits, processes, batch size."""
    commits = {
        f"commit of {name}": state["commit"] + (", with changes" if state["dirty"] else "")
        for name, state in run.git.items()
        if state
    }
    return {**commits, "processes": str(run.processes), "batch size": str(run.batch_size)}


def _inlined(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
