"""Where a node runs its engines: in child processes or in its own, and how much memory a child may take."""

from __future__ import annotations

import enum

from mesh.engines import check_engine
from mesh.engines.child_process import ChildEngine
from mesh.engines.contract import Engine
from mesh.errors import UsageError

MIN_PROCESS_MEMORY_BYTES = 384 << 20
"""With less memory available than this, engines run in the daemon: each child brings an interpreter, NumPy and the
runtime of its own, some 40 MiB that it shares with nobody, and a board of 512 MB would hold one model less for it."""

MEMORY_SHARE = 0.9
"""Of the memory that is available when the daemon starts, this much is a child's limit; the rest is the daemon's."""


MIN_CHILD_BYTES = 256 << 20
"""No limit is lower: the interpreter and the runtime alone take 80 MiB of private memory, much of it never touched."""


class EngineMode(enum.Enum):
    PROCESS = "process"
    """A native crash, a hang or an allocation too large takes a child, not the node."""
    THREAD = "thread"
    """Less memory and no copies to and from a child; what the runtime does wrong takes the daemon."""


def parse_engine_mode(text: str) -> EngineMode:
    try:
        return EngineMode(text)
    except ValueError:
        known = ", ".join(mode.value for mode in EngineMode)
        raise UsageError(f"unknown engine mode {text[:40]!r}", hint=f"one of {known}") from None


def choose_engine_mode(asked: EngineMode | None, memory_available_bytes: int) -> EngineMode:
    if asked is not None:
        return asked
    return EngineMode.PROCESS if memory_available_bytes >= MIN_PROCESS_MEMORY_BYTES else EngineMode.THREAD


def make_child_engine(name: str, memory_available_bytes: int) -> Engine:
    """Raises `UsageError` and `MissingExtra` as `make_engine` does, without importing what only children need."""
    check_engine(name)
    return ChildEngine(name, max(MIN_CHILD_BYTES, int(memory_available_bytes * MEMORY_SHARE)))
