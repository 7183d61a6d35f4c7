"""Shell completion: what a shell is told when a person presses the tabulator key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT

HEAD = ("-m", "nodes")


def run(*arguments: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "_MESH", "COMP_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, *HEAD, *arguments], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(line: str) -> list[str]:
    words = line.split(" ")
    return run(_MESH_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)).split()


@pytest.mark.parametrize(
    ("line", "proposals"),
    [
        ("mesh do", ["doctor"]),
        ("mesh lab ", ["up", "exec", "fault", "status", "down"]),
        ("mesh bench camera --sour", ["--source"]),
        ("mesh bench camera --source ", ["node", "client"]),
        ("mesh doctor --j", ["--json"]),
    ],
)
def test_commands_options_and_choices_are_proposed(line: str, proposals: list[str]) -> None:
    assert complete(line) == proposals


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str) -> None:
    assert "_MESH_COMPLETE=complete" in run(_MESH_COMPLETE=f"source_{shell}")


def test_completion_installs_itself_for_the_shell_that_runs(tmp_path: Path) -> None:
    told = run("--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "bash completion installed" in told
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "complete -o default -F _mesh_completion mesh" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
