"""Nodes that were named to each other are all found by whoever names one of them."""

from __future__ import annotations

import time
from pathlib import Path

from tests.end_to_end.commands import Daemon, run

FOUND_LIMIT_S = 60.0


def test_whichever_node_is_named_all_that_know_each_other_are_found(tmp_path: Path) -> None:
    first = Daemon("first", tmp_path / "first").start()
    seeded = ("--no-mdns", "--threads", "1", "--peer", first.address)
    others = [Daemon(name, tmp_path / name, extra=seeded) for name in ("second", "third")]
    try:
        for daemon in others:
            daemon.start()
        deadline = time.monotonic() + FOUND_LIMIT_S
        for daemon in (first, *others):  # the third knows the first, which knows the second
            found: list[str] = []
            while len(found) < 3:
                assert time.monotonic() < deadline, f"{daemon.name} leads to {found} only"
                told = run("nodes", "--no-mdns", "--peer", daemon.address, "--json").ok().document()
                found = [node["name"] for node in told["nodes"]]
            assert found == ["first", "second", "third"]
    finally:
        for daemon in (first, *others):
            if daemon.process is not None:
                assert daemon.stop() == 0
