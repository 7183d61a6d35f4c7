"""Records and locks of labs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import LabError, Refused
from mesh.lab import state
from mesh.lab.faults import Faults
from mesh.lab.state import Daemon, DeviceState, LabRecord, Phase

FLEET = "[[device]]\nname = 'a'\n"
RECORD = LabRecord("x", Phase.UNFINISHED, FLEET, True, sys.executable)


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "STATE_ROOT", tmp_path / "run")
    monkeypatch.setattr(state, "DATA_ROOT", tmp_path / "lib")
    return tmp_path


def test_a_record_comes_back() -> None:
    with state.lock_lab("x"):
        assert state.read_record("x") is None
        state.write_record(RECORD)
        assert state.read_record("x") == RECORD
        up = dataclasses.replace(RECORD, phase=Phase.UP)
        state.write_record(up)
        assert state.read_record("x") == up
    assert up.topology.devices[0].name == "a"


def test_devices_come_back() -> None:
    devices = {
        "a": DeviceState(Daemon(12, 345), Faults(is_deaf=True, loss_percent=0.5, bits_per_second=10, frozen_until=2.5)),
        "b": DeviceState(),
    }
    with state.lock_lab("x"):
        assert state.read_devices("x") == {}
        state.write_devices("x", devices)
        assert state.read_devices("x") == devices


@pytest.mark.parametrize("damage", ["", "{", "{}", '{"phase": "odd"}', '{"phase": "up", "more": 1}'])
def test_damage_is_named(damage: str) -> None:
    with state.lock_lab("x"):
        (state.lab_folder("x") / "lab.json").write_text(damage)
        with pytest.raises(LabError, match=r"mesh lab down"):
            state.read_record("x")


def test_the_lock_keeps_others_out() -> None:
    with state.lock_lab("x"):
        assert state.is_locked("x")
        with pytest.raises(Refused, match="changed by another process"), state.lock_lab("x", timeout_s=0.1):
            pass
        with state.lock_lab("y", timeout_s=0):
            pass
    assert not state.is_locked("x")
    assert not state.is_locked("never")


def test_the_lock_dies_with_its_holder(roots: Path) -> None:
    code = (
        "import pathlib, sys; from mesh.lab import state; state.STATE_ROOT = pathlib.Path(sys.argv[1])\n"
        "with state.lock_lab('x'): print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(state.STATE_ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert state.is_locked("x")
        holder.kill()
        holder.wait()
        with state.lock_lab("x", timeout_s=5):
            pass


def test_removing_leaves_nothing(roots: Path) -> None:
    with state.lock_lab("x"):
        state.write_record(RECORD)
        (state.data_folder("x") / "a").mkdir(parents=True)
        assert state.list_recorded() == {"x"}
        state.remove_record("x")
    assert list(roots.iterdir()) == []
    assert state.list_recorded() == set()


def test_a_lock_on_a_removed_folder_is_none() -> None:
    """Who waited while the lab was taken down gets the lock of the new folder, not of the old."""
    with state.lock_lab("x"):
        state.remove_record("x")
        with state.lock_lab("x", timeout_s=0):
            assert state.lab_folder("x").is_dir()


def test_other_labs_stay() -> None:
    for name in ("x", "y"):
        with state.lock_lab(name):
            state.write_record(dataclasses.replace(RECORD, name=name))
    with state.lock_lab("x"):
        state.remove_record("x")
    assert state.list_recorded() == {"y"}
