"""A lane: one thread with one session, which loads it, runs what it is handed, and loads it again after a death.

Lanes belong to an engine of `mesh.runtime.engine_pool`; the pool decides what runs when and what a death means
(`LaneOwner`), and looks at `running` from the event loop. In process mode the session is a child, which on Linux
ends with the thread that loaded it; so a lane's thread loads, runs and closes, and nobody else does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mesh.control.fair_share import Grant
from mesh.core.tensor import Tensor
from mesh.engines.contract import Session
from mesh.errors import EngineDied, MeshError, RunFailed

STOP_TIMEOUT_S = 1.0
"""After `close` a run ends at its next operator; a thread that is still busy then is abandoned."""

STOP_RETRY_S = 0.05
"""`close` says nothing to a run that is just about to begin in this process, so it is repeated."""


@dataclass(frozen=True, slots=True)
class Completion:
    token: Any
    outputs: tuple[Tensor, ...]
    error: MeshError | None
    started_at: float
    """By the monotonic clock, seconds."""
    compute_seconds: float


@dataclass(slots=True, eq=False)
class Work:
    """One item on its way through the pool."""

    lease: Any
    token: Any
    feeds: Sequence[Tensor]
    on_complete: Callable[[Completion], None]
    deadline_at: float | None
    submitted_at: float
    deaths: int = 0
    """Engines that died with it in them."""
    grant: Grant | None = None
    started_at: float = 0.0
    is_overdue: bool = False
    """Its run was told to end."""
    completion: Completion | None = None

    def complete(self, outputs: tuple[Tensor, ...], error: MeshError | None, ended_at: float) -> None:
        began = self.started_at or ended_at
        self.completion = Completion(self.token, outputs, error, began, ended_at - began)
        self.feeds = ()  # freed now: the answer may wait behind others


class LaneOwner(Protocol):
    """Called on the lane's thread."""

    def load_session(self) -> Session: ...

    def lane_loaded(self, lane: Lane, session: Session) -> None: ...

    def lane_not_loaded(self, lane: Lane, error: MeshError) -> bool:
        """Whether to try again."""
        ...

    def lane_finished(self, lane: Lane, work: Work, outputs: tuple[Tensor, ...], error: MeshError | None) -> None: ...

    def lane_died(self, lane: Lane, work: Work, error: EngineDied) -> bool:
        """Whether to load again."""
        ...


class Lane:
    def __init__(self, owner: LaneOwner, name: str) -> None:
        self._owner = owner
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._is_closing = False
        self.session: Session | None = None
        self.running: Work | None = None
        self.guard = threading.Lock()
        """Held while `running` changes, and by whoever ends that very run, so that it is not the next one."""
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    def hand(self, work: Work) -> None:
        """Only to a lane that is idle."""
        self._queue.put(work)

    def ask_to_close(self) -> None:
        self._is_closing = True
        self._queue.put(None)

    def close(self) -> None:
        """End the run that is under way; blocks until the thread has ended, or is abandoned."""
        self.ask_to_close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            if (session := self.session) is not None:
                session.close()
            self._thread.join(STOP_RETRY_S)

    def _work(self) -> None:
        while not self._is_closing:
            try:
                self.session = self._owner.load_session()
            except MeshError as error:
                if not self._owner.lane_not_loaded(self, error):
                    return
                continue
            except Exception as failure:  # an engine's bug must cost one deployment, not the daemon
                reason = f"the engine failed unexpectedly: {type(failure).__name__}: {failure}"
                if not self._owner.lane_not_loaded(self, RunFailed(reason)):
                    return
                continue
            try:
                if not self._is_closing:
                    self._owner.lane_loaded(self, self.session)
                if not self._serve(self.session):
                    return
            finally:
                self.session.close()
                self.session = None

    def _serve(self, session: Session) -> bool:
        """Run what is handed in until the lane closes or the session dies; whether to load again."""
        while (work := self._queue.get()) is not None and not self._is_closing:
            work.started_at = time.monotonic()
            with self.guard:
                self.running = work
            outputs: tuple[Tensor, ...] = ()
            error: MeshError | None = None
            try:
                outputs = tuple(session.run(work.feeds))
            except EngineDied as death:
                return self._owner.lane_died(self, work, death)
            except MeshError as failure:
                error = failure
            except Exception as failure:  # an engine's bug must cost one answer, not the thread
                error = RunFailed(f"the engine failed unexpectedly: {type(failure).__name__}: {failure}")
            finally:
                with self.guard:
                    self.running = None
            self._owner.lane_finished(self, work, outputs, error)
            del work, outputs, error
        return False
