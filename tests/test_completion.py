"""Completion of the command line: what bash offers, and that each shell gets a script."""

import shutil
import subprocess
import sys

import pytest

from deft_hf import completion
from deft_hf.recipe.shipped import shipped_recipes
from deft_hf.utils.completion import SHELLS
from deft_hf.utils.console import COMMANDS
from deft_hf.utils.errors import UserError

pytest.importorskip("shtab")
LINES = {
    "deft-hf ": set(COMMANDS),
    "deft-hf comp": {"compare", "completion"},
    "deft-hf train ": {*shipped_recipes(), "mine.yaml", "folder/"},
    "deft-hf train quick": {"quickstart"},
    "deft-hf train mi": {"mine.yaml"},
    "deft-hf train quickstart nuc": {"nuclei2_mobilenetv2"},
    "deft-hf evaluate model nuc": {"nuclei2_mobilenetv2"},
    "deft-hf train --": {"--help", "--dry-run", "--resume-anyway"},
    "deft-hf train mine.yaml --dr": {"--dry-run"},
    "deft-hf export checkpoint-1 out --dtype b": {"bfloat16"},
    "deft-hf export checkpoint-1 out --recipe quick": {"quickstart"},
    "deft-hf completion ": set(SHELLS),
    "deft-hf predict model pic": {"picture.png"},
}
# What bash does when Tab is pressed after a line.
TAB = """
source completion.bash
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ $line == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
  _shtab_deft_hf
  echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_recipes_and_files(tmp_path, capsys):
    completion.main(["bash"])
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    for name in ("mine.yaml", "picture.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    typed = "".join(f"{line}\n" for line in LINES)
    ran = subprocess.run(["bash", "-c", TAB], cwd=tmp_path, input=typed, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    offered = [set(words.split()) for words in ran.stdout.splitlines()]
    assert dict(zip(LINES, offered, strict=True)) == LINES


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_with_every_command_and_recipe(shell, capsys):
    completion.main([shell])
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, *shipped_recipes(), "resume-anyway"))


def test_without_shtab_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UserError, match=r"pip install 'deft-hf\[completion\]'"):
        completion.main(["zsh"])
