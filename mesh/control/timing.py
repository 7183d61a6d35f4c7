"""The clockwork of failure detection and hand-shakes: every interval with its reason.

A lost node must end every affected call within 4 s. That is the sum of the slowest way to notice
(`SILENCE_LIMIT_S`, checked every `HEARTBEAT_INTERVAL_S`) and of telling the client about it.
"""

from __future__ import annotations

HEARTBEAT_INTERVAL_S = 0.5
"""Each side of a data-plane link says something at least this often; sent from the event loop, so that a
hung loop is noticed although its transport still answers pings."""

SILENCE_LIMIT_S = 2.0
"""A link that says nothing for so long is lost: four missed heartbeats. Noticed up to one heartbeat later, which leaves
1.5 s of the 4 s that are promised for a stand-by to take over."""

KEEPALIVE_INTERVAL_S = 1.0
KEEPALIVE_TIMEOUT_S = 1.5
"""Transport pings while a call is open. A frozen peer is noticed after their sum."""

DIAL_TIMEOUT_S = 1.5
"""To connect and be accepted. On a LAN it takes milliseconds; a host that is down never answers. Short enough that a
command which has found out where a frozen node is, and then dials it, still ends within 4 s."""

STREAM_OPEN_TIMEOUT_S = 3.0
"""To be accepted by every stage of the plan, each of which may have to dial the next."""

CALL_TIMEOUT_S = 2.0
"""A control call that only reads state."""

HANDSHAKE_TIMEOUT_S = 5.0
"""A connection that has not said what it wants by then is closed."""

DRAIN_TIMEOUT_S = 5.0
"""What is in flight may take so long to finish before it is abandoned."""

RECOVERY_LIMIT_S = 60.0
"""A stream whose path is lost may wait so long for another: a repair that must fetch 50 MB at 100 Mbit/s and load
it takes half of that, a node that starts again as much."""

RECOVERY_PAUSE_S = 0.2
"""Between two attempts to open another path: what is being put in force is asked about again soon, and not at once."""

GOODBYE_LIMIT_S = 1.0
"""For a stream's end to travel through every stage; a path that was replaced is hung up after that in any case."""

LOAD_TIMEOUT_S = 300.0
"""Loading a segment of 2 GB from an SD card. A frozen node is noticed much earlier, by keepalive."""

ACTIVATION_TIMEOUT_S = LOAD_TIMEOUT_S + 60.0
"""From loaded to activated: until the slowest other node has loaded as well, and a minute for the asking."""

ABANDONED_TIMEOUT_S = 30.0
"""As `ACTIVATION_TIMEOUT_S`, where whoever asked for the loading has hung up: for asking again."""


class Liveness:
    """Whether the other side of a link still speaks. Mutable; owned by the link.

    The watcher may itself be late (a stopped process, a busy core): messages may then wait unread in
    the socket, so silence is judged only after the watcher has been on time again.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._ticked_at = now

    def heard(self, now: float) -> None:
        self._heard_at = now

    def is_lost(self, now: float) -> bool:
        """Call every `HEARTBEAT_INTERVAL_S`; true once the silence has lasted for `SILENCE_LIMIT_S`."""
        lateness = now - self._ticked_at - HEARTBEAT_INTERVAL_S
        self._ticked_at = now
        if lateness > HEARTBEAT_INTERVAL_S:
            self._heard_at = max(self._heard_at, now - SILENCE_LIMIT_S / 2)
        return now - self._heard_at > SILENCE_LIMIT_S
