import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

import deft_hf
from deft_hf.trainer import contract
from deft_hf.trainer.contract import FACTS, violations
from deft_hf.utils import upstream

PACKAGE = Path(deft_hf.__file__).parent
# Names of Python's own modules; those of named tuples are public.
ALLOWED = {"_exit", "_asdict", "_replace"}


def test_what_is_installed_is_what_the_code_relies_on():
    assert violations() == []


def only_violation():
    (found,) = violations()
    return found


def test_a_method_that_takes_something_else(monkeypatch):
    monkeypatch.setattr(Trainer, "_save_rng_state", lambda self, folder: None)
    assert only_violation() == (
        "transformers.trainer:Trainer._save_rng_state takes (self folder), expected (self output_dir); "
        "deft_hf.trainer.trainer relies on it (loud: the first checkpoint fails)"
    )


def test_a_method_that_is_gone(monkeypatch):
    monkeypatch.delattr(Trainer, "_load_scaler")
    assert "Trainer._load_scaler is gone" in only_violation()


def test_a_name_that_is_gone(monkeypatch):
    monkeypatch.delattr(torch, "_foreach_norm")
    assert "torch:_foreach_norm is gone" in only_violation()


def test_a_flag_that_nobody_reads(monkeypatch):
    def call_event(self, event, args, state, control, **kwargs):
        return getattr(self, event)(args, state, control, lr_scheduler=self.lr_scheduler, **kwargs)

    monkeypatch.setattr(CallbackHandler, "call_event", call_event)
    assert "has no `optimizer=self.optimizer` any more" in only_violation()


def test_a_step_in_another_order(monkeypatch):
    loop = next(fact for fact in FACTS["trainer.callbacks"] if fact.place.endswith("._run_epoch"))
    monkeypatch.setattr(contract, "FACTS", {"trainer.callbacks": (replace(loop, says=loop.says[::-1]),)})
    assert "or not in this order" in only_violation()


def test_another_number_of_values(monkeypatch):
    def values(self, args, dataloader):
        return (1, 2, 3, 4, 5, 6)

    monkeypatch.setattr(Trainer, "set_initial_training_values", values)
    assert "returns [6] values, expected 7" in only_violation()


def test_another_name_of_a_file(monkeypatch):
    monkeypatch.setattr("transformers.trainer.SCHEDULER_NAME", "scheduler.bin")
    assert "is 'scheduler.bin', expected 'scheduler.pt'" in only_violation()


def test_an_optional_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(upstream, "find_spec", lambda name: None)
    monkeypatch.setattr(upstream, "_resolve", lambda place: pytest.fail(place))
    everything = [fact for facts in FACTS.values() for fact in facts]
    optional = tuple(fact for fact in everything if fact.place.startswith(upstream.OPTIONAL))
    assert optional
    monkeypatch.setattr(contract, "FACTS", {"trainer.trainer": optional})
    assert violations() == []


def test_each_fact_has_a_module_that_is_there_and_says_what_breaks():
    for module, facts in FACTS.items():
        assert (PACKAGE / module.replace(".", "/")).with_suffix(".py").is_file(), module
        assert all(re.match("(loud|silent): ", fact.breaks) for fact in facts), module


def trees():
    for path in PACKAGE.rglob("*.py"):
        yield path.relative_to(PACKAGE.parent), ast.parse(path.read_text("utf-8"))


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_own(node):
    """Whether what an attribute is of is an object of deft_hf: `self` or `cls`."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined_here():
    """Private names that deft_hf gives to things of its own."""
    names = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
                names.add(node.attr)
    return {name for name in names if is_private(name)}


def unlisted(sources):
    """Private names of other packages in syntax trees, that no fact has, with the file that they are in."""
    texts = [text for facts in FACTS.values() for fact in facts for text in (fact.place, *fact.says)]
    listed = {name for text in texts for name in re.findall(r"\b_\w+", text)} | ALLOWED
    ours, found = defined_here(), {}
    for path, tree in sources:
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Attribute):
                inherited = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
                if inherited or node.attr not in ours:
                    names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("deft_hf"):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"):
                overrides = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                names = [name for name in overrides if hasattr(Trainer, name)]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
                names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
            found |= {name: str(path) for name in names if is_private(name) and name not in listed}
    return found


def test_the_package_uses_no_private_name_that_is_not_listed():
    assert unlisted(trees()) == {}


@pytest.mark.parametrize(
    "source",
    [
        "optimizer._unheard_of",
        "super()._unheard_of()",
        "from torch.optim import _unheard_of",
        "getattr(optimizer, '_unheard_of', None)",
    ],
)
def test_a_private_name_that_is_not_listed(source):
    assert unlisted([("here.py", ast.parse(source))]) == {"_unheard_of": "here.py"}


def test_an_override_that_is_not_listed():
    source = "class DeFTTrainer(Trainer):\n    def _wrap_model(self): ..."
    assert unlisted([("here.py", ast.parse(source))]) == {"_wrap_model": "here.py"}
