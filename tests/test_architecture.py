"""Holds the shape of the package: imports point down one list, files stay readable, public names exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deft_hf
from deft_hf.methods import methods
from deft_hf.methods.averages import AVERAGES
from deft_hf.methods.settings import COMPONENTS

PACKAGE = Path(deft_hf.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the top down. A module imports from its own level and from those below it.
LEVELS = (
    ("__main__",),
    ("compare", "completion", "env", "evaluate", "export", "init", "predict", "push", "train", "view"),
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
    """Dotted names of everything that a module imports, wherever in it, for type checkers too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrows() -> dict[str, set[str]]:
    """By module, the modules of this package that it imports, but for the front doors that import when asked."""
    doors = ("deft_hf", "deft_hf.data")
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        names = {name if name in MODULES else name.rpartition(".")[0] for name in imports(path, module)}
        found[module] = set() if module in doors else names & set(MODULES) - {module, *doors}
    return found


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


def test_there_is_no_circle():
    waiting = arrows()
    assert sum(map(len, waiting.values())) > 300
    while True:
        ends = {module for module, targets in waiting.items() if not targets & set(waiting)}
        starts = set(waiting) - {target for targets in waiting.values() for target in targets}
        if not ends | starts:
            break
        waiting = {module: targets for module, targets in waiting.items() if module not in ends | starts}
    assert not waiting, f"these import each other in a circle: {', '.join(waiting)}"


def test_the_top_is_short():
    flat = [name for name in MODULES if name.count(".") == 1 and MODULES[name].name != "__init__.py"]
    assert len(flat) <= 12, f"put these into packages: {', '.join(flat)}"
    for entry in LEVELS[1]:
        lines = len(MODULES[f"deft_hf.{entry}"].read_text(encoding="utf-8").splitlines())
        assert lines <= 60, f"{entry} has {lines} lines: its work belongs into a function that Python users can call"


# What methods, stages, averages and components are called.
NAMES = {*methods(), *AVERAGES, *COMPONENTS, "warmup", "decoupled"}
SETTINGS = {"average", "component", "distance_weight", "decoder_norm_weight", "projection_weight", "lora_rank"}


def comparisons(path: Path) -> Iterator[str]:
    """Lines that ask which method, stage, average or component there is, or whether a setting of one is on."""

    def names(node: ast.expr) -> set[str]:
        return {
            each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
        }

    def is_setting(node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) and node.attr in SETTINGS

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(names(side) & NAMES for side in sides) or any(map(is_setting, sides)):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.If | ast.IfExp) and is_setting(node.test):
            yield f"{path.name}:{node.lineno}: if {ast.unparse(node.test)}"


def test_few_places_ask_which_method_it_is():
    here = PACKAGE / "methods"
    inner = [line for path in here.rglob("*.py") for line in comparisons(path)]
    outer = [line for path in MODULES.values() if here not in path.parents for line in comparisons(path)]
    assert inner, "the search finds nothing"
    assert len(outer) <= 8, "a method's business outside deft_hf/methods:\n" + "\n".join(outer)
    core = [line for path in (here / "core").rglob("*.py") for line in comparisons(path)]
    assert not [line for line in core if any(f"'{name}'" in line for name in {*methods(), *AVERAGES} - {"joint"})]


@pytest.mark.parametrize(
    "module", ["deft_hf.methods", "deft_hf.methods.core.pathways", "deft_hf.data.labels", "deft_hf.scoring.confusion"]
)
def test_leaves_are_light(module: str):
    heavy = {"transformers", "datasets", "accelerate", "huggingface_hub", "pandas", "kornia_rs"}
    if module in ("deft_hf.methods", "deft_hf.data.labels"):
        heavy.add("torch")
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("module", [name for name in MODULES if inside(name, *LEAVES)])
def test_leaves_know_nothing_of_trainer_recipe_and_hub(module: str):
    for name in imports(MODULES[module], module):
        assert not inside(name, *FORBIDDEN_IN_LEAVES), f"{module} imports {name}"
        assert name not in ("transformers.Trainer", "transformers.TrainingArguments"), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_can_be_read_in_one_sitting(module: str):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    # What Trainer calls can only stand in one class.
    most = 520 if module == "deft_hf.trainer.trainer" else 400
    assert lines <= most, f"{module} has {lines} lines: split it by responsibility"


def test_public_names_exist_and_are_the_ones_a_type_checker_sees():
    assert all(callable(getattr(deft_hf, name)) for name in deft_hf.__all__ if name != "__version__")
    front = ast.parse(MODULES["deft_hf"].read_text(encoding="utf-8"))
    checked = next(node for node in front.body if isinstance(node, ast.If))
    static = {f"{node.module}.{alias.name}" for node in checked.body for alias in node.names}
    lazy = {f"deft_hf.{home}.{name}" for name, home in deft_hf._HOMES.items()}
    assert static == lazy
    with pytest.raises(AttributeError, match="no attribute 'DeftTrainer'"):
        deft_hf.DeftTrainer  # noqa: B018


def test_training_imports_nothing_that_only_an_option_needs():
    """kornia-rs is for PNG files, matplotlib for reports, evaluate for who takes `MeanIoU` in its place."""
    code = (
        "import sys\n"
        "def loaded(): print([name for name in ('kornia_rs', 'evaluate', 'matplotlib') if name in sys.modules])\n"
        "from deft_hf import DeFTTrainer; loaded()\n"
        "from deft_hf.data import TrainTransform; TrainTransform((8, 8)); loaded()\n"
        "from deft_hf import MeanIoU; loaded()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["[]", "[]", "['evaluate']"]


def test_a_recipe_is_trained_without_what_comes_after_or_is_for_few():
    """matplotlib draws the report, scipy.signal corrupts images: together they take a second to load."""
    code = "import sys, deft_hf.runs.several; print(sorted({'matplotlib', 'scipy.signal', 'kornia'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, deft_hf; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
