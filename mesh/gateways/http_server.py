"""Serves an application over HTTP on uvicorn, within the tasks of a gateway. Made by the gateway's command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from mesh.errors import ListenError
from mesh.runtime.supervise import Supervisor

MAX_CONNECTIONS = 512

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
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
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
