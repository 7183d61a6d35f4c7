"""A lane: one session with a thread that loads it, runs it, and loads it again after a death.

    ThreadLane   a session in this process: runs happen on the thread
    RemoteLane   a session in a child: the event loop hands runs in and collects their results, the thread waits for
                 the end; `RUNS_AHEAD` runs may be in the child, so that it need not wait for the loop between two

Lanes belong to an engine of `mesh.runtime.engine_pool`; the pool decides what runs when and what a death means
(`LaneOwner`), and looks at `running` from the event loop. On Linux a child ends with the thread that loaded it, so a
lane's thread loads and closes, and nobody else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from mesh.control.fair_share import Grant
from mesh.core.tensor import Tensor
from mesh.engines.contract import RUNS_AHEAD, RemoteSession, Session
from mesh.errors import EngineDied, MeshError, RunFailed

STOP_TIMEOUT_S = 1.0
"""After `close` a run ends at its next operator; a thread that is still busy then is abandoned."""

STOP_RETRY_S = 0.05
"""`close` says nothing to a run that is just about to begin in this process, so it is repeated."""


@dataclass(slots=True)
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

    def complete(
        self, outputs: tuple[Tensor, ...], error: MeshError | None, ended_at: float, compute_seconds: float = 0.0
    ) -> None:
        self.completion = Completion(self.token, outputs, error, self.started_at or ended_at, compute_seconds)
        self.feeds = ()  # freed now: the answer may wait behind others


class LaneOwner(Protocol):
    """Called on the lane's thread, or on the event loop where that drives the lane."""

    def load_session(self) -> Session: ...

    def lane_loaded(self, lane: Lane, session: Session) -> None: ...

    def lane_not_loaded(self, lane: Lane, error: MeshError) -> bool:
        """Whether to try again."""
        ...

    def lane_finished(
        self, lane: Lane, work: Work, outputs: tuple[Tensor, ...], error: MeshError | None, compute_seconds: float
    ) -> None: ...

    def lane_lost(self, lane: Lane) -> None:
        """It takes no work until it is loaded again."""
        ...

    def lane_died(self, lane: Lane, works: Sequence[Work], error: EngineDied) -> bool:
        """Whether to load again. `works` were in the engine, the one that it computed first."""
        ...


class Lane:
    """What both kinds have in common: the thread's life."""

    def __init__(self, owner: LaneOwner, name: str) -> None:
        self._owner = owner
        self._is_closing = False
        self.session: Session | None = None
        self.load_seconds = 0.0
        """That loading the session took; 0 before."""
        self.guard = threading.Lock()
        """Held while `running` changes, and by whoever ends that very run, so that it is not the next one."""
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def running(self) -> Work | None:
        """What the session computes at this moment."""
        raise NotImplementedError

    @property
    def has_room_ahead(self) -> bool:
        """Whether it takes another item while it computes one."""
        return False

    @property
    def peak_bytes(self) -> int:
        """What the session's process took for loading and its first runs; 0 where it is not known."""
        return 0

    def hand(self, work: Work) -> None:
        """Only to a lane that is idle or has room ahead, and under the pool's lock."""
        raise NotImplementedError

    def ask_to_close(self) -> None:
        """What runs may end."""
        raise NotImplementedError

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
            began = time.monotonic()
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
            self.load_seconds = time.monotonic() - began
            try:
                if not self._is_closing:
                    self._owner.lane_loaded(self, self.session)
                if not self._serve(self.session):
                    return
            finally:
                self.session.close()
                self.session = None

    def _serve(self, session: Session) -> bool:
        """Until the lane closes or the session dies; whether to load again."""
        raise NotImplementedError


class ThreadLane(Lane):
    def __init__(self, owner: LaneOwner, name: str) -> None:
        super().__init__(owner, name)
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._running: Work | None = None
        self._thread.start()

    @property
    def running(self) -> Work | None:
        return self._running

    def hand(self, work: Work) -> None:
        self._queue.put(work)

    def ask_to_close(self) -> None:
        self._is_closing = True
        self._queue.put(None)

    def _serve(self, session: Session) -> bool:
        while (work := self._queue.get()) is not None and not self._is_closing:
            work.started_at = time.monotonic()
            with self.guard:
                self._running = work
            outputs: tuple[Tensor, ...] = ()
            error: MeshError | None = None
            try:
                outputs = tuple(session.run(work.feeds))
            except EngineDied as death:
                return self._owner.lane_died(self, (work,), death)
            except MeshError as failure:
                error = failure
            except Exception as failure:  # an engine's bug must cost one answer, not the thread
                error = RunFailed(f"the engine failed unexpectedly: {type(failure).__name__}: {failure}")
            finally:
                with self.guard:
                    self._running = None
            self._owner.lane_finished(self, work, outputs, error, time.monotonic() - work.started_at)
            del work, outputs, error
        return False


class RemoteLane(Lane):
    """Its state belongs to the event loop, but for the thread's own wait."""

    def __init__(self, owner: LaneOwner, name: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner, name)
        self._loop = loop
        self._works: deque[Work] = deque()
        """In the child, in its order."""
        self._ending: queue.SimpleQueue[list[Work] | None] = queue.SimpleQueue()
        """What the thread waits for: None to close, or what was in the child when it died."""
        self._thread.start()

    @property
    def running(self) -> Work | None:
        return self._works[0] if self._works else None

    @property
    def has_room_ahead(self) -> bool:
        return 0 < len(self._works) < RUNS_AHEAD and not self._is_closing

    @property
    def peak_bytes(self) -> int:
        session = self.session
        return 0 if session is None else cast(RemoteSession, session).peak_bytes

    def hand(self, work: Work) -> None:
        if not self._works:
            work.started_at = time.monotonic()
        self._works.append(work)
        with contextlib.suppress(EngineDied):  # then the loop finds its socket closed, and everything takes its way
            cast(RemoteSession, self.session).begin(work.feeds)

    def ask_to_close(self) -> None:
        self._is_closing = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: `close` ends the thread
            self._loop.call_soon_threadsafe(self._end_if_idle)

    def close(self) -> None:
        super().close()
        self._ending.put(None)

    def _serve(self, session: Session) -> bool:
        remote = cast(RemoteSession, session)
        with contextlib.suppress(RuntimeError):  # the loop is closed, as above
            self._loop.call_soon_threadsafe(self._attach, remote)
        works = self._ending.get()
        if works is None:
            return False
        return self._owner.lane_died(self, works, EngineDied(remote.wait_for_end()))

    # On the event loop ----------------------------------------------------------------------------

    def _attach(self, session: RemoteSession) -> None:
        if self._works or not self._is_closing:  # what it was given before it closed is waited for, or found dead
            self._loop.add_reader(session.descriptor, self._collect, session)

    def _end_if_idle(self) -> None:
        if not self._works:
            self._end(None)

    def _end(self, works: list[Work] | None) -> None:
        if self.session is not None:
            self._loop.remove_reader(cast(RemoteSession, self.session).descriptor)
        self._ending.put(works)

    def _collect(self, session: RemoteSession) -> None:
        try:
            results = session.collect()
        except EngineDied:
            works = list(self._works)
            self._works.clear()
            self._owner.lane_lost(self)
            self._end(works)
            return
        for result in results:
            work = self._works.popleft()
            if self._works:
                self._works[0].started_at = time.monotonic()
            self._owner.lane_finished(self, work, result.outputs, result.error, result.compute_seconds)
        if self._is_closing:
            self._end_if_idle()
