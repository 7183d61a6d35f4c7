"""Who owns the tasks: one supervisor per daemon or client, and nothing runs outside of one.

A task that ends with an exception nobody expected ends its supervisor, and so the daemon, which the
service manager starts again. Expected failures never get here: they are values or are handled
where they arise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")


async def carry_through(work: Coroutine[Any, Any, Result], limit_s: float) -> Result:
    """Await `work` to its end even if the caller is cancelled meanwhile; the cancellation is raised after it.

    For what must not stop half-way, such as taking back a deployment. Raises `TimeoutError` after `limit_s`.
    """
    running = asyncio.gather(asyncio.wait_for(work, limit_s))
    interruption: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})  # does not cancel what it waits for
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        running.exception()  # seen: the cancellation goes first
        raise interruption
    return running.result()[0]


async def together(works: Iterable[Coroutine[None, None, object]]) -> None:
    """Await all of them; at the first failure the others are cancelled, and it is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


class Supervisor:
    """`async with Supervisor() as tasks:`; leaving it cancels and awaits everything that still runs."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Supervisor:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # One failure is the rule, and callers expect it as itself, not wrapped.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task
