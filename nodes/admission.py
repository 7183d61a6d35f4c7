"""Are the variants of a folder right on the devices of this mesh, and how fast? Asked by `mesh deploy FOLDER`.

Each variant is loaded on each device by the road that it would serve on, a deployment of its own, and answers the
golden set there; `mesh.optimize.admission` judges. Then it runs in turns with the float model, because a device's pace
drifts by more than what variants differ by. At most two models are loaded at a time, and none is left. What was found
is kept for the same node, runtime, files and limits; a failure that says nothing about the variant is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from mesh.arrays import Array
from mesh.client.mesh_client import Mesh, Model
from mesh.core.ids import NodeId
from mesh.core.plan import FLOAT, Limits, PlanOptions
from mesh.core.report import NodeView
from mesh.errors import DeploymentNotFound, MeshError, RunFailed, Timeout
from mesh.optimize.admission import Admission, why_refused
from mesh.optimize.golden_set import GoldenSet
from mesh.optimize.turns import BUDGET_S, LEAST_ROUNDS, MOST_ROUNDS, summarise_turns
from mesh.runtime.supervise import carry_through
from nodes.admission_file import AdmissionFile, key_of

TURN_MS = 20.0
"""Of computing: frames of a stream that runs, as in use; a lone one also tells how long an engine takes to wake up."""

MOST_RUNS_PER_TURN = 64

RUN_LIMIT_S = 120.0
"""For one run of a model on one device, loading not counted."""

REMOVE_LIMIT_S = 60.0
"""To take a model off a device again, whatever interrupts."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant. Its bytes are read when they are needed: those of all of them at once may be too much."""

    name: str
    read: Callable[[], bytes]
    """Blocks, for a thread."""
    golden_accuracy: float | None
    """On the golden set, where the variant was made."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What every variant is judged by."""

    golden_set: GoldenSet
    golden_sha256: str
    max_drop_points: float

    def why_refused(self, answers: list[list[Array]], made_with: float | None) -> tuple[float | None, float, str]:
        """Accuracy, signal to noise in dB, and the reason for a refusal."""
        scores = self.golden_set.golden.score(answers)
        reason = why_refused(self.golden_set.golden, scores, made_with, self.max_drop_points)
        return scores.accuracy, scores.sqnr_db, reason


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a loaded model took; None where its engine does not tell."""

    load_ms: float | None = None
    peak_bytes: int | None = None


class Loaded(Protocol):
    async def answers(self, samples: Sequence[dict[str, Array]]) -> list[list[Array]]:
        """The outputs of each run, in order. Raises `MeshError`."""
        ...

    async def time_ms(self, feeds: dict[str, Array], runs: int) -> float:
        """What the engines took per run, in milliseconds: the median of `runs` in a row. Raises `MeshError`."""
        ...

    async def footprint(self) -> Footprint:
        """Of its engine, once it has run. Raises `MeshError`."""
        ...


class Bench(Protocol):
    def load(self, data: bytes, name: str, options: PlanOptions) -> AbstractAsyncContextManager[Loaded]:
        """A model that is loaded as `options` say for as long as the block lasts. Raises `MeshError`."""
        ...


async def admit_everywhere(
    bench: Bench, candidates: Sequence[Candidate], gate: Gate, nodes: Sequence[NodeView], known: AdmissionFile, say: Say
) -> list[Admission]:
    """Every candidate on every one of `nodes`, one device after the other; `FLOAT` must be among the candidates."""
    found: list[Admission] = []
    hashes = {each.name: await asyncio.to_thread(_hash, each) for each in candidates}
    for view in nodes:
        name = view.capabilities.name
        keys = {
            each.name: key_of(hashes[each.name], each.golden_accuracy, gate, view.capabilities) for each in candidates
        }
        kept = {each.name: known.get(keys[each.name]) for each in candidates}
        missing = [each for each in candidates if kept[each.name] is None]
        if missing:
            say(f"{name}: judging {', '.join(each.name for each in missing)}")
        judged = await _admit(bench, candidates, missing, gate, view.capabilities.node_id) if missing else {}
        for each in candidates:
            admission = kept[each.name] or judged[each.name].admission
            found.append(admission)
            say(f"{name}: {describe(admission, gate.golden_set.golden.metric)}")
            if each.name in judged and judged[each.name].is_about_the_variant:
                known.put(keys[each.name], admission)
    return found


def _hash(candidate: Candidate) -> str:
    return hashlib.sha256(candidate.read()).hexdigest()


def describe(admission: Admission, metric: str) -> str:
    """One line for people."""
    if admission.reason:
        return f"{admission.variant} refused: {admission.reason}"
    told = f"{metric} {admission.accuracy:.2%}" if admission.accuracy is not None else f"{admission.sqnr_db:.1f} dB"
    if admission.p50_ms is not None:
        told += f", {admission.p50_ms:.3g} ms"
    if admission.speed_up is not None and admission.variant != FLOAT:
        told += f", {admission.speed_up:.2f} times the speed of float"
    if admission.load_ms is not None:
        told += f", loaded in {admission.load_ms:.3g} ms"
    if admission.peak_bytes is not None:
        told += f", {admission.peak_bytes / 1e6:.3g} MB"
    return f"{admission.variant} admitted: {told}"


@dataclass(frozen=True, slots=True)
class _Judged:
    admission: Admission
    is_about_the_variant: bool = True
    """False where something else went wrong, which may be well the next time."""


async def _admit(
    bench: Bench, candidates: Sequence[Candidate], missing: Sequence[Candidate], gate: Gate, device: NodeId
) -> dict[str, _Judged]:
    options = PlanOptions(stages=1, limits=Limits(only=(device,)))
    reference = next(each for each in candidates if each.name == FLOAT)
    judged: dict[str, _Judged] = {}
    async with contextlib.AsyncExitStack() as stack:
        beside: Loaded | None = None
        try:
            data = await asyncio.to_thread(reference.read)
            beside = await stack.enter_async_context(bench.load(data, _slot(device, FLOAT), options))
            if reference in missing:
                judged[FLOAT] = await _judge(reference, beside, beside, gate, device)
        except MeshError as error:
            judged[FLOAT] = _failed(reference, device, error)
        for each in missing:
            if each is reference:
                continue
            try:
                data = await asyncio.to_thread(each.read)
                async with bench.load(data, _slot(device, "variant"), options) as loaded:
                    judged[each.name] = await _judge(each, loaded, beside, gate, device)
            except MeshError as error:
                judged[each.name] = _failed(each, device, error)
    return judged


def _slot(device: NodeId, role: str) -> str:
    """Of the deployment; the same each time, so that one that a killed command left is replaced."""
    return f"admission-{device[:8]}-{role}"


def _failed(candidate: Candidate, device: NodeId, error: MeshError) -> _Judged:
    reason = f"it could not be judged there: {error.message}"
    return _Judged(Admission(candidate.name, device, reason, at=time.time()), is_about_the_variant=False)


async def _judge(candidate: Candidate, loaded: Loaded, beside: Loaded | None, gate: Gate, device: NodeId) -> _Judged:
    samples = gate.golden_set.samples
    answers = await loaded.answers(samples)
    accuracy, sqnr_db, reason = gate.why_refused(answers, candidate.golden_accuracy)
    took = await loaded.footprint()
    found = Admission(
        candidate.name,
        device,
        reason,
        accuracy,
        sqnr_db,
        load_ms=took.load_ms,
        peak_bytes=took.peak_bytes,
        at=time.time(),
    )
    if reason or beside is None:
        return _Judged(found)
    own_ms, float_ms = await _run_in_turns(loaded, beside, samples)
    times = summarise_turns(own_ms, float_ms)
    speed_up = 1.0 if loaded is beside else times.speed_up
    return _Judged(replace(found, p50_ms=times.p50_ms, p95_ms=times.p95_ms, speed_up=speed_up))


async def _run_in_turns(
    loaded: Loaded, beside: Loaded, samples: Sequence[dict[str, Array]]
) -> tuple[list[float], list[float]]:
    own_ms: list[float] = []
    float_ms: list[float] = []
    fastest_ms = min([await model.time_ms(samples[0], LEAST_ROUNDS) for model in (loaded, beside)])
    runs = max(1, min(MOST_RUNS_PER_TURN, round(TURN_MS / max(fastest_ms, 1e-3))))
    began = time.monotonic()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.monotonic() - began > BUDGET_S:
            break
        feeds = samples[number % len(samples)]
        turns = [(loaded, own_ms), (beside, float_ms)]
        for model, taken in turns if number % 2 else reversed(turns):
            taken.append(await model.time_ms(feeds, runs))
    return own_ms, float_ms


async def why_refused_together(bench: Bench, candidate: Candidate, gate: Gate, options: PlanOptions) -> str:
    """Why a plan of several devices may not run the variant; "" where it may. Raises `MeshError`.

    Each device was asked about the whole variant; cut, its parts are other graphs, and codecs may lie between them.
    """
    data = await asyncio.to_thread(candidate.read)
    async with bench.load(data, "admission-together", options) as loaded:
        return gate.why_refused(await loaded.answers(gate.golden_set.samples), candidate.golden_accuracy)[2]


class MeshBench:
    """Loads by deploying."""

    def __init__(self, mesh: Mesh, say: Say) -> None:
        self._mesh = mesh
        self._say = say

    @contextlib.asynccontextmanager
    async def load(self, data: bytes, name: str, options: PlanOptions) -> AsyncIterator[Loaded]:
        try:
            deployment = await self._mesh.coordinator.deploy(data, name, options, lambda text: None)
            yield _Deployed(self._mesh, Model(self._mesh, deployment))
        finally:
            await carry_through(self._remove(name), 2 * REMOVE_LIMIT_S)

    async def _remove(self, name: str) -> None:
        try:
            async with asyncio.timeout(REMOVE_LIMIT_S):
                await self._mesh.undeploy(name)
        except DeploymentNotFound:
            return  # it never came to be
        except (MeshError, TimeoutError) as error:  # what it showed holds all the same, and the next time replaces it
            self._say(f"warning: {name} may still be loaded: {error or 'it is still being removed'}")


class _Deployed:
    def __init__(self, mesh: Mesh, model: Model) -> None:
        self._mesh = mesh
        self._model = model

    async def footprint(self) -> Footprint:
        """Of a model in one stage on one device, as those are that a device is asked about."""
        async with _limited(RUN_LIMIT_S):
            stages = [stage for report in await self._mesh.status(self._model.name) for stage in report.stages]
        if len(stages) != 1:
            return Footprint()
        return Footprint(stages[0].load_seconds * 1e3 or None, stages[0].peak_bytes or None)

    async def answers(self, samples: Sequence[dict[str, Array]]) -> list[list[Array]]:
        names = [spec.name for spec in self._model.outputs]
        found = []
        async with _limited(RUN_LIMIT_S * len(samples)):
            async for result in self._model.stream(samples):
                found.append([result[name] for name in names])
        if len(found) != len(samples):
            raise RunFailed(f"{len(found)} of {len(samples)} samples were answered")
        return found

    async def time_ms(self, feeds: dict[str, Array], runs: int) -> float:
        taken = []
        async with _limited(RUN_LIMIT_S * runs):
            async for result in self._model.stream([feeds] * runs):
                if result.error is not None:
                    raise result.error
                taken.append(sum(hop.compute_us for hop in result.hops) / 1e3)
        if not taken:
            raise RunFailed("no run was answered")
        return statistics.median(taken)


@contextlib.asynccontextmanager
async def _limited(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Timeout(f"it did not answer within {seconds:g} s") from None
