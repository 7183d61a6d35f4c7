"""What a daemon tells the service manager that started it: listening, stopping, still alive.

The protocol of systemd's sd_notify(3): datagrams of `NAME=value` lines to the socket that NOTIFY_SOCKET
names. Where it is not set, nothing is sent. The watchdog is fed by a task of the daemon's event loop, so
a loop that hangs is noticed and the daemon started again. Used by the node and by the coordinator daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

from mesh.errors import UsageError
from mesh.runtime.supervise import Supervisor

PINGS_PER_INTERVAL = 2
"""sd_watchdog_enabled(3) recommends half the interval."""


class ServiceManager:
    """`address` is None where no service manager listens, `watchdog_s` where it does not expect pings."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServiceManager:
        """Raises `UsageError` for a socket that is none, or an interval that is no number."""
        address = environment.get("NOTIFY_SOCKET")
        if not address:
            return cls()
        if address[0] not in "/@" or len(address) == 1:
            raise UsageError(f"NOTIFY_SOCKET is {address[:80]!r}, neither a path nor an abstract socket (@NAME)")
        interval = environment.get("WATCHDOG_USEC", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if not interval or not is_for_us:
            return cls(address)
        if not interval.isascii() or not interval.isdecimal() or not int(interval):
            raise UsageError(f"WATCHDOG_USEC is {interval[:40]!r}, which is no number of microseconds")
        return cls(address, int(interval) / 1e6)

    def ready(self, tasks: Supervisor, status: str) -> None:
        """The daemon listens; from now on the watchdog is fed. Raises `UsageError` if nobody takes the message."""
        try:
            self._tell("READY=1", f"STATUS={status}")
        except OSError as error:
            raise UsageError(f"NOTIFY_SOCKET {self._address!r} cannot be written to: {error.strerror}") from error
        if self._watchdog_s is not None:
            tasks.spawn(self._feed_watchdog(self._watchdog_s / PINGS_PER_INTERVAL), "feed the watchdog")

    def stopping(self) -> None:
        with contextlib.suppress(OSError):  # a manager that has gone away need not know
            self._tell("STOPPING=1")

    async def _feed_watchdog(self, period_s: float) -> None:
        while True:
            with contextlib.suppress(OSError):  # a lost ping is repeated in time; more than one is what is watched for
                self._tell("WATCHDOG=1")
            await asyncio.sleep(period_s)

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.sendto("\n".join(lines).encode(), name)
