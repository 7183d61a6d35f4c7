"""A node as a process of its own, to be killed or frozen: `python -m tests.runtime.node_process FOLDER`.

It runs the fake engine, listens on a free loopback port, tells "<node id> <address>" on standard output,
and ends when its standard input does, so that it never outlives the test.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from mesh.core.ids import NodeId
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.hardware.probe import ProbeResult
from mesh.runtime import node as node_module
from mesh.runtime.engine_mode import EngineMode
from mesh.runtime.node import Node, NodeReady, NodeSettings

ROOT = Path(__file__).parents[2]


class NodeProcess:
    """The parent's side. `wait_ready` may come long after starting, so that several start at once."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.runtime.node_process", str(folder)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.node_id = NodeId("")
        self.address = ""

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        node_id, self.address = self._process.stdout.readline().split()
        self.node_id = NodeId(node_id)

    def kill(self) -> None:
        self._process.kill()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


async def main(folder: Path) -> None:
    setattr(node_module, "run_probe", lambda *_, **__: ProbeResult())  # noqa: B010 - the name is not exported
    stop = asyncio.Event()

    def tell(ready: NodeReady) -> None:
        print(ready.identity.node_id, ready.address, flush=True)

    async with asyncio.TaskGroup() as group:
        settings = NodeSettings(folder, "127.0.0.1:0", "child", engine="fake", threads=1, engine_mode=EngineMode.THREAD)
        group.create_task(Node(settings, MemoryDiscovery(MemoryNetwork())).run(stop, tell))
        await asyncio.to_thread(sys.stdin.read)
        stop.set()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
