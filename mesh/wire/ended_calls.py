"""Waiting until gRPC has ended the tasks that it gives each call.

A call that is cancelled is over for its caller at once, and for gRPC some turns of the event loop later.
A loop that is closed in between reports it on standard error, there or when the next loop runs. gRPC
offers nothing to await, so its tasks are known by the names of their coroutines. Called by whoever has
closed their last connections or their server.
"""

from __future__ import annotations

import asyncio

COROUTINES = frozenset({"_AioCall._handle_status_once_received", "_schedule_rpc_coro", "_handle_exceptions"})
"""Of grpcio 1.60 to 1.85. Where a version names them differently, nothing is awaited."""

LIMIT_S = 0.25
"""Needs no answer from any peer, so it is a matter of milliseconds. Other connections of this loop that stay
open have such tasks too; then this is what closing one costs."""


async def await_ended_calls() -> None:
    calls = [task for task in asyncio.all_tasks() if _is_call(task)]
    if calls:
        await asyncio.wait(calls, timeout=LIMIT_S)


def _is_call(task: asyncio.Task[object]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "") in COROUTINES
