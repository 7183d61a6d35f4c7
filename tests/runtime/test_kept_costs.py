"""What commands measure where they plan by themselves: kept between them, shared, and never worth failing for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.core.plan import PlanOptions
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.errors import StorageReadOnly
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.fleet import Fleet, open_fleet
from mesh.runtime.supervise import Supervisor
from mesh.storage import cost_store
from tests.runtime.mesh_on_loopback import make_model, make_node, probe_at_once, running

MODEL = make_model()
MEASURED, LINKED, KEPT = "runs the whole model", "MB/s", "not kept"


@contextlib.asynccontextmanager
async def open_pair(folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    probe_at_once(patch)
    network = MemoryNetwork()
    async with (
        running(make_node(network, folder, "first")),
        running(make_node(network, folder, "second")),
        Supervisor() as tasks,
        open_fleet(MemoryDiscovery(network), tasks, settles=False) as fleet,
    ):
        yield fleet


async def plan(fleet: Fleet, file: Path | None, *, measure: bool = False) -> list[str]:
    """What a command says that plans in a process of its own."""
    lines = list[str]()
    await Coordinator(fleet, file).plan(MODEL, PlanOptions(measure=measure), lines.append)
    return lines


def count(lines: list[str], words: str) -> int:
    return sum(words in line for line in lines)


async def test_what_one_command_measured_the_next_one_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state" / "commands" / "costs"
    async with open_pair(tmp_path, monkeypatch) as fleet:
        first = await plan(fleet, file)
        assert (count(first, MEASURED), count(first, LINKED), count(first, " ago")) == (1, 2, 0)
        second = await plan(fleet, file)
        assert (count(second, MEASURED), count(second, LINKED)) == (0, 0)
        assert count(second, " ago") == 2, "of the model, of the links"
        anew = await plan(fleet, file, measure=True)
        assert (count(anew, MEASURED), count(anew, LINKED), count(anew, " ago")) == (1, 2, 0)
        assert count(await plan(fleet, None), MEASURED) == 1, "without a file each measures by itself"
        file.write_bytes(file.read_bytes()[:-1])
        damaged = await plan(fleet, file)
        assert count(damaged, "set aside") == 1 and count(damaged, MEASURED) == 1


async def test_commands_go_on_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    async with open_pair(tmp_path, monkeypatch) as fleet:
        lines = await plan(fleet, tmp_path / "file" / "costs")
        assert count(lines, KEPT) == 1 and count(lines, MEASURED) == 1

        def refuse(path: Path, data: bytes) -> None:
            raise StorageReadOnly(f"cannot write {path}: Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(cost_store, "write_atomically", refuse)
            coordinator = Coordinator(fleet, tmp_path / "read-only" / "costs")
            lines = []
            for _ in range(2):
                await coordinator.plan(MODEL, PlanOptions(), lines.append)
        assert count(lines, KEPT) == 1 and count(lines, "Read-only") == 1, "said once"
        assert count(lines, MEASURED) == 1, "and kept in memory"

        gone = Coordinator(fleet, tmp_path / "gone" / "costs")
        await gone.plan(MODEL, PlanOptions(), lines.append)
        shutil.rmtree(tmp_path / "gone")
        lines = []
        await gone.plan(MODEL, PlanOptions(measure=True), lines.append)
        assert count(lines, KEPT) == 1
