"""Serves an application over HTTP on uvicorn, within the tasks of a gateway. Made by the gateway's command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from mesh.errors import ListenError
from mesh.runtime.supervise import Supervisor

MAX_CONNECTIONS = 512
"""Beyond these the one that was quiet for longest makes room, so that clients which hold connections and say nothing
shut nobody out; where all are at work, the new one is closed."""

QUIET_LEAST_S = 1.0
"""Who connects is given that long to say something first."""

KEEP_ALIVE_S = 60

GONE_AFTER_S = 60
"""A client that the network lost without a word is asked after then, and given up after as long again."""

PROBES = 4

GRACE_S = 5
"""At the end, for requests that are running."""


class HttpServer:
    """`await start(listen)`, and `stop` in any case."""

    def __init__(self, application: Starlette, tasks: Supervisor) -> None:
        self._application = application
        self._tasks = tasks
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, listen: str) -> str:
        """Listen; returns "host:port" with the port that was bound. Raises `ListenError`."""
        listener = _bind(listen)
        config = uvicorn.Config(
            self._application,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)
        self._serving = self._tasks.spawn(self._server.serve([listener]), "gateway: HTTP")
        host, port = listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Let running requests end, for some seconds."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait({self._serving})


class _Connection(H11Protocol):
    """Bounds the number of connections; uvicorn's own limit would refuse every request while there are too many."""

    quiet_since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.quiet_since_s = self.loop.time()
        present = [other for other in self.connections if not other.transport.is_closing()]
        if len(present) > MAX_CONNECTIONS:
            quiet = [other for other in present if isinstance(other, _Connection) and other.is_quiet()]
            min(quiet, key=lambda other: other.quiet_since_s, default=self).transport.close()

    def is_quiet(self) -> bool:
        is_idle = self.cycle is None or self.cycle.response_complete
        return is_idle and self.loop.time() - self.quiet_since_s >= QUIET_LEAST_S

    def data_received(self, data: bytes) -> None:
        self.quiet_since_s = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.quiet_since_s = self.loop.time()
        super().on_response_complete()


class _Server(uvicorn.Server):
    """Leaves the process's signals to its command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    # With the protocol named, asyncio turns Nagle's algorithm off for what is accepted; else answers wait 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted connections inherit all of these
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_AFTER_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, GONE_AFTER_S // PROBES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        listener.bind((host, int(port)))
        listener.listen(MAX_CONNECTIONS)  # who comes before the server has started waits, and is not refused
    except OSError as error:
        listener.close()
        raise ListenError(
            f"cannot listen on {listen}: {error.strerror}", hint="choose another port; 0 takes any free one"
        ) from None
    listener.setblocking(False)
    return listener
