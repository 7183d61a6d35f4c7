"""What a coordinator daemon answers: a `CoordinatorPort` whose long work tells of progress as it goes.

`mesh.wire.coordinator_server` calls these methods. Each piece of long work is one task of the daemon's
supervisor, and one generator follows it: closing the generator, because the caller went away,
cancels the work and waits until it has undone what it had begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from mesh.core.plan import Deployment, Plan, PlanOptions
from mesh.core.report import DeploymentReport, NodeView
from mesh.errors import NodeLost, Refused
from mesh.runtime.coordinator import CoordinatorPort, Progress
from mesh.runtime.supervise import Supervisor
from mesh.wire.convert_coordinator import CoordinatorIdentity

Result = TypeVar("Result")


class CoordinatorService:
    """Owned by the daemon, which calls `stop` before it closes the connections that the work needs."""

    def __init__(self, port: CoordinatorPort, identity: CoordinatorIdentity, tasks: Supervisor) -> None:
        self._port = port
        self._identity = identity
        self._tasks = tasks
        self._working: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    def identity(self) -> CoordinatorIdentity:
        return self._identity

    async def list_nodes(self) -> Sequence[NodeView]:
        return await self._port.list_nodes()

    async def status(self, name: str) -> Sequence[DeploymentReport]:
        return await self._port.status(name)

    async def undeploy(self, name: str) -> None:
        await self._port.undeploy(name)

    def plan(self, model: bytes, options: PlanOptions) -> AsyncGenerator[str | Plan, None]:
        return self._told(lambda progress: self._port.plan(model, options, progress), "plan")

    def deploy(self, model: bytes, name: str, options: PlanOptions) -> AsyncGenerator[str | Deployment, None]:
        return self._told(lambda progress: self._port.deploy(model, name, options, progress), f"deploy {name}")

    async def stop(self) -> None:
        """Begin nothing more; cancel what is under way and wait until it is undone."""
        self._is_stopping = True
        for task in self._working:
            task.cancel()
        if self._working:
            await asyncio.wait(self._working)

    async def _told(
        self, begin: Callable[[Progress], Coroutine[Any, Any, Result]], name: str
    ) -> AsyncGenerator[str | Result, None]:
        if self._is_stopping:
            raise Refused("this coordinator is shutting down")
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                outcome.set_result(await begin(lines.put_nowait))
            except Exception as error:
                outcome.set_exception(error)  # the caller's to hear; a bad model must not end the daemon

        task = self._tasks.spawn(work(), name)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        task.add_done_callback(lambda _: lines.put_nowait(None))  # also where it was cancelled before it began
        try:
            while (line := await lines.get()) is not None:
                yield line
            if not outcome.done():
                raise NodeLost(
                    "the coordinator shut down before it was done; nothing was left behind",
                    hint="ask again once it runs",
                )
            yield outcome.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
            if outcome.done():
                outcome.exception()  # seen, even where the caller was gone by then
