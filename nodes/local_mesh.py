"""Real daemons on this machine for the length of a block: what `mesh demo` and the tests run on.

Each is a `mesh node` process on loopback with a data folder of its own below one temporary folder.
They watch the pipe from this process, so that even killing it leaves none behind, and none of their files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from mesh.core.ids import NodeId
from mesh.errors import MeshError, Timeout

LOOPBACK = "127.0.0.1"

START_TIMEOUT_S = 30.0
"""For a daemon to listen: one second on a desktop, several on a small board."""

STOP_TIMEOUT_S = 10.0
"""To drain and say goodbye; what is still there then is killed."""

LOG_TAIL_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class LocalNode:
    process: asyncio.subprocess.Process
    node_id: NodeId
    name: str
    address: str


@contextlib.asynccontextmanager
async def local_nodes(
    count: int, folder: Path, prefix: str = "demo", extra: tuple[str, ...] = ()
) -> AsyncIterator[list[LocalNode]]:
    """`count` daemons that listen; stopped, and killed if need be, when the block ends."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number in range(1, count + 1):
            processes.append(await _start(f"{prefix}-{number}", folder, extra))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                names = [f"{prefix}-{number}" for number in range(1, count + 1)]
                nodes = [await _ready(process, name, folder) for process, name in zip(processes, names, strict=True)]
        except TimeoutError:
            raise Timeout(f"the daemons did not listen within {START_TIMEOUT_S:g} s") from None
        yield nodes
    finally:
        await asyncio.shield(_stop(processes))


async def _start(name: str, folder: Path, extra: tuple[str, ...]) -> asyncio.subprocess.Process:
    arguments = (
        *(sys.executable, "-m", "nodes", "node", "--json", "--temporary", "--name", name),
        *("--data-dir", str(folder / name), "--listen", f"{LOOPBACK}:0", "--interface", LOOPBACK, *extra),
    )
    with (folder / f"{name}.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
        )


async def _ready(process: asyncio.subprocess.Process, name: str, folder: Path) -> LocalNode:
    assert process.stdout is not None  # noqa: S101 - it was asked for above
    line = await process.stdout.readline()
    if not line:
        log = (folder / f"{name}.log").read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        raise MeshError(f"daemon {name} ended before it listened: {log.strip() or 'it said nothing'}")
    told = json.loads(line)
    return LocalNode(process, NodeId(told["id"]), told["name"], told["address"])


async def _stop(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        if process.returncode is None:
            process.terminate()
    for process in processes:
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
