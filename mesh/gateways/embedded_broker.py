"""An MQTT broker within this process, to try pipelines where there is none yet. Through amqtt, an extra of its own.

It speaks MQTT 3.1.1, knows no passwords, and forgets everything when the process ends: what it accepted at QoS 1 is
answered for as long as it lives, and not longer. For more than a trial, run a broker of its own.

Made by `mesh pipeline run --broker`; `serving` owns it, and it owns its tasks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from amqtt.broker import Broker
from amqtt.errors import BrokerError

from mesh.errors import ListenError

MAX_CONNECTIONS = 256
"""More than a trial has sensors."""

ANYBODY = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


@contextlib.asynccontextmanager
async def serving_broker(listen: str) -> AsyncIterator[None]:
    """Serve MQTT at `listen`, "HOST:PORT", until the block ends. Raises `ListenError`."""
    # It reports what its peers do wrong with tracebacks, and what goes wrong at its start twice.
    logging.getLogger("amqtt").setLevel(logging.CRITICAL + 1)
    listener = {"type": "tcp", "bind": listen, "max_connections": MAX_CONNECTIONS}
    broker = Broker({"listeners": {"default": listener}, "plugins": ANYBODY})
    try:
        await broker.start()
    except BrokerError:
        raise ListenError(
            f"cannot serve MQTT on {listen}: the port is taken or the address is not this machine's",
            hint="is a broker there already? then leave --broker out",
        ) from None
    try:
        yield
    finally:
        await broker.shutdown()
