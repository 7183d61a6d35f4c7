"""A small mesh in this process: real nodes with ONNX Runtime on loopback ports, announced in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.core.fleet import Provider
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.hardware.probe import ProbeResult
from mesh.runtime import node as node_module
from mesh.runtime.coordinator_daemon import CoordinatorDaemon, CoordinatorSettings
from mesh.runtime.engine_mode import EngineMode
from mesh.runtime.node import Node, NodeSettings

START_LIMIT_S = 20.0
LAYERS = 4
WIDTH = 16


def make_model(layers: int = LAYERS) -> bytes:
    """A chain of matrix multiplications and ReLUs: as many places to cut as it has layers."""
    random = np.random.default_rng(7)
    nodes, weights, previous = [], [], "x"
    for index in range(layers):
        values = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        last = "y" if index == layers - 1 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [previous, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [last]))
        previous = last
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def probe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes be ready without the child process that measures the hardware; that has tests of its own."""
    result = ProbeResult(
        runtime_version="1", providers=(Provider("CPUExecutionProvider", True),), gflops=1.0, memory_gb_per_s=1.0
    )
    monkeypatch.setattr(node_module, "run_probe", lambda stop: result)


class Daemon(Protocol):
    async def run(self, stop: asyncio.Event, on_ready: Callable[[Any], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that has said that it is ready."""

    ready: Any
    stop: Callable[[], Any]

    @property
    def address(self) -> str:
        address: str = self.ready.address
        return address


@contextlib.asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator[Running]:
    """The daemon from its being ready until the block ends, or until `stop` is awaited."""
    stop = asyncio.Event()
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(daemon.run(stop, ready.set_result))
        await asyncio.wait({task, ready}, timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        assert ready.done(), "the daemon was not ready in time"

        async def stop_now() -> None:
            stop.set()
            await task

        try:
            yield Running(ready.result(), stop_now)
        finally:
            stop.set()


def make_node(network: MemoryNetwork, folder: Path, name: str, listen: str = "127.0.0.1:0") -> Node:
    return Node(
        NodeSettings(folder / name, listen, name=name, threads=1, engine_mode=EngineMode.THREAD),
        MemoryDiscovery(network),
    )


def make_coordinator(
    network: MemoryNetwork, folder: Path, name: str = "hall", listen: str = "127.0.0.1:0"
) -> CoordinatorDaemon:
    return CoordinatorDaemon(CoordinatorSettings(folder, listen, name, settles=False), MemoryDiscovery(network))
