"""Docstrings: one dialect, that of Hugging Face, and examples that run."""

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import deft_hf

PACKAGE = Path(deft_hf.__file__).parent
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)
_ARGUMENT = re.compile(r"^\*{0,2}\w+ \(`.+`(, \*optional\*(, defaults to `.+`)?)?\):$")
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.AST) -> Iterator[_Documented]:
    """Public functions and classes of a module, and methods of these."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Documented) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def sections(node: _Documented) -> Iterator[tuple[str, list[list[str]]]]:
    """Title and entries of each section of the docstring; an entry is its lines."""
    for title, body in _SECTION.findall(f"{ast.get_docstring(node) or ''}\n"):
        entries: list[list[str]] = []
        for line in filter(None, body.split("\n")):
            if line[4] == " " and entries:
                entries[-1].append(line)
            else:
                entries.append([line.strip()])
        yield title, entries


def names(node: _Documented) -> set[str]:
    """Parameters of a function; parameters and attributes of a class."""
    if isinstance(node, ast.ClassDef):
        fields = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
        properties = {item.name for item in methods if item.decorator_list}
        stored = {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute) and _is_stored(item)}
        return fields.union(properties, stored, *(names(item) for item in methods if item.name == "__init__"))
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in every if argument is not None}


def _is_stored(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


@pytest.mark.parametrize("path", [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))])
def test_one_dialect(path: str):
    for node in public(ast.parse((PACKAGE / path).read_text())):
        for title, entries in sections(node):
            where = f"{path}, {node.name}, {title}"
            for first, *rest in entries:
                if title in ("Args", "Attributes"):
                    assert _ARGUMENT.match(first), f"{where}: found {first!r}, expected 'name (`type`, *optional*):'"
                    assert rest and all(line.startswith(" " * 8) for line in rest), f"{where}: {first} says nothing"
                    assert first.partition(" ")[0].lstrip("*") in names(node), f"{where}: {first} is no parameter"
                elif title == "Raises":
                    assert re.match(r"[A-Z]\w+(, [A-Z]\w+)*: ", first), f"{where}: found {first!r}"
            if title in ("Returns", "Yields"):
                found = entries[0][0]
                assert re.match("`.+`(:|$)", found), f"{where}: found {found!r}, expected '`type`: what it is'"


class Checker(doctest.OutputChecker):
    """Lets libraries print where an example shows nothing."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


# Their examples start from a trained model; what they show runs in tests of their own.
COMMANDS = {"compare", "evaluate", "export", "finetune", "init", "predict"}


@pytest.mark.parametrize("name", sorted(COMMANDS & set(deft_hf.__all__)))
def test_functions_of_commands_show_a_call(name: str):
    assert "from deft_hf import" in inspect.getdoc(deft_hf._at_home(name))


@pytest.mark.parametrize(
    "name", [name for name in deft_hf.__all__ if not name.startswith("__") and name not in COMMANDS]
)
def test_public_names_have_examples_that_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^```\w*$", "", inspect.getdoc(getattr(deft_hf, name)), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner(Checker(), optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)
