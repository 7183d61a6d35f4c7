"""The streams of a gateway: one unordered stream per model, opened at its first request, shared by all of them.

A stream follows its deployment through repairs and replacements by itself. One that is broken (undeployed, replaced by
a model with other tensors) is forgotten, and the next request looks the model up again; one that nobody has used for a
while is closed, so that a gateway before many models holds no places on nodes for those that nobody asks.

Owned by `inference`, one per gateway; its tasks belong to the mesh's supervisor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from mesh.control.client_stream import StreamOptions
from mesh.core.plan import Deployment
from mesh.core.tensor import Tensor
from mesh.errors import MeshError
from mesh.gateways.contract import MeshPort
from mesh.runtime.calls import Calls
from mesh.runtime.frame_stream import Answer

IDLE_LIMIT_S = 300.0
"""A stream that was not used for so long is closed: opening one again takes some 10 ms."""

IDLE_CHECK_S = 30.0


class _Line:
    """An open stream to one model."""

    def __init__(self, calls: Calls, now: float) -> None:
        self.calls = calls
        self.in_flight = 0
        self.used_at = now


class ModelCalls:
    """`run` as often as wanted, also at once."""

    def __init__(self, mesh: MeshPort, now: Callable[[], float] = time.monotonic) -> None:
        self._mesh = mesh
        self._now = now
        self._lines: dict[str, _Line] = {}
        self._opening: dict[str, asyncio.Future[_Line]] = {}

    def deployment(self, name: str) -> Deployment | None:
        """The one that calls to `name` go to now; None while there is no stream to it."""
        line = self._lines.get(name)
        return None if line is None or line.calls.is_broken else line.calls.deployment

    async def open(self, name: str) -> Deployment:
        """See that there is a stream to `name`; raises `DeploymentNotFound`, or what is wrong with the way there."""
        return (await self._line(name)).calls.deployment

    def forget(self, name: str) -> None:
        """Look `name` up again for the next call: it was deployed anew, or is gone. Calls that run go on."""
        self._lines.pop(name, None)

    async def run(self, name: str, tensors: Sequence[Tensor], traceparent: str = "") -> Answer:
        """The answer to one request; raises its error, and what broke the stream."""
        line = await self._line(name)
        line.in_flight += 1
        try:
            return await line.calls.run(tensors, traceparent)
        finally:
            line.in_flight -= 1
            line.used_at = self._now()

    async def _line(self, name: str) -> _Line:
        line = self._lines.get(name)
        if line is not None and not line.calls.is_broken:
            return line
        opening = self._opening.get(name)
        if opening is None:
            opening = asyncio.get_running_loop().create_future()
            self._opening[name] = opening
            self._mesh.tasks.spawn(self._keep_open(name, opening), f"gateway: calls to {name}")
        return await asyncio.shield(opening)  # one caller that gives up ends nobody else's opening

    async def _keep_open(self, name: str, opening: asyncio.Future[_Line]) -> None:
        """Open a stream, hand it out, and hold it for as long as it is of use."""
        try:
            deployment = await self._mesh.directory.resolve(name)
            async with self._mesh.open_stream(deployment, StreamOptions(is_ordered=False)) as stream:
                line = _Line(Calls(stream), self._now())
                self._lines[name] = line
                opening.set_result(line)
                del self._opening[name]
                await self._collect(name, line)
        except MeshError as error:
            if opening.done():
                raise
            opening.set_exception(error)
            opening.exception()  # whoever asked may have gone
        finally:
            if self._opening.get(name) is opening:
                del self._opening[name]
                opening.cancel()

    async def _collect(self, name: str, line: _Line) -> None:
        collecting = self._mesh.tasks.spawn(line.calls.collect(), f"gateway: answers of {name}")
        try:
            while not collecting.done():
                await asyncio.wait({collecting}, timeout=IDLE_CHECK_S)
                is_forgotten = self._lines.get(name) is not line
                if not line.in_flight and (is_forgotten or self._now() - line.used_at > IDLE_LIMIT_S):
                    break
        finally:
            if self._lines.get(name) is line:
                del self._lines[name]
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)
