"""`mesh bench`: its document, its table, what it refuses, and Ctrl-C."""

from __future__ import annotations

import signal

import pytest

from tests.end_to_end.commands import LocalFleet


@pytest.mark.parametrize("source", ["node", "client"])
def test_document(fleet: LocalFleet, digits: str, source: str) -> None:
    document = fleet.run("bench", digits, "--source", source, "--seconds", "0.3", "--json").ok().document()
    assert document["throughput_per_s"] > 0
    assert 0 < document["latency_ms"]["p50"] <= document["latency_ms"]["p99"]
    assert set(document["predicted"]) == {"throughput_per_s", "latency_ms"}
    assert [stage["stage"] for stage in document["stages"]] == [0, 1]
    names = {daemon.name for daemon in fleet.daemons}
    for stage in document["stages"]:
        assert stage["device"] in names
        assert stage["compute_ms"] > 0
        assert stage["queue_ms"] >= 0


def test_table(fleet: LocalFleet, digits: str) -> None:
    shown = fleet.run("bench", digits, "--seconds", "0.2", "--window", "1").ok().stdout
    assert shown.startswith("STAGE")
    assert "frames/s" in shown and "window 1" in shown


def test_what_cannot_be_measured(fleet: LocalFleet) -> None:
    fleet.run("bench", "nowhere", "--json").fails("deployment-not-found", 3, "nowhere")
    fleet.run("bench", "digits", "--seconds", "0", "--json").fails("usage", 2, "--seconds")


@pytest.mark.parametrize("source", ["node", "client"])
def test_interrupted(fleet: LocalFleet, digits: str, source: str) -> None:
    with fleet.start("bench", digits, "--source", source, "--seconds", "60", "--json") as measuring:
        fleet.wait_for_frames(digits, 5)
        measuring.send(signal.SIGINT)
        ended = measuring.wait().interrupted()
    assert ended.stdout == ""
    fleet.run("bench", digits, "--seconds", "0.2").ok()
