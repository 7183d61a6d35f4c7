"""`mesh bench`: its document, its table, what it refuses, and Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import LocalFleet

ROUNDING_US = 0.002
"""Times are written to the nanosecond."""


@pytest.mark.parametrize("source", ["node", "client"])
def test_document(fleet: LocalFleet, digits: str, source: str) -> None:
    document = fleet.run("bench", digits, "--source", source, "--seconds", "0.3", "--json").ok().document()
    assert document["throughput_per_s"] > 0
    assert 0 < document["latency_ms"]["p50"] <= document["latency_ms"]["p99"]
    assert set(document["predicted"]) == {"throughput_per_s", "latency_ms"}
    assert len(document["energy"]["devices"]) == len(document["stages"])
    for each in document["energy"]["devices"]:
        assert (each["joules_per_frame"] is None) == (each["watts_above_idle"] is None)
        assert each["source"]
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


def check_kernels_inside(kernels: list[dict[str, Any]], computed: list[dict[str, Any]]) -> None:
    """Every kernel lies within a frame's compute time, on its lane; together they fill it."""
    assert kernels
    for span in computed:
        inside = [
            each
            for each in kernels
            if (each["pid"], each["tid"]) == (span["pid"], span["tid"])
            and span["ts"] - ROUNDING_US <= each["ts"] < span["ts"] + span["dur"]
        ]
        assert sum(each["dur"] for each in inside) == pytest.approx(span["dur"], abs=ROUNDING_US * (len(inside) + 1))
    assert all(each["args"]["profiled_us"] >= 0 for each in kernels)


def test_a_trace_without_kernels(fleet: LocalFleet, digits: str, tmp_path: Path) -> None:
    out = tmp_path / "timeline.json"
    told = fleet.run("trace", digits, "--out", str(out), "--seconds", "0.2", "--no-kernels", "--json").ok().document()
    assert {clock["no_kernels_because"] for clock in told["clocks"]} == {"not asked for"}
    assert "kernel" not in {event.get("cat") for event in json.loads(out.read_text())["traceEvents"]}


@pytest.mark.parametrize("source", ["client", "node"])
def test_trace(fleet: LocalFleet, digits: str, source: str, tmp_path: Path) -> None:
    out = tmp_path / "timeline.json"
    options = ("--out", str(out), "--seconds", "0.2", "--rate", "100", "--source", source)
    told = fleet.run("trace", digits, *options, "--json").ok().document()
    assert [clock["stage"] for clock in told["clocks"]] == [0, 1]
    assert all(abs(clock["offset_ms"]) <= clock["error_ms"] < 100 for clock in told["clocks"])
    document = json.loads(out.read_text())
    spans = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == told["events"] > 20
    kernels = [event for event in spans if event["cat"] == "kernel"]
    check_kernels_inside(kernels, [event for event in spans if event["cat"] == "compute"])
    assert all(clock["kernels"] > 0 for clock in told["clocks"]), told
    rows = {(event["pid"], event["cat"]) for event in spans if event["cat"] != "kernel"}
    stages = {(pid, row) for pid in (0, 1) for row in ("waiting", "compute", "sending")}
    if source == "client":
        stages = {(0, "client"), *((pid + 1, row) for pid, row in stages)}
    assert rows == stages
    assert min(event["ts"] for event in spans) == 0
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_be_traced(fleet: LocalFleet, tmp_path: Path) -> None:
    fleet.run("trace", "digits", "--out", str(tmp_path), "--json").fails("usage", 2, "--out")
    fleet.run("trace", "nowhere", "--out", str(tmp_path / "t"), "--json").fails("deployment-not-found", 3, "nowhere")
    assert list(tmp_path.iterdir()) == []
