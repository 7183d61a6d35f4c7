"""Engines of real daemons: they are processes of their own, whose end costs no frame, and which end with the daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.end_to_end.commands import Daemon, LocalFleet, run, wait_until

END_LIMIT_S = 5.0


def find_engines(daemon: Daemon) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{daemon.pid}/task").glob("*/children"):
        for word in path.read_text().split():
            if b"mesh.engines.child" in Path(f"/proc/{word}/cmdline").read_bytes():
                found.add(int(word))
    return found


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_killed_engine_costs_no_frame_and_none_outlives_its_daemon(fleet: LocalFleet) -> None:
    head, _ = fleet.deploy("engines", 2)
    before = find_engines(head)
    assert before
    source = ("--source", "synthetic:random?count=300", "--sink", "null:", "--rate", "100", "--json")
    with fleet.start("stream", "engines", *source) as streaming:
        fleet.wait_for_frames("engines", 20)
        for engine in before:
            os.kill(engine, signal.SIGKILL)
        document = streaming.wait().ok().document()
    assert document["outcomes"] == {"ok": 300}
    after = find_engines(head)
    assert after
    assert not after & before
    fleet.run("undeploy", "engines").ok()
    wait_until(lambda: not any(map(is_there, after - find_engines(head))), END_LIMIT_S, "the end of unused engines")
    fleet.deploy_on("engines", [head], head.folder.parent)
    engines = find_engines(head)
    assert engines
    head.stop(signal.SIGKILL)
    try:
        wait_until(lambda: not any(map(is_there, engines)), END_LIMIT_S, "the end of its engines")
    finally:
        head.revive()
    fleet.run("undeploy", "engines").ok()


def test_an_unknown_place_for_engines_is_refused(tmp_path: Path) -> None:
    end = run("node", "--data-dir", str(tmp_path), "--no-mdns", "--engine-mode", "fibre", "--json")
    end.fails("usage", 2, "fibre", "process, thread")


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    end = run("node", "--data-dir", str(tmp_path), "--no-mdns", "--engine", "abacus", "--json")
    end.fails("usage", 2, "abacus", "onnxruntime, openvino, auto")
