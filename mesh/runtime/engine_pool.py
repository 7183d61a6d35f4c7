"""The engines of a node: loaded once per content and options, shared by every stage that runs them.

    Stage ──submit──► EngineLease ──► FairShare picks ──► Lane (thread, session or child) ──► completions in order

`acquire` loads a segment, or finds it loaded, and gives a lease; the last `release` frees the engine. So a new
generation that keeps a node's segment is ready at once. Whether runs happen in this process or in children is
the affair of the `Engine` that the pool is given. Per lease, completions come on the event loop in the order of
submission, also where several lanes run at once.

Items wait in their leases until a lane of their engine is idle and a slot of the node is free. Runs that pass
their deadline (or `ITEM_LIMIT_S`) are told to end, and killed `KILL_GRACE_S` later where the engine is a child.
A child that dies is started again and its item submitted once more (`mesh.control.engine_health`); one that dies
too often is quarantined: what waits is answered with `EngineQuarantined`, and the leases are told.

Owned by the node's runtime. State changes under one lock, from the event loop and from the lanes' threads;
nothing blocks while holding it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mesh.control.engine_health import EngineHealth, Verdict, engine_died, is_resubmitted
from mesh.control.fair_share import FairShare
from mesh.core.ids import Sha256
from mesh.core.tensor import Tensor, TensorSpec
from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.errors import EngineDied, EngineQuarantined, MeshError, RunFailed, Timeout
from mesh.runtime.engine_lane import Completion, Lane, RemoteLane, ThreadLane, Work

__all__ = ["Completion", "EngineLease", "EnginePool"]

ITEM_LIMIT_S = 30.0
"""A run without a deadline that takes longer hangs: the slowest models that make sense on a small board need a few
seconds, and a client that waits for more than half a minute has mostly gone."""

KILL_GRACE_S = 1.0
"""ONNX Runtime looks at its flag between operators; one that takes longer than this is cut short with its process."""

SLOT_PATIENCE_S = 1.0
"""A run that takes longer gives its slot back: the kernel shares the cores from then on, so that one long or hung run
does not keep the other deployments waiting."""

WATCH_INTERVAL_S = 0.05
"""How often running items are looked at; only while there are any."""


class SharedEngine:
    """One loaded segment with its lanes; implements `LaneOwner`."""

    def __init__(self, pool: EnginePool, model: bytes | Path, name: str, options: LoadOptions) -> None:
        self.pool = pool
        self.model = model
        self.options = options
        self.leases: list[EngineLease] = []
        self.idle: list[Lane] = []
        self.health = EngineHealth()
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.fallback = ""
        self.loaded: asyncio.Future[None] = pool.loop.create_future()
        self.loaded.add_done_callback(lambda done: done.cancelled() or done.exception())  # those who wait may be gone
        self._loading = options.runs
        self.lanes: list[Lane] = []
        for index in range(options.runs):
            lane_name = f"{name}-{index}"
            is_remote = pool.engine.is_remote
            self.lanes.append(RemoteLane(self, lane_name, pool.loop) if is_remote else ThreadLane(self, lane_name))

    def load_session(self) -> Session:
        return self.pool.engine.load(self.model, self.options)

    def lane_loaded(self, lane: Lane, session: Session) -> None:
        with self.pool.lock:
            self.inputs, self.outputs, self.fallback = session.inputs, session.outputs, session.fallback
            self.idle.append(lane)
            self._loading -= 1
            if self._loading == 0:
                self.pool.post(self._set_loaded, None)
        self.pool.post(self.pool.dispatch)

    def lane_not_loaded(self, lane: Lane, error: MeshError) -> bool:
        if self._loading > 0:
            self.pool.post(self._set_loaded, error)
            return False
        return self._judge(f"it could not be loaded again: {error}")

    def lane_finished(
        self, lane: Lane, work: Work, outputs: tuple[Tensor, ...], error: MeshError | None, compute_seconds: float
    ) -> None:
        ended_at = time.monotonic()
        if error is not None and work.is_overdue:
            error = _too_long(work, ended_at)
        work.complete(outputs, error, ended_at, compute_seconds)
        with self.pool.lock:
            self.pool.settle(work, compute_seconds)
            if lane.running is not None:
                self.pool.take_slot(lane.running)
            elif not lane.is_closing:
                self.idle.append(lane)
            self.pool.dispatch()
        self.pool.deliver(work.lease)

    def lane_lost(self, lane: Lane) -> None:
        with self.pool.lock:
            if lane in self.idle:
                self.idle.remove(lane)

    def lane_died(self, lane: Lane, works: Sequence[Work], error: EngineDied) -> bool:
        now = time.monotonic()
        with self.pool.lock:
            for work in reversed(works):  # those behind the first are innocent, and go back in their order
                self.pool.settle(work, now - work.started_at)
                if work is works[0]:
                    work.deaths += 1
                if lane.is_closing:
                    work.complete((), error, now)
                elif work.is_overdue:
                    work.complete((), _too_long(work, now), now)
                elif is_resubmitted(work.deaths):
                    work.lease.pending.appendleft(work)
                else:
                    work.complete((), RunFailed(f"{work.deaths} engines died of this item: {error.message}"), now)
        self.pool.post(self.pool.dispatch)
        for work in works:
            self.pool.deliver(work.lease)
        return not lane.is_closing and self._judge(error.message)

    def _set_loaded(self, error: MeshError | None) -> None:
        if self.loaded.done():
            return
        if error is None:
            self.loaded.set_result(None)
        else:
            self.loaded.set_exception(error)

    def _judge(self, cause: str) -> bool:
        """After a death: whether the lane is to load again. A quarantine ends all lanes."""
        with self.pool.lock:
            self.health, verdict = engine_died(self.health, time.monotonic(), cause)
            if verdict is Verdict.RESTART:
                self.pool.post(self._tell_restart, cause)
                return True
            self.pool.drop(self)
            for lane in self.lanes:
                lane.ask_to_close()
            waiting = [work for lease in self.leases for work in lease.pending]
            for work in waiting:
                work.complete((), EngineQuarantined(self.health.reason), time.monotonic())
            for lease in self.leases:
                lease.pending.clear()
                self.pool.post(lease.deliver)
        self.pool.post(self._tell_quarantine)
        return False

    def _tell_restart(self, cause: str) -> None:
        for lease in list(self.leases):
            lease.on_restart(cause)

    def _tell_quarantine(self) -> None:
        for lease in list(self.leases):
            lease.on_quarantine(self.health.reason)


def _too_long(work: Work, now: float) -> MeshError:
    took = now - work.started_at
    if work.deadline_at is not None:
        return Timeout(f"its time was up after {took:.3g} s in the engine")
    return RunFailed(f"the run was ended after {took:.3g} s", hint="the model hangs, or is too slow for this device")


class EngineLease:
    """A stage's use of an engine. Everything here belongs to the event loop, but `pending`, which is the pool's."""

    def __init__(self, pool: EnginePool, engine: SharedEngine, share: str) -> None:
        self._pool = pool
        self.engine = engine
        self.share = share
        self.pending: deque[Work] = deque()
        self._order: deque[Work] = deque()
        self._is_released = False
        self.on_restart: Callable[[str], None] = _ignore
        """Told why, each time that the engine is started again."""
        self.on_quarantine: Callable[[str], None] = _ignore
        """Told why, once, when the engine is given up."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.outputs

    @property
    def fallback(self) -> str:
        """Why another engine than the node's computes it; empty where none does."""
        return self.engine.fallback

    @property
    def depth(self) -> int:
        """Items that keep it busy: one in each lane, and one at hand, so that none waits for the event loop."""
        return len(self.engine.lanes) + 1

    @property
    def outstanding(self) -> int:
        return len(self._order)

    @property
    def peak_bytes(self) -> int:
        """Memory that loading and running it took, in all lanes; 0 until every one has told."""
        return sum(told) if all(told := [lane.peak_bytes for lane in self.engine.lanes]) else 0

    def submit(
        self,
        token: Any,
        feeds: Sequence[Tensor],
        on_complete: Callable[[Completion], None],
        deadline_at: float | None = None,
    ) -> None:
        """Have `feeds` computed. `deadline_at` is by the monotonic clock; a run that passes it ends with `Timeout`."""
        work = Work(self, token, feeds, on_complete, deadline_at, time.monotonic())
        self._order.append(work)
        self._pool.submit(work)

    async def release(self) -> None:
        """Answers that are outstanding are dropped; harmless when repeated."""
        if self._is_released:
            return
        self._is_released = True
        self._order.clear()
        await self._pool.release(self)

    def deliver(self) -> None:
        while self._order and (completion := self._order[0].completion) is not None:
            self._order.popleft().on_complete(completion)


