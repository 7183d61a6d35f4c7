"""The engine on a thread of its own: submissions in, completions out.

A stage submits items and is told of each completion on the event loop, in order of submission. The
thread holds one session and nothing else; how many items are submitted at once is the stage's
affair, which bounds the queue.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mesh.core.tensor import Tensor
from mesh.engines.contract import Session
from mesh.errors import MeshError, RunFailed

Token = TypeVar("Token")

STOP_TIMEOUT_S = 1.0
"""After `terminate` a run ends at its next operator; a thread that is still busy then is abandoned."""

STOP_RETRY_S = 0.05
"""`terminate` says nothing to a run that is just about to begin, so it is repeated."""


@dataclass(frozen=True, slots=True)
class Completion(Generic[Token]):
    token: Token
    outputs: tuple[Tensor, ...]
    error: MeshError | None
    started_at: float
    """By the monotonic clock, seconds."""
    compute_seconds: float


class EngineHost(Generic[Token]):
    """Owned by one stage. `on_complete` runs on the event loop that made this."""

    def __init__(self, session: Session, on_complete: Callable[[Completion[Token]], None], name: str) -> None:
        self._session = session
        self._on_complete = on_complete
        self._loop = asyncio.get_running_loop()
        self._is_closing = False
        self._queue: queue.SimpleQueue[tuple[Token, Sequence[Tensor]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)
        self._thread.start()

    def submit(self, token: Token, feeds: Sequence[Tensor]) -> None:
        self._queue.put((token, feeds))

    async def close(self) -> None:
        """End the run that is under way and drop what waits; one that does not end is abandoned with its thread."""
        self._is_closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._session.terminate()
            self._thread.join(STOP_RETRY_S)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None and not self._is_closing:
            token, feeds = item
            started_at = time.monotonic()
            outputs: tuple[Tensor, ...] = ()
            error: MeshError | None = None
            try:
                outputs = tuple(self._session.run(feeds))
            except MeshError as failure:
                error = failure
            except Exception as failure:  # an engine's bug must cost one answer, not the thread
                error = RunFailed(f"the engine failed unexpectedly: {type(failure).__name__}: {failure}")
            completion = Completion(token, outputs, error, started_at, time.monotonic() - started_at)
            del item, feeds
            try:
                self._loop.call_soon_threadsafe(self._on_complete, completion)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell
