"""Which engine a node runs, and where: in child processes or in its own, and how much memory a child may take."""

from __future__ import annotations

import enum

from mesh.engines import DEFAULT_ENGINE, OPENVINO, check_engine, has_openvino, make_engine
from mesh.engines.child_process import ChildEngine
from mesh.engines.contract import Engine
from mesh.engines.fallback import FallbackEngine
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


AUTO = "auto"
NODE_ENGINES = (DEFAULT_ENGINE, OPENVINO, AUTO)


def choose_engine(asked: str) -> str:
    """The engine that `mesh node --engine` names; `auto` is OpenVINO where that is installed.

    Raises `UsageError` for an unknown name, `MissingExtra` that names the extra where it is not installed.
    """
    if asked not in NODE_ENGINES:
        raise UsageError(f"unknown engine {asked[:40]!r}", hint=f"one of {', '.join(NODE_ENGINES)}")
    chosen = asked
    if asked == AUTO:
        chosen = OPENVINO if has_openvino() else DEFAULT_ENGINE
    check_engine(chosen)
    return chosen


def make_node_engine(name: str, mode: EngineMode, memory_available_bytes: int) -> Engine:
    """The engine called `name`, with ONNX Runtime behind one that does not take every model.

    Raises `UsageError` and `MissingExtra` as `make_engine` does, for children without importing what only they need.
    """
    check_engine(name)
    limit_bytes = max(MIN_CHILD_BYTES, int(memory_available_bytes * MEMORY_SHARE))

    def make(each: str) -> Engine:
        return ChildEngine(each, limit_bytes) if mode is EngineMode.PROCESS else make_engine(each)

    return FallbackEngine(make(name), make(DEFAULT_ENGINE)) if name == OPENVINO else make(name)
