"""Independent calls over one unordered stream: each waits for the answer with its own number.

Used by the Python API and by gateways, which own the stream: somebody runs `collect` for as long as it is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.core.frame import Outcome
from mesh.core.tensor import Tensor
from mesh.errors import MeshError, Refused, RunFailed

if TYPE_CHECKING:
    from mesh.core.plan import Deployment
    from mesh.runtime.frame_stream import Answer, FrameStream


class Calls:
    """`run` as often as wanted, also at once, while `collect` runs."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_broken = False
        """True once the stream is over, or only for the calls that run now: a further one is to be made elsewhere."""

    @property
    def deployment(self) -> Deployment:
        """The one that calls go to now."""
        return self._stream.deployment

    async def run(self, tensors: Sequence[Tensor], traceparent: str = "") -> Answer:
        """The answer to one frame. Raises its error where it is not OK, and what broke the stream."""
        self._running += 1
        self._idle.clear()
        try:
            return await self._run(tensors, traceparent)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _run(self, tensors: Sequence[Tensor], traceparent: str) -> Answer:
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        numbered: list[int] = []

        def wait_for(sequence: int) -> None:  # before the frame leaves, and so before its answer
            self._waiting[sequence] = waiting
            numbered.append(sequence)

        try:
            await self._stream.send(tensors, wait_for, traceparent)
            answer = await waiting
        finally:  # a call that was given up takes no answer, wherever it was
            for sequence in numbered:
                del self._waiting[sequence]
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # seen, even where sending failed first
        if answer.outcome is not Outcome.OK:
            raise answer.error or RunFailed(f"the call was answered {answer.outcome.name.lower()}")
        return answer

    async def collect(self) -> None:
        """Hand answers to their calls until the stream is over; what broke it, every call is told."""
        ending: MeshError = Refused("the connection that the call was made on was closed")
        try:
            async with asyncio.TaskGroup() as group:
                leaving = group.create_task(self._leave())
                try:
                    await self._hand_over()
                except MeshError as error:
                    ending = error
                finally:
                    leaving.cancel()
        finally:
            self.is_broken = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ending)

    async def _hand_over(self) -> None:
        async for answer in self._stream.answers():
            waiting = self._waiting.get(answer.sequence)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    async def _leave(self) -> None:
        """End the stream with its last call once its deployment is being removed: who removes it waits for that."""
        await self._stream.ends_with_its_stages.wait()
        self.is_broken = True
        await self._idle.wait()
        self._stream.finish()
