"""Holds the shape of the package: imports point down one list, files stay readable, public names exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deft_hf

PACKAGE = Path(deft_hf.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the top down. A module imports from its own level and from those below it.
LEVELS = (
    ("__main__",),
    ("compare", "env", "evaluate", "export", "predict", "push", "train"),
    ("comparison",),
    ("runs",),
    ("recipe",),
    ("trainer",),
    ("publish",),
    ("methods",),
    ("scoring",),
    ("models",),
    ("data",),
    ("errors",),
    ("utils",),
)
RANK = {part: rank for rank, level in enumerate(LEVELS) for part in level}

# Modules that are used by themselves: they know nothing of Trainer, of recipes or of the Hub.
LEAVES = ("deft_hf.methods.core", "deft_hf.data.labels", "deft_hf.scoring.confusion")
FORBIDDEN_IN_LEAVES = (
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "transformers.train",
    "yaml",
    "pydantic",
)


def imports(path: Path, module: str) -> Iterator[str]:
    """Dotted names of everything that a module imports, wherever in it, but for what only a type checker sees."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def part_of(name: str) -> str:
    """`data` of `deft_hf.data.labels.LabelSpace`."""
    return name.split(".")[1]


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_there_is_something_to_look_at():
    assert len(MODULES) > 15
    assert {
        "deft_hf.trainer.trainer",
        "deft_hf.recipe",
        "deft_hf.methods.core.pathways",
        "deft_hf.data.labels",
    } <= set(MODULES)
    found = set(imports(MODULES["deft_hf.recipe"], "deft_hf.recipe"))
    assert {"yaml", "deft_hf.utils.errors.UserError", "deft_hf.recipe.checks.contradictions"} <= found


def test_every_module_has_its_place():
    placed = {name for name in MODULES if name != "deft_hf" and part_of(name) in RANK}
    assert placed == set(MODULES) - {"deft_hf"}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "deft_hf"])
def test_imports_point_down(module: str):
    for name in imports(MODULES[module], module):
        if inside(name, "deft_hf"):
            if name == "deft_hf.__version__":
                continue
            assert name != "deft_hf" and part_of(name) in RANK, f"{module} imports {name} through the front door"
            assert RANK[part_of(name)] >= RANK[part_of(module)], f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize("module", [name for name in MODULES if inside(name, *LEAVES)])
def test_leaves_know_nothing_of_trainer_recipe_and_hub(module: str):
    for name in imports(MODULES[module], module):
        assert not inside(name, *FORBIDDEN_IN_LEAVES), f"{module} imports {name}"
        assert name not in ("transformers.Trainer", "transformers.TrainingArguments"), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_can_be_read_in_one_sitting(module: str):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{module} has {lines} lines: split it by responsibility"


def test_public_names_exist_and_are_the_ones_a_type_checker_sees():
    assert all(callable(getattr(deft_hf, name)) for name in deft_hf.__all__ if name != "__version__")
    front = ast.parse(MODULES["deft_hf"].read_text(encoding="utf-8"))
    (checked,) = (node for node in front.body if isinstance(node, ast.If))
    static = {f"{node.module}.{alias.name}" for node in checked.body for alias in node.names}
    lazy = {f"deft_hf.{home}.{name}" for name, home in deft_hf._HOMES.items()}
    assert static == lazy
    with pytest.raises(AttributeError, match="no attribute 'DeftTrainer'"):
        deft_hf.DeftTrainer  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, deft_hf; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
