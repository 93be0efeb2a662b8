"""Names from elsewhere in lines, Markdown, pictures and JSON."""

import html
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from deft_hf.data.labels import LabelSpace
from deft_hf.publish.card import render_card
from deft_hf.publish.figures import draw_classes, draw_confusion
from deft_hf.publish.page import render_page
from deft_hf.scoring.report import MOST_PANELS, save_domain_bars, save_figure, save_json, save_panels
from deft_hf.utils.text import (
    figure_text,
    markdown_block,
    markdown_code,
    markdown_text,
    one_line,
    without_credentials,
    without_markup,
)
from tests.publish.test_card import FACTS, of_run
from tests.publish.test_figures import RUN
from tests.publish.test_page import drawn

EVIL = ["<img src=x onerror=alert(1)>", "<!-- hidden", "a|b", "**bold** `code`", "[x](javascript:y)", "two\nlines",
        "$\\frac$", "```", "_x_", "&lt;", "\u202eesrever", "</details>", "@someone", "ana@evil.example", ":smile:",
        "https://evil.example/x", "see www.evil.example", "WWW.evil.example", "mailto:a@b.example"]  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_markdown_shows_a_name_as_it_is(name):
    text = markdown_text(name)
    assert not set("<>|*`[]$\n") & set(text) and "<!--" not in text
    assert without_markup(text) == one_line(name)
    # Renderers look for links in what is left of entities.
    assert not re.search(r"@\w|://|\bwww\.|:\w+:", html.unescape(text), re.IGNORECASE)


def test_ordinary_names_stay_as_they_are():
    for name in (
        "town_fog",
        "living things",
        "deft:method.ema_decay_steps=40000",
        "CPU (x86_64, 2 threads)",
        "Straße",
    ):
        assert markdown_text(name) == name and figure_text(name) == name


def test_code_ends_where_it_should():
    assert markdown_code("a`b") == "``a`b``" and markdown_code("`") == "`` ` ``" and markdown_code("x\ny") == "`x y`"
    assert markdown_block("a\n```\nb", "yaml") == "````yaml\na\n```\nb\n````"


@pytest.mark.parametrize("name", EVIL)
def test_a_card_and_a_page_hold_no_markup_of_names(name, tmp_path):
    labels = [name, "sky", "boat"]
    results = {method: {**scores, name: scores["night"]} for method, scores in FACTS.results.items()}
    scores = results["deft"] = {d: {**s, "absent": [name]} for d, s in results["deft"].items()}
    run = replace(of_run(labels=labels, scores=scores, unreadable={name: ["1"]}).run)
    facts = replace(
        FACTS, run=run, unseen=["coast", name], results=results, model_name=name, base_license=name, license=name,
        settings={"run_name": name}, recipe=f"labels: '{name}'\n", data=[replace(FACTS.data[0], name=name, hub=None)],
        repo_id=None,
    )  # fmt: skip
    card = render_card(facts)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"
    # What is left when code is taken out is Markdown, in which no name may be live.
    body = card.split("\n---\n", 1)[1]
    lines, fence = [], None
    for line in body.splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if fence is None and len(ticks) >= 3:
            fence = ticks
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            lines.append(line)
    assert fence is None
    text = "\n".join(lines)
    for tag in ("<img", "<!--"):
        assert all(tag not in part for part in text.split("`")[::2])
    assert text.splitlines().count("<details>") == text.splitlines().count("</details>") == 4
    page = render_page(facts, drawn(tmp_path))
    assert "<img src=x" not in page and "<!--" not in page
    # Nothing is escaped twice: the page's table shows the name.
    assert html.unescape(page.split("<thead>")[1].split("</thead>")[0]).count(one_line(name)) == 1


@pytest.mark.parametrize("name", ["$\\frac$", "$a$", "two\nlines", "x" * 5000, "a$b"])
def test_figures_draw_any_name(name, tmp_path):
    labels = LabelSpace((name, "sky", "boat"))
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    image = np.zeros((2, 2, 3), np.uint8)
    save_panels(tmp_path / "panels.png", [(name, image, ids, {"deft": ids})], labels)
    save_domain_bars(tmp_path / "bars.png", {"deft": {name: {"mean_iou": 0.5}}}, [], [name])
    results = {method: {name: scores["day"]} for method, scores in RUN.results.items()}
    counts = {name: np.eye(3, dtype=int).tolist()}
    run = replace(RUN, labels=labels, source=[name], unseen=[], results=results, confusions=counts)
    for draw in (draw_classes, draw_confusion):
        save_figure(draw(run), tmp_path / "figure.png")
    assert len(figure_text(name)) <= 62


def test_pictures_of_many_domains_are_cut_and_say_so(tmp_path, monkeypatch):
    many = [f"d{index}" for index in range(300)]
    results = {"deft": {name: {"iou": [0.5, 0.25, None], "mean_iou": 0.4} for name in many}}
    figure = draw_classes(replace(RUN, results=results, method="deft", source=[], unseen=many))
    assert len(figure.axes) == MOST_PANELS and "the first 24 of 300 domains" in figure.get_suptitle()
    titles = []
    monkeypatch.setattr(
        "deft_hf.scoring.report.save_figure", lambda figure, path: titles.append(figure.get_suptitle())
    )
    save_domain_bars(tmp_path / "bars.png", results, [], many)
    ids, image = np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)
    rows = [(name, image, ids, {"deft": ids}) for name in many[:2]]
    save_panels(tmp_path / "panels.png", rows, LabelSpace(("a", "b")), domains=300)
    assert titles[0].endswith("the first 60 of 300") and "the first 2 of 300 domains" in titles[1]


def test_a_name_that_is_no_utf8_is_kept_by_json_and_print(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save_json(tmp_path / "predictions.json", {"image": name})
    assert json.loads((tmp_path / "predictions.json").read_text("utf-8"))["image"] == name
    code = f"from deft_hf.utils.errors import run_command; run_command(lambda: print({ascii(name)}), '')"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONUTF8": "1"}
    )
    assert told.stdout == b"caf\\udce9.png\n"


def test_credentials_are_left_out_of_addresses():
    for address in (
        "https://ana:geheim@hub.example/x",
        "https://geheim@hub.example/x",
        "https://a:geh@eim@hub.example/x",
    ):
        assert without_credentials(f"at {address}.") == "at https://hub.example/x."
    assert without_credentials("ana:geheim@hub.example") == "hub.example"
    for text in ("https://hub.example/@scope", "git@hub.example:x", "data.town=3: found a@b"):
        assert without_credentials(text) == text
