"""Whether an engine that died is started again, and what becomes of the item that it had: pure, time is handed in.

`mesh.runtime.engine_pool` owns one `EngineHealth` per loaded engine and asks `engine_died` at each death.
A restart comes at once: what died of one bad item serves the next, and the limit bounds the rest.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
"""An engine that was started again five times within a minute dies of itself, not of its items: a restart
takes a second or so, so five of them have cost a tenth of that minute."""

MAX_ITEM_DEATHS = 2
"""One death may be somebody else's doing (the kernel's, an earlier item's); an item that was in two is the cause."""


class Verdict(enum.Enum):
    RESTART = "restart"
    QUARANTINE = "quarantine"
    """Not started again; whoever wants it is refused."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    restarts: tuple[float, ...] = ()
    """When it was started again within the last `RESTART_WINDOW_S`, oldest first."""
    is_quarantined: bool = False
    reason: str = ""
    """Of the quarantine, for people."""


def engine_died(health: EngineHealth, now: float, cause: str) -> tuple[EngineHealth, Verdict]:
    """The health after a death at `now` (seconds, never falling), and what to do."""
    if health.is_quarantined:
        return health, Verdict.QUARANTINE
    recent = tuple(at for at in health.restarts if now - at < RESTART_WINDOW_S)
    if len(recent) < MAX_RESTARTS:
        return replace(health, restarts=(*recent, now)), Verdict.RESTART
    reason = f"the engine was started {MAX_RESTARTS} times within {RESTART_WINDOW_S:g} s and died again: {cause}"
    return EngineHealth(recent, True, reason), Verdict.QUARANTINE


def is_resubmitted(deaths: int) -> bool:
    """Whether an item that was in `deaths` engines when they died goes into another one."""
    return deaths < MAX_ITEM_DEATHS
