"""Recipes that come with deft_hf: found by name, in a clone and in a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deft_hf import train
from deft_hf.recipe import Recipe
from deft_hf.recipe.shipped import recipe_file, shipped_recipes
from deft_hf.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_shipped_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert {path.name for path in shipped_recipes().values()} == {path.name for path in ROOT.glob("recipes/*.yaml")}
    recipe = Recipe.load("quickstart", ["training.seed=7"])
    assert recipe.training.seed == 7 and Path(recipe.path) == ROOT / "recipes" / "quickstart.yaml"
    train.main(["quickstart", "--dry-run"])
    assert "checkpoint: embedded" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_file_wins_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert recipe_file("quickstart") == shipped_recipes()["quickstart"]
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("model: {}")
    assert recipe_file("quickstart") == Path("quickstart")


@pytest.mark.parametrize("name", ["quickstrt", "recipes/quickstart.yml"])
def test_an_unknown_name_lists_the_shipped_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        Recipe.load(name)
    assert all(known in str(error.value) for known in shipped_recipes())
    assert str(error.value).startswith(f"{name}: cannot read") and str(error.value).endswith(
        "Did you mean quickstart?"
    )
    with pytest.raises(UserError, match=r"nothing_like_it: .* street7_mobilenetv2\.$"):
        Recipe.load("nothing_like_it")


def test_a_wheel_has_every_module_and_the_recipes(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "clone"
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    for name in ("deft_hf", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (scripts,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    expected = {path.relative_to(copy).as_posix() for path in (copy / "deft_hf").rglob("*") if path.is_file()}
    expected |= {f"deft_hf/{path.relative_to(copy).as_posix()}" for path in (copy / "recipes").rglob("*.yaml")}
    assert expected <= names
    assert "deft-hf = deft_hf.__main__:main" in scripts
