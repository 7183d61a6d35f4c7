"""Real daemons on this machine for the length of a block: what `mesh demo` and the tests run on.

Each is a `mesh node` process on loopback with a data folder of its own below one temporary folder.
They watch the pipe from this process, so that even killing it leaves none behind; and their folder is removed by a
shell that waits for the last of them (`vanishing_folder`), so that it leaves none of their files either.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh.core.ids import NodeId
from mesh.errors import MeshError, Timeout

LOOPBACK = "127.0.0.1"

START_TIMEOUT_S = 30.0
"""For a daemon to listen: one second on a desktop, several on a small board."""

STOP_TIMEOUT_S = 10.0
"""To drain and say goodbye; what is still there then is killed."""

LOG_TAIL_CHARACTERS = 600


_REMOVER = 'trap "" INT TERM HUP; cat >/dev/null; rm -rf -- "$1"'
"""Waits until nobody holds the other end of its standard input, deaf to what ends the others."""


@dataclass(frozen=True, slots=True)
class VanishingFolder:
    path: Path
    hold: int
    """A descriptor: the folder stays for as long as any process has it open."""


@contextlib.contextmanager
def vanishing_folder(prefix: str) -> Iterator[VanishingFolder]:
    """A temporary folder that goes with the last process that holds it, at whatever moment this one is killed."""
    path = Path(tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(6)}"
    watched, hold = os.pipe()
    try:
        # Before the folder is made: a process that is killed in between leaves nothing.
        remover = subprocess.Popen(  # noqa: S603 - the path is an argument, not part of the script
            ["/bin/sh", "-c", _REMOVER, "sh", str(path)],
            stdin=watched,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except BaseException:
        os.close(hold)
        raise
    finally:
        os.close(watched)
    try:
        path.mkdir(mode=0o700)
        yield VanishingFolder(path, hold)
    finally:
        os.close(hold)
        remover.wait()


@dataclass(frozen=True, slots=True)
class LocalNode:
    process: asyncio.subprocess.Process
    node_id: NodeId
    name: str
    address: str
    gateway: dict[str, str] = field(default_factory=dict)
    """Where its gateway serves each kind; empty where it has none."""


@contextlib.asynccontextmanager
async def local_nodes(
    count: int, folder: VanishingFolder, prefix: str = "demo", extra: tuple[str, ...] = ()
) -> AsyncIterator[list[LocalNode]]:
    """`count` daemons that listen; stopped, and killed if need be, when the block ends."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number in range(1, count + 1):
            processes.append(await _start(f"{prefix}-{number}", folder, extra))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                names = [f"{prefix}-{number}" for number in range(1, count + 1)]
                nodes = [
                    await _ready(process, name, folder.path) for process, name in zip(processes, names, strict=True)
                ]
        except TimeoutError:
            raise Timeout(f"the daemons did not listen within {START_TIMEOUT_S:g} s") from None
        yield nodes
    finally:
        await asyncio.shield(_stop(processes))


async def _start(name: str, folder: VanishingFolder, extra: tuple[str, ...]) -> asyncio.subprocess.Process:
    arguments = (
        *(sys.executable, "-m", "nodes", "node", "--json", "--stop-with-parent", "--name", name),
        *("--data-dir", str(folder.path / name), "--listen", f"{LOOPBACK}:0", "--interface", LOOPBACK, *extra),
    )
    with (folder.path / f"{name}.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            pass_fds=(folder.hold,),
        )


async def _ready(process: asyncio.subprocess.Process, name: str, folder: Path) -> LocalNode:
    assert process.stdout is not None  # noqa: S101 - it was asked for above
    line = await process.stdout.readline()
    if not line:
        log = (folder / f"{name}.log").read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        raise MeshError(f"daemon {name} ended before it listened: {log.strip() or 'it said nothing'}")
    told = json.loads(line)
    return LocalNode(process, NodeId(told["id"]), told["name"], told["address"], told.get("gateway", {}))


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
