"""The engine port: what can load a segment and run it.

An engine is synchronous and knows nothing of streams: `mesh.runtime` decides on which thread or in
which child process it runs, and turns submissions into completions. A session is used by one
thread at a time; `terminate` and `close` alone may be called from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.core.tensor import Tensor, TensorSpec
from mesh.errors import MeshError

RUNS_AHEAD = 2
"""Runs that may be under way in a remote session: one computes, and the next begins without waiting for us."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Execution providers in order of preference."""
    threads: int = 1
    """Threads per run; 0 lets the runtime choose."""
    runs: int = 1
    """Runs at once of one model, each on a session of its own; the affair of `mesh.runtime`, engines ignore it."""


class Session(Protocol):
    """A loaded model. `inputs` and `outputs` are the model's, in its order."""

    fallback: str
    """Why another engine than the one that was asked for computes it; empty where none does."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        """Compute once. `feeds` follow `inputs`, the answer follows `outputs`.

        Blocks. Raises `RunFailed` when the runtime refuses, or after `terminate`.
        """
        ...

    def terminate(self) -> None:
        """Ask a running `run` to stop at its next operator; safe from any thread."""
        ...

    def close(self) -> None:
        """End it for good, from any thread: at once where it is a process, else a running `run` is terminated.

        What a session in this process holds is freed with the session itself.
        """
        ...


@dataclass(slots=True)
class RunResult:
    """What a run in another process came to."""

    outputs: tuple[Tensor, ...]
    error: MeshError | None
    compute_seconds: float


class RemoteSession(Session, Protocol):
    """A session in another process: runs are begun and collected without blocking, so that no thread waits for them.

    Results come in the order in which runs were begun. `terminate` means the oldest run that is under way.
    """

    peak_bytes: int
    """Resident growth of the process by loading the model and its first runs; 0 before these, or where it cannot be
    known."""

    @property
    def descriptor(self) -> int:
        """Readable when there may be something to collect."""
        ...

    def begin(self, feeds: Sequence[Tensor]) -> None:
        """Hand in a run; at most `RUNS_AHEAD` may be under way. Raises `EngineDied`."""
        ...

    def collect(self) -> list[RunResult]:
        """What is there. Raises `EngineDied`, after which only `wait_for_end` and `close` are left."""
        ...

    def wait_for_end(self) -> str:
        """How the process ended, in words; blocks until it has."""
        ...


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def is_remote(self) -> bool:
        """Whether its sessions are `RemoteSession`s."""
        ...

    def load(self, model: bytes | Path, options: LoadOptions) -> Session:
        """Load and warm nothing; raises `LoadFailed` with the runtime's reason."""
        ...