def _ignore(reason: str) -> None:
    """For those who need not know."""


class EnginePool:
    def __init__(self, engine: Engine, slots: int = 1, item_limit_s: float = ITEM_LIMIT_S) -> None:
        """`slots`: runs at once on this node, over all engines."""
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.lock = threading.RLock()
        self._loop_thread = threading.get_ident()
        self._item_limit_s = item_limit_s
        self._fair = FairShare(slots)
        self._engines: dict[tuple[Sha256, LoadOptions], SharedEngine] = {}
        self._leases: list[EngineLease] = []
        self._watching: asyncio.TimerHandle | None = None

    async def acquire(self, model: bytes | Path, sha256: Sha256, options: LoadOptions, share: str = "") -> EngineLease:
        """A lease of the engine with this content, loaded if nobody has; raises `LoadFailed`, `MissingExtra`.

        `share`: whose compute time this is, a deployment's name; the cores are shared fairly among them.
        """
        key = (sha256, options)
        engine = self._engines.get(key)
        if engine is None:
            engine = self._engines[key] = SharedEngine(self, model, share or sha256[:8], options)
        lease = EngineLease(self, engine, share or sha256)
        with self.lock:
            engine.leases.append(lease)
            self._leases.append(lease)
        try:
            await asyncio.shield(engine.loaded)
        except BaseException:
            await lease.release()
            raise
        return lease

    async def release(self, lease: EngineLease) -> None:
        engine = lease.engine
        with self.lock:
            lease.pending.clear()
            engine.leases.remove(lease)
            self._leases.remove(lease)
            if all(other.share != lease.share for other in self._leases):
                self._fair.forget(lease.share)
            if engine.leases:
                return
            self.drop(engine)
            for lane in engine.lanes:
                lane.ask_to_close()  # at once: whoever waits below may be cancelled before the threads are asked
        await asyncio.gather(*(asyncio.to_thread(lane.close) for lane in engine.lanes))

    async def close(self) -> None:
        """Release every lease; nobody may submit any more."""
        for lease in list(self._leases):
            await lease.release()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    # From any thread --------------------------------------------------------------

    def submit(self, work: Work) -> None:
        with self.lock:
            health = work.lease.engine.health
            if health.is_quarantined:
                work.complete((), EngineQuarantined(health.reason), time.monotonic())
                self.post(work.lease.deliver)
                return
            work.lease.pending.append(work)
            self.dispatch()
        if self._watching is None:
            self._watching = self.loop.call_later(WATCH_INTERVAL_S, self._watch)

    def dispatch(self) -> None:
        """Hand out what may run now."""
        with self.lock:
            while waiting := [lease for lease in self._leases if lease.pending]:
                ready = [lease for lease in waiting if lease.engine.idle]
                if len(ready) > 1:
                    ready.sort(key=lambda lease: lease.pending[0].submitted_at)
                grant = self._fair.grant([lease.share for lease in ready])
                if grant is None:
                    self._hand_ahead(waiting)
                    return
                lease = next(lease for lease in ready if lease.share == grant.flow)
                work = lease.pending.popleft()
                work.grant = grant
                lease.engine.idle.pop().hand(work)

    def _hand_ahead(self, waiting: Sequence[EngineLease]) -> None:
        """Where nobody else wants the cores, the next item waits in the child; it gets its slot when it runs."""
        if any(lease.share != waiting[0].share for lease in waiting):
            return
        for lease in waiting:
            for lane in lease.engine.lanes:
                if lease.pending and lane.has_room_ahead:
                    lane.hand(lease.pending.popleft())

    def settle(self, work: Work, seconds: float) -> None:
        if work.grant is not None:
            self._fair.settle(work.grant, seconds)
            work.grant = None

    def take_slot(self, work: Work) -> None:
        """For an item that has begun by itself."""
        work.grant = self._fair.take(work.lease.share)

    def drop(self, engine: SharedEngine) -> None:
        """Nobody finds it any more."""
        engine.idle.clear()
        for key, other in list(self._engines.items()):
            if other is engine:
                del self._engines[key]

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self.loop.call_soon_threadsafe(function, *arguments)

    def deliver(self, lease: EngineLease) -> None:
        if threading.get_ident() == self._loop_thread:
            lease.deliver()
        else:
            self.post(lease.deliver)

    # Watching -------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """End what runs for too long, and lend the slot of what runs for long."""
        now = time.monotonic()
        for engine in {id(lease.engine): lease.engine for lease in self._leases}.values():
            for lane in engine.lanes:
                with lane.guard:
                    if lane.running is not None and lane.session is not None:
                        self._look_at(lane.running, lane.session, now)
        is_busy = any(lease.outstanding for lease in self._leases)
        self._watching = self.loop.call_later(WATCH_INTERVAL_S, self._watch) if is_busy else None

    def _lend_slot(self, work: Work) -> None:
        with self.lock:
            if work.grant is not None:
                self._fair.free_slot(work.grant)
                self.dispatch()

    def _look_at(self, work: Work, session: Session, now: float) -> None:
        if now - work.started_at > SLOT_PATIENCE_S:
            self.post(self._lend_slot, work)
        limit_at = work.deadline_at if work.deadline_at is not None else work.started_at + self._item_limit_s
        if now < limit_at:
            return
        work.is_overdue = True
        if now < max(limit_at, work.started_at) + KILL_GRACE_S:
            session.terminate()
        else:
            session.close()
