import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

from PIL import Image

from deft_hf.publish.page import html_table, render_page
from tests.publish.test_card import FACTS, of_run

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags of a page, checked to be closed in order; attributes and text by tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.found = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag, attribute):
        return [attrs[attribute] for name, attrs in self.found if name == tag and attribute in attrs]


def drawn(folder):
    (folder / "figures").mkdir()
    Image.new("RGB", (8, 6), "red").save(folder / "figures" / "domain_bars.png")
    return folder


def test_the_page_needs_nothing_beside_itself(tmp_path):
    html = render_page(FACTS, drawn(tmp_path))
    page = Page(html)
    (source,) = page.all("img", "src")
    kind, _, content = source.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "figures" / "domain_bars.png").read_bytes()
    assert page.all("img", "alt") == ["Bars by domain"]
    assert {tag for tag, _ in page.found} & {"script", "link", "iframe", "object"} == set()
    assert "url(" not in html and "@import" not in html
    assert page.all("meta", "content") == ["width=device-width, initial-scale=1"]


def test_the_page_says_what_the_card_says(tmp_path):
    html = render_page(FACTS, drawn(tmp_path))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))
    own = FACTS.results["deft"]
    for domain in ("town", "coast", "night"):
        assert f" {100 * own[domain]['mean_iou']:.1f} " in text
    unseen = {m: (s["coast"]["mean_iou"] + s["night"]["mean_iou"]) / 2 for m, s in FACTS.results.items()}
    gain = 100 * (unseen["deft"] - unseen["joint"])
    assert f" {gain:+.1f} points on unseen domains against joint, with one seed" in text
    assert f" {100 * unseen['deft']:.1f} mean IoU on unseen domains" in text
    for part in (
        "Non-commercial.", "decoder_warmup_steps 30", "encoder 0.97368 0.0335 % 1.25", "warmup: 30 steps, then",
        "1:06:40 (h:mm:ss) on 1 NVIDIA H100, with seed 3", "town training 80 CC0", FACTS.command,
        "max_steps: 300", "torch 2.13.0", "commit of deft_hf abc", "Without a pixel in this domain: boat.",
    ):  # fmt: skip
        assert part in text, part


def test_names_are_text_and_folders_and_tokens_stay_at_home(tmp_path):
    facts = replace(
        of_run(labels=["a|b", "<b>", "c"]),
        model_name="<script>x",
        source=["town"],
        recipe="{root: /home/ana/data, hub_token: hf_abc}",
        command="run data.root=/home/ana/data",
        settings={"folder": "/home/ana/data"},
        base_model="/home/ana/nets/net",
    )
    html = render_page(facts, drawn(tmp_path))
    Page(html)
    assert "<script>" not in html and "&lt;script&gt;x" in html
    assert "<b>" not in html.split("How it was made")[0].split("IoU by class")[1] and "&lt;b&gt;" in html
    assert "a|b" in html
    assert "/home" not in html and "hf_abc" not in html


def test_tables_of_markdown():
    table = html_table("| method | x\\|y |\n| --- | ---: |\n| a & b | **5.0** |")
    assert '<th scope="col">x|y</th>' in table
    assert '<tr><th scope="row">a &amp; b</th><td><strong>5.0</strong></td></tr>' in table
