"""`mesh doctor` on a device of a lab whose network is broken in the ways that people meet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.hardware.listeners import parse_tcp_table
from tests.lab.lab_commands import device_of, environment, find_traces, good, mesh, need_lab

FLEET = """
[[device]]
name = "hall"
cpu = 0.5
memory = "300MB"
rate = "100Mbit"

[[device]]
name = "camera"
role = "client"
cpu = 0.6
memory = "300MB"
rate = "100Mbit"
"""
LAB = f"doctor-{os.getpid()}"
START_LIMIT_S = 30.0

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need_lab()
    file = tmp_path_factory.mktemp("fleet") / "two.toml"
    file.write_text(FLEET)
    good("lab", "up", str(file), "--name", LAB)
    yield LAB
    good("lab", "down", "--name", LAB)
    assert find_traces(LAB) == []


def run_in(namespace: str, *command: str) -> None:
    line = ["nsenter", f"--net=/run/netns/{namespace}", "--", *command]
    subprocess.run(line, check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})


@contextlib.contextmanager
def started_in(namespace: str, *command: str, port: int) -> Iterator[None]:
    """A process that runs in a network namespace, from when it listens."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        tables = [Path(f"/proc/{process.pid}/net/{name}") for name in ("tcp", "tcp6")]
        while port not in [taken for table in tables for taken, _, _ in parse_tcp_table(table.read_text())]:
            assert process.poll() is None and time.monotonic() < deadline, f"{command} does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


def examine(lab: str) -> dict[str, dict[str, Any]]:
    """What is not all right, by check."""
    return {each["check"]: each for each in examine_all(lab) if each["severity"] != "ok"}


def examine_all(lab: str) -> list[dict[str, Any]]:
    done = mesh("lab", "exec", "--name", lab, "camera", "--", "mesh", "doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert done.returncode == int(any(each["severity"] == "broken" for each in findings))
    return findings


def test_a_taken_port_a_bridge_and_a_cloned_id_are_named(lab: str, tmp_path: Path) -> None:
    camera = device_of(lab, "camera")["namespace"]
    shutil.copytree(f"/var/lib/mesh-lab/{lab}/hall/data", tmp_path / "data", ignore=shutil.ignore_patterns("*.partial"))
    copy = [sys.executable, "-m", "nodes", "node", "--name", "copy", "--insecure", "--threads", "1"]
    run_in(camera, "ip", "link", "add", "docker0", "type", "bridge")
    run_in(camera, "ip", "address", "add", "172.17.0.1/16", "dev", "docker0")
    run_in(camera, "ip", "link", "set", "docker0", "up")
    try:
        with (
            started_in(camera, *copy, "--data-dir", str(tmp_path / "data"), port=50071),
            started_in(camera, sys.executable, "-m", "http.server", "8000", "--bind", "0.0.0.0", port=8000),
        ):
            found = examine(lab)
    finally:
        run_in(camera, "ip", "link", "delete", "docker0")
    assert found["bridges"]["subject"] == "docker0 (172.17.0.0/16)"
    assert (found["ports"]["severity"], found["ports"]["subject"]) == ("broken", "port 8000")
    assert "http.server" in found["ports"]["message"]
    assert found["identities"]["severity"] == "broken"
    for name in ("copy", "hall"):
        assert f"{name} at " in found["identities"]["message"]
    assert not found.keys() & {"multicast", "nodes", "versions", "disk", "providers"}, found


def test_multicast_that_the_switch_blocks_is_named(lab: str) -> None:
    hall, camera = device_of(lab, "hall"), device_of(lab, "camera")
    # The two have talked: what mDNS misses is found among the neighbours.
    code = f"import socket; socket.create_connection(({hall['address']!r}, 50071), 5)"
    good("lab", "exec", "--name", lab, "camera", "--", sys.executable, "-c", code)
    switch = f"{camera['namespace'].rpartition('_')[0]}_switch"
    ports = ("port1", "port2")
    for port in ports:
        run_in(switch, "ip", "link", "set", "dev", port, "type", "bridge_slave", "mcast_flood", "off")
    try:
        found = examine(lab)
    finally:
        for port in ports:
            run_in(switch, "ip", "link", "set", "dev", port, "type", "bridge_slave", "mcast_flood", "on")
    assert (found["multicast"]["severity"], found["multicast"]["subject"]) == (
        "broken",
        f"eth0 ({camera['address']})",
    )
    assert f"hall at {hall['address']}:50071" in found["multicast"]["message"]
    assert "5353" in found["multicast"]["fix"]


def test_an_interface_without_multicast_is_named(lab: str) -> None:
    camera = device_of(lab, "camera")
    run_in(camera["namespace"], "ip", "link", "set", "eth0", "multicast", "off")
    try:
        broken = [each for each in examine_all(lab) if each["severity"] == "broken"]
    finally:
        run_in(camera["namespace"], "ip", "link", "set", "eth0", "multicast", "on")
    assert [(each["check"], each["subject"]) for each in broken] == [("multicast", f"eth0 ({camera['address']})")]
    assert broken[0]["fix"].startswith("ip link set eth0 multicast on")
