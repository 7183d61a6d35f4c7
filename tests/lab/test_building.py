"""What is refused before anything is built. These need no rights; real labs are in test_lab_root.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mesh.errors import LabError, UsageError
from mesh.lab import building, commands, state
from mesh.lab.building import build, check_machine
from nodes.cli import app

GOOD = '[[device]]\nname = "pi"\n'


@pytest.fixture(autouse=True)
def nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where labs would be written down; and whoever gets as far as making something fails."""
    monkeypatch.setattr(state, "STATE_ROOT", tmp_path / "run")
    monkeypatch.setattr(state, "DATA_ROOT", tmp_path / "lib")
    monkeypatch.setattr(building, "_make", lambda *_: pytest.fail("something was built"))


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match=r"needs root.*sudo"):
        build(GOOD, "x")


def test_no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands, "find_missing_tools", lambda: ["ip", "tc"])
    with pytest.raises(LabError, match=r"needs the programs ip, tc.*iproute2"):
        check_machine()


def test_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands, "find_missing_tools", list)
    monkeypatch.setattr(commands, "why_no_namespaces", lambda: "unshare failed: Operation not permitted")
    with pytest.raises(LabError, match=r"cannot be made here: unshare failed: Operation not permitted"):
        check_machine()


@pytest.mark.parametrize(
    "text", ["", '[[device]]\nname = "pi"\ncpus = 2', GOOD + GOOD, '[[device]]\nname="a"\nrate="-1Mbit"']
)
def test_a_bad_fleet_is_told_first(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to somebody without rights, who may be writing the file."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError):
        build(text, "x")


def test_a_bad_name_is_told_first() -> None:
    with pytest.raises(UsageError, match="lab name"):
        build(GOOD, "../x")


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["lab", "up", "missing.toml"], 3),
        (["lab", "up", "."], 2),
        (["lab", "up"], 2),
        (["lab", "fault", "pi", "burn"], 2),
        (["lab", "fault", "pi", "freeze"], 2),
        (["lab", "exec", "pi"], 2),
    ],
)
def test_exit_codes(words: list[str], exit_code: int) -> None:
    assert CliRunner().invoke(app, words).exit_code == exit_code


def test_a_binary_file_is_no_fleet(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_bytes(b"\xff\xfe\x00" * 100)
    assert CliRunner().invoke(app, ["lab", "up", str(file)]).exit_code == 2
