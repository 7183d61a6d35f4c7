"""What systemd is told, by a socket of ours in its place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.discovery.memory import MemoryNetwork
from mesh.errors import UsageError
from mesh.runtime.service_manager import ServiceManager
from mesh.runtime.supervise import Supervisor
from tests.runtime.mesh_on_loopback import make_coordinator, make_node, probe_at_once, running

WATCHDOG_US = 200_000
PERIOD_S = WATCHDOG_US / 1e6 / 2


class Manager:
    """Receives, in place of systemd."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def messages(self) -> list[str]:
        """Everything that has come since the last look."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096).decode())
        return found

    async def next_message(self) -> str:
        received = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 4096), 10)
        return received.decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


async def test_a_node_tells_that_it_listens_lives_and_stops(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_at_once(monkeypatch)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(WATCHDOG_US))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    async with running(make_node(MemoryNetwork(), tmp_path, "left")) as node:
        ready = (await manager.next_message()).splitlines()
        assert ready[0] == "READY=1"
        assert ready[1] == f"STATUS=node left listens on {node.address}"
        host, _, port = node.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))  # it does listen
        writer.close()
        await writer.wait_closed()
        began = time.monotonic()
        assert [await manager.next_message() for _ in range(4)] == ["WATCHDOG=1"] * 4
        assert time.monotonic() - began >= 2.5 * PERIOD_S, "pings come faster than every half interval"
    told = manager.messages()
    assert "STOPPING=1" in told and set(told) <= {"STOPPING=1", "WATCHDOG=1"}


async def test_a_coordinator_tells_the_same(manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    async with running(make_coordinator(MemoryNetwork(), tmp_path)) as coordinator:
        assert await manager.next_message() == f"READY=1\nSTATUS=coordinator hall listens on {coordinator.address}"
    assert manager.messages() == ["STOPPING=1"]


async def test_a_blocked_event_loop_sends_no_ping(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(WATCHDOG_US)}
    async with Supervisor() as tasks:
        ServiceManager.from_environment(environment).ready(tasks, "here")
        assert (await manager.next_message()).startswith("READY=1")
        assert await manager.next_message() == "WATCHDOG=1"
        manager.messages()
        time.sleep(4 * PERIOD_S)  # noqa: ASYNC251 - this is the fault
        assert manager.messages() == []
        assert await manager.next_message() == "WATCHDOG=1", "the loop runs again"


async def test_an_abstract_socket() -> None:
    manager = Manager(f"@infermesh-test-{secrets.token_hex(8)}")
    try:
        async with Supervisor() as tasks:
            ServiceManager(manager.address).ready(tasks, "here")
        assert manager.messages() == ["READY=1\nSTATUS=here"]
    finally:
        manager.close()


@pytest.mark.parametrize(
    "environment", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "200000"}], ids=["nothing", "empty", "no socket"]
)
async def test_without_a_service_manager_nothing_is_said(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> socket.socket:
        raise AssertionError("a socket was opened")

    manager = ServiceManager.from_environment(environment)
    async with Supervisor() as tasks:
        monkeypatch.setattr(socket, "socket", refuse)
        manager.ready(tasks, "here")
        manager.stopping()
        monkeypatch.undo()
        assert not tasks._running


async def test_the_watchdog_of_another_process_is_not_fed(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    async with Supervisor() as tasks:
        ServiceManager.from_environment(environment).ready(tasks, "here")
        assert not tasks._running


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "@"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "0"},
    ],
)
def test_an_environment_that_makes_no_sense_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"NOTIFY_SOCKET|WATCHDOG_USEC"):
        ServiceManager.from_environment(environment)


async def test_a_socket_that_nobody_reads_is_an_error_at_the_start_only(tmp_path: Path) -> None:
    manager = ServiceManager(str(tmp_path / "nobody"))
    async with Supervisor() as tasks:
        with pytest.raises(UsageError, match="nobody"):
            manager.ready(tasks, "here")
        manager.stopping()
