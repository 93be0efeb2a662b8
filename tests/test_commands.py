"""The command line as a whole."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import deft_hf
from deft_hf import __main__ as commands
from deft_hf import env
from deft_hf.runs import environment
from deft_hf.utils.console import program
from deft_hf.utils.errors import run_command

HEAVY = ("torch", "transformers", "datasets", "accelerate", "pandas", "matplotlib")


def test_every_entry_is_listed_once(capsys):
    commands.main([])
    listed = capsys.readouterr().out
    entries = set()
    for path in Path(deft_hf.__file__).parent.glob("*.py"):
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        entries |= {path.stem} if {"main", "run"} <= names else set()
    assert entries == set(commands.COMMANDS)
    lines = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert lines == list(commands.COMMANDS)


def test_an_entry_is_a_table_of_contents():
    folder = Path(deft_hf.__file__).parent
    for name in [*commands.COMMANDS, "__main__"]:
        assert len((folder / f"{name}.py").read_text().splitlines()) <= 60, name


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_loads_nothing_heavy(command):
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print([n for n in sys.argv.pop().split(',') if n in sys.modules]))\n"
        f"sys.argv = ['deft_hf', '--help', {','.join(HEAVY)!r}]\n"
        f"runpy.run_module('deft_hf.{command}', run_name='__main__')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("usage:") and told.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "leaf, absent",
    [
        ("deft_hf.data.labels", HEAVY),
        ("deft_hf.scoring.confusion", HEAVY[1:]),
        ("deft_hf.utils.errors", HEAVY),
        ("deft_hf.utils.console", HEAVY),
    ],
)
def test_leaves_load_nothing_heavy(leaf, absent):
    code = f"import sys, {leaf}; print([name for name in {absent} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "called, expected",
    [
        (("bin", "deft-hf"), "deft-hf train"),
        (("Scripts", "deft-hf.exe"), "deft-hf train"),
        (("deft_hf", "__main__.py"), "python -m deft_hf train"),
        (("deft_hf", "train.py"), "python -m deft_hf.train"),
        (("pytest", "__main__.py"), "python -m deft_hf.train"),
    ],
)
def test_usage_shows_how_a_command_was_called(called, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [os.path.join("/some", *called)])
    assert program("train") == expected


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_every_command_has_help_with_examples_and_refuses_misuse(command, capsys, monkeypatch):
    module = import_module(f"deft_hf.{command}")
    monkeypatch.setattr(sys, "argv", ["deft_hf", command, "--help"])
    with pytest.raises(SystemExit, match="0"):
        commands.main([command, "--help"])
    told = capsys.readouterr().out
    assert f"usage: python -m deft_hf.{command}" in told
    assert f"python -m deft_hf.{command}" in told.split("examples:")[1] or "accelerate launch" in told
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: module.main(["--no-such-option"]), "")
    printed = capsys.readouterr()
    assert printed.out == "" and "usage:" in printed.err


def test_an_unknown_command_and_a_closed_pipe(capsys):
    with pytest.raises(SystemExit, match="2"):
        commands.main(["trian"])
    printed = capsys.readouterr()
    assert printed.out == "" and "error: no such command: trian" in printed.err
    code = (
        "from deft_hf.utils.errors import run_command; run_command(lambda: [print('x' * 9999) for _ in range(99)], '')"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.close()
    assert writer.wait() == 141 and writer.stderr.read() == b""
    writer.stderr.close()


def test_env_tells_versions_and_no_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "oddsecret")
    monkeypatch.setenv("HF_ENDPOINT", "https://oddsecret@hub.example")
    monkeypatch.setenv("ACCELERATE_CONFIG", str(tmp_path / "private" / "config.yaml"))
    (tmp_path / "config.yaml").write_text(
        f"mixed_precision: bf16\nmain_training_function: {tmp_path}/x\nhub_token: oddsecret\n"
    )
    monkeypatch.setattr(environment, "default_config_file", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("HF_HUB_PROXY", "ana:geheim@proxy.example:3128")
    env.main(["--json"])
    told = capsys.readouterr().out
    facts = json.loads(told)
    assert facts["versions"]["deft_hf"] == deft_hf.__version__ and facts["hub_token"] == "set"
    assert facts["accelerate_config"]["mixed_precision"] == "bf16"
    assert facts["variables"]["ACCELERATE_CONFIG"] == "config.yaml"
    assert facts["variables"]["HF_ENDPOINT"] == "https://hub.example"
    assert facts["variables"]["HF_HUB_PROXY"] == "proxy.example:3128"
    assert "oddsecret" not in told and str(tmp_path) not in told and str(Path.home()) not in told
    env.main([])
    assert f"torch: {facts['versions']['torch']}" in capsys.readouterr().out
