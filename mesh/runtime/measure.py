"""Measurements that a node makes on request: a link to another node, a whole model on itself."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from mesh.core.fleet import Link
from mesh.core.report import MeasuredModel
from mesh.core.tensor import DType, Tensor, TensorSpec, pack_strings
from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.errors import ModelUnsupported, Timeout

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

MEASURE_LIMIT_S = 60.0
"""Over the budget, for loading and for a run that is under way when the budget is spent; what needs more hangs."""

Echo = Callable[[bytes], Awaitable[object]]


async def measure_link(echo: Echo) -> Link:
    """Latency (half a round trip) and one-way rate of a link, through the mesh's own RPC stack."""
    await echo(b"")  # connects
    round_trips = [await _time(echo, b"") for _ in range(ECHO_ROUNDS)]
    round_trip = statistics.median(round_trips)
    payload = bytes(BURST_BYTES)
    bursts = [await _time(echo, payload) for _ in range(BURST_ROUNDS)]
    transfer = max(min(bursts) - min(round_trips), MIN_TRANSFER_SECONDS)
    return Link(latency_seconds=round_trip / 2, bytes_per_second=BURST_BYTES / transfer)


async def _time(echo: Echo, payload: bytes) -> float:
    began = time.perf_counter()
    await echo(payload)
    return time.perf_counter() - began


def blank_tensor(spec: TensorSpec) -> Tensor:
    """Zeros (empty strings) in the shape of `spec`, symbolic dimensions at 1; for timing only."""
    if spec.shape is None:
        raise ModelUnsupported(f"input {spec.name!r} has no rank, so it cannot be timed with made-up data")
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)
    if spec.dtype is DType.STRING:
        count = 1
        for dim in shape:
            count *= dim
        return Tensor.from_bytes(spec.dtype, shape, pack_strings([b""] * count), spec.name)
    return Tensor.from_bytes(spec.dtype, shape, bytes(spec.nominal_bytes() or 0), spec.name)


async def measure_model(
    engine: Engine, model: bytes | Path, options: LoadOptions, budget_seconds: float
) -> MeasuredModel:
    """Median seconds of one run on blank inputs; at least `MIN_MODEL_RUNS` runs, then until the budget is spent.

    Raises `LoadFailed`, `EngineError` where a run fails or kills its engine, `Timeout` where it does not end, or
    `ModelUnsupported` where inputs cannot be made up.
    """
    loaded: list[Session] = []
    given_up = threading.Event()
    try:
        async with asyncio.timeout(budget_seconds + MEASURE_LIMIT_S):
            return await asyncio.to_thread(_measure_model, engine, model, options, budget_seconds, loaded, given_up)
    except TimeoutError:
        raise Timeout(f"the model was not measured within {budget_seconds + MEASURE_LIMIT_S:g} s") from None
    finally:
        given_up.set()
        for session in loaded:
            session.close()


def _measure_model(
    engine: Engine,
    model: bytes | Path,
    options: LoadOptions,
    budget_seconds: float,
    loaded: list[Session],
    given_up: threading.Event,
) -> MeasuredModel:
    session = engine.load(model, options)
    loaded.append(session)
    if given_up.is_set():
        session.close()
    feeds = [blank_tensor(spec) for spec in session.inputs]
    session.run(feeds)  # the first run allocates
    runs: list[float] = []
    began = time.perf_counter()
    while len(runs) < MIN_MODEL_RUNS or (len(runs) < MAX_MODEL_RUNS and time.perf_counter() - began < budget_seconds):
        started = time.perf_counter()
        session.run(feeds)
        runs.append(time.perf_counter() - started)
    return MeasuredModel(statistics.median(runs), len(runs))
