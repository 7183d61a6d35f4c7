"""Measurements that a node makes on request: a link to another node, a whole model on itself."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.core.fleet import Handling, Link
from mesh.core.profile import steady_seconds
from mesh.core.report import Echo, MeasuredModel
from mesh.core.tensor import blank_tensor
from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.errors import Timeout

ECHO_ROUNDS = 7
"""Round trips of an empty message; the median is taken."""

BURST_BYTES = 1 << 20
BURST_ROUNDS = 4
"""Bursts of 1 MiB: long enough for a rate, short enough not to disturb what runs."""

MIN_TRANSFER_SECONDS = 1e-6
"""Below this a clock says nothing about a rate."""

MEMORY_FACTOR = 2.0
"""A loaded model takes about twice its file: weights once as read and once as prepacked."""

MIN_MODEL_RUNS = 3
MAX_MODEL_RUNS = 30

DISCARDED_PERIODS = 3
"""Of a CPU quota: the first one may begin with a quota that nobody has used."""

COUNTED_PERIODS = 20
"""Whole ones are counted, so that few would do; more even out what else the machine does. 2 s of the usual 0.1 s."""

STEADY_MOST_S = 6.0
"""Periods of up to a second are possible; then fewer are counted."""

MEASURE_LIMIT_S = 60.0
"""Over the budget, for loading and for a run that is under way when the budget is spent; what needs more hangs."""

EchoCall = Callable[[bytes], Awaitable[Echo]]


@dataclass(frozen=True, slots=True)
class _Trip:
    """There and back, in seconds: of the clock, of the CPU here, of the CPU there."""

    seconds: float
    here: float
    there: float


async def measure_link(echo: EchoCall, process_time: Callable[[], float]) -> Link:
    """Latency (half a round trip), one-way rate and CPU time of a link, through the mesh's own RPC stack.

    `process_time` is the CPU time that this process has taken, in seconds. What both processes do besides is counted
    too; the medians leave out what is seldom. The bytes go over the link that is measured: one that lets them trickle
    costs more of the CPU for each.
    """
    at = (await echo(b"")).process_seconds  # connects
    small: list[_Trip] = []
    large: list[_Trip] = []
    for trips, rounds, payload in ((small, ECHO_ROUNDS, b""), (large, BURST_ROUNDS, bytes(BURST_BYTES))):
        for _ in range(rounds):
            began, own = time.perf_counter(), process_time()
            answer = await echo(payload)
            there, at = answer.process_seconds - at, answer.process_seconds
            trips.append(_Trip(time.perf_counter() - began, process_time() - own, max(0.0, there)))
    transfer = max(min(trip.seconds for trip in large) - min(trip.seconds for trip in small), MIN_TRANSFER_SECONDS)
    return Link(
        latency_seconds=statistics.median(trip.seconds for trip in small) / 2,
        bytes_per_second=BURST_BYTES / transfer,
        sending=_handling([trip.here for trip in small], [trip.here for trip in large]),
        receiving=_handling([trip.there for trip in small], [trip.there for trip in large]),
    )


def _handling(small: list[float], large: list[float]) -> Handling:
    """From the CPU seconds of round trips, each of which is a message out and a message in."""
    empty = statistics.median(small)
    return Handling(empty / 2, max(0.0, statistics.median(large) - empty) / BURST_BYTES, measured=True)


async def measure_model(
    engine: Engine, model: bytes | Path, options: LoadOptions, budget_seconds: float, period_seconds: float = 0.0
) -> MeasuredModel:
    """Median seconds of one run on blank inputs; at least `MIN_MODEL_RUNS` runs, then until the budget is spent.

    Under a CPU quota with this period, 0 for none: what a run takes where one follows another without end, over as many
    periods as that needs, however small the budget.

    Raises `LoadFailed`, `EngineError` where a run fails or kills its engine, `Timeout` where it does not end, or
    `ModelUnsupported` where inputs cannot be made up.
    """
    loaded: list[Session] = []
    given_up = threading.Event()
    try:
        async with asyncio.timeout(budget_seconds + MEASURE_LIMIT_S):
            session = await asyncio.to_thread(_load, engine, model, options, loaded, given_up)
            if period_seconds > 0:
                return await asyncio.to_thread(_measure_steadily, session, budget_seconds, period_seconds)
            return await asyncio.to_thread(_measure_runs, session, budget_seconds)
    except TimeoutError:
        raise Timeout(f"the model was not measured within {budget_seconds + MEASURE_LIMIT_S:g} s") from None
    finally:
        given_up.set()
        for session in loaded:
            session.close()


def _load(
    engine: Engine, model: bytes | Path, options: LoadOptions, loaded: list[Session], given_up: threading.Event
) -> Session:
    session = engine.load(model, options)
    loaded.append(session)
    if given_up.is_set():
        session.close()
    return session


def _measure_runs(session: Session, budget_seconds: float) -> MeasuredModel:
    feeds = [blank_tensor(spec) for spec in session.inputs]
    session.run(feeds)  # the first run allocates
    runs: list[float] = []
    began = time.perf_counter()
    while len(runs) < MIN_MODEL_RUNS or (len(runs) < MAX_MODEL_RUNS and time.perf_counter() - began < budget_seconds):
        started = time.perf_counter()
        session.run(feeds)
        runs.append(time.perf_counter() - started)
    return MeasuredModel(statistics.median(runs), len(runs))


def _measure_steadily(session: Session, budget_seconds: float, period_seconds: float) -> MeasuredModel:
    feeds = [blank_tensor(spec) for spec in session.inputs]
    session.run(feeds)  # the first run allocates
    ends = [time.perf_counter()]
    needed_s = max(budget_seconds, min((DISCARDED_PERIODS + COUNTED_PERIODS) * period_seconds, STEADY_MOST_S))
    while len(ends) <= MIN_MODEL_RUNS or ends[-1] - ends[0] < needed_s:
        session.run(feeds)
        ends.append(time.perf_counter())
    return MeasuredModel(steady_seconds(ends, period_seconds, DISCARDED_PERIODS), len(ends) - 1)
