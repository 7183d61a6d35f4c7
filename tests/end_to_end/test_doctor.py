"""`mesh doctor` beside real daemons on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.end_to_end.commands import Daemon, run

LOOPBACK_ONLY = ("--interface", "127.0.0.1")


def test_a_copied_data_folder_is_named(tmp_path: Path) -> None:
    hall = Daemon("hall", tmp_path / "hall").start()
    assert hall.stop() == 0
    shutil.copytree(tmp_path / "hall", tmp_path / "attic")
    attic = Daemon("attic", tmp_path / "attic")
    try:
        hall.start()
        attic.start()
        assert hall.id == attic.id
        ended = run(
            "doctor", "--json", *LOOPBACK_ONLY, "--data-dir", str(tmp_path), "--peer", hall.address,
            "--peer", attic.address, "--peer", "127.0.0.1:1",
        )  # fmt: skip
    finally:
        for daemon in (hall, attic):
            daemon.stop()
    assert ended.code == 1, ended.told()
    ended.check_orderly()
    document = ended.document()
    assert document["healthy"] is False
    broken = {each["check"]: each for each in document["findings"] if each["severity"] == "broken"}
    assert f"attic at {attic.address}, hall at {hall.address}" in broken["identities"]["message"]
    assert broken["nodes"]["subject"] == "127.0.0.1:1"
    clocks = [each for each in document["findings"] if each["check"] == "clocks" and each["subject"] == "nodes"]
    assert [each["severity"] for each in clocks] == ["ok"]


def test_one_daemon_at_two_addresses_is_one(tmp_path: Path) -> None:
    hall = Daemon("hall", tmp_path / "hall").start()
    try:
        other_name = hall.address.replace("127.0.0.1", "localhost")
        ended = run("doctor", *LOOPBACK_ONLY, "--data-dir", str(tmp_path), "--peer", hall.address, "--peer", other_name)
    finally:
        hall.stop()
    assert "every daemon has an id of its own" in ended.stdout, ended.told()
    assert "1 answer: hall" in ended.stdout, ended.told()


def test_a_peer_that_is_no_address_is_an_error_of_usage() -> None:
    run("doctor", "--peer", "nonsense", "--json").fails("usage", 2, "not an address with a port")


def test_an_interface_that_is_not_there_is_an_error_of_usage() -> None:
    run("doctor", "--json", "--interface", "eth77").fails("usage", 2, "no network interface eth77")
