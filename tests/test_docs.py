"""The front door: README and documentation are short, lead somewhere, and name what exists."""

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

import deft_hf
from deft_hf.data import AUGMENTATIONS
from deft_hf.methods import INGREDIENTS, METHODS, methods, variants
from deft_hf.recipe import Recipe
from deft_hf.recipe.reference import reference
from tests.trainer.test_trainer import history, trainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")
COMMANDS = (
    "pip install -e . && accelerate launch -m deft_hf.train recipes/quickstart.yaml",
    "pip install -e '.[test]' && python -m pytest -q -n 2",
)

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_table_of_augmentations_is_that_of_the_presets():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name, preset in AUGMENTATIONS.items():
        (row,) = re.findall(rf"^\| `{name}`.*\|$", page, flags=re.MULTILINE)
        flips = " ".join(arrow for key, arrow in (("flip", "↔"), ("vertical_flip", "↕")) if preset[key])
        turns = "90°" if preset["turns"] else "–"
        rotation = f"{preset['rotation']:g}°" if preset["rotation"] else "–"
        scale, blur = (" to ".join(f"{bound:g}" for bound in preset[key]) for key in ("scale", "blur"))
        jitter = ", ".join(f"{strength:g}" for strength in preset["jitter"])
        assert [cell.strip() for cell in row.split("|")[3:-1]] == [flips, turns, rotation, scale, jitter, blur]
        assert f"![{name}](images/augment_{name}.jpg)" in page


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")


@every_page
def test_links_and_pictures_are_there(page):
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}"


@every_page
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:recipes|benchmarks|tests|docs|deft_hf)/[\w./*-]+\.(?:yaml|py|md)\b", text)
    for name in named:
        if not re.search(r"\b[A-Z]{2,}\b", name):  # NAME.yaml stands for any
            assert list(ROOT.glob(name)), f"{page.name} names {name}"


@every_page
def test_names_that_are_imported_exist(page):
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@every_page
def test_commands_are_understood(page):
    for line in "".join(blocks(page.read_text(encoding="utf-8"), "sh")).splitlines():
        words = shlex.split(line)
        if words[0] == "deft-hf":
            importlib.import_module(f"deft_hf.{words[1]}")._parser().parse_intermixed_args(words[2:])


def test_the_readme_is_short():
    assert len(README.split()) <= 900
    assert len(README.splitlines()) <= 130


def test_the_two_commands_stand_in_the_readme():
    assert blocks(README, "sh") == [f"{command}\n" for command in COMMANDS]


def test_the_recipe_of_the_readme_loads(tmp_path, monkeypatch):
    (text,) = blocks(README, "yaml")
    assert len(text.splitlines()) == 8
    data = yaml.safe_load(text)["data"]
    for entry in [*data["source"], *data["validation"], *data["unseen"]]:
        for kind in ("images", "masks"):
            (tmp_path / entry["folder"] / kind).mkdir(parents=True, exist_ok=True)
    (tmp_path / "data/town/split.json").write_text('{"train": ["a"], "val": ["b"]}')
    (tmp_path / "town.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("town.yaml")
    assert recipe.method.name == "deft" and recipe.data.crop_size == (512, 512)


def test_versions_agree():
    assert f'\nversion = "{deft_hf.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == deft_hf.__version__
    assert f"\n## [{deft_hf.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_tables_are_made_from_the_registry():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(generate.MARK.format(name) in text for name in generate.TABLES)
    assert all(f"| `{name}` |" in generate.methods_table() for name in methods())
    assert all(f"| `{each.name}` |" in generate.ingredients_table() for each in INGREDIENTS)
    assert all(f"| `{name}` |" in generate.rows_table() for name in variants())
    assert "| [Kumar et al. 2022](https://arxiv.org/abs/2202.10054) |" in generate.methods_table()


def test_the_method_of_the_documentation_trains(tmp_path, monkeypatch):
    (code,) = blocks((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), "python")
    exec(code, {"__name__": "l1"})
    monkeypatch.setitem(METHODS, "joint_l1", METHODS.pop("joint_l1"))  # so that it is gone afterwards
    assert "joint_l1" in variants() and "`joint_l1`" in generate.methods_table()
    distances = []
    for weight in (0.0, 10.0):
        run = trainer(tmp_path, method="joint_l1", method_settings={"l1_weight": weight}, max_steps=3)
        run.train()
        distances.append(history(run, "encoder_distance")[-1])
    assert 0 < distances[1] < distances[0]


def test_every_public_name_is_in_the_reference():
    page = generate.api()
    assert {*deft_hf.__all__} - {"__version__"} <= set(generate.public_names())
    for path in generate.public_names().values():
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name) and f"\n::: {path}\n" in page


def test_the_page_of_recipe_keys_is_made_from_the_sections():
    assert generate.recipe_keys() == reference()


class Files:
    def __init__(self, *paths):
        self.paths = paths

    def get_file_from_path(self, path):
        return path in self.paths


@pytest.mark.parametrize(
    "source, written, shown",
    [
        ("index.md", "[a](data.md#masks)", "[a](data.md#masks)"),
        ("index.md", "[a](../CONTRIBUTING.md)", "[a](CONTRIBUTING.md)"),
        ("index.md", "![a](images/b.jpg)", "![a](images/b.jpg)"),
        ("index.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
        ("index.md", "[`a`](../pyproject.toml)", "`a`"),  # of the repository, but not on the site
        ("index.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # which the build then refuses
        ("index.md", "```\n[a](../CONTRIBUTING.md)\n```", "```\n[a](../CONTRIBUTING.md)\n```"),
        ("CONTRIBUTING.md", "[a](docs/data.md)", "[a](data.md)"),
        ("recipes/README.md", "[a](../docs/data.md)", "[a](../data.md)"),
    ],
)
def test_links_get_the_addresses_of_the_site(source, written, shown):
    page = type("Page", (), {"file": type("File", (), {"src_uri": source})})
    files = Files("index.md", "data.md", "images/b.jpg", "CONTRIBUTING.md", "recipes/README.md")
    assert generate.on_page_markdown(written, page, None, files) == shown
