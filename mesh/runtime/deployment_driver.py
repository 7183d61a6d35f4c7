"""Performs what `mesh.control.deployments` decides: the only place on a node where deployments change.

Every change goes through `apply`: one event into the pure machine, its commands carried out in order.
What takes long (looking for content, loading, draining) runs as a task of the node's supervisor and
ends in exactly one event. Stages live here and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from mesh.control import deployments as machine
from mesh.control.deployments import Deployments, DeploymentState, Key
from mesh.control.timing import ABANDONED_TIMEOUT_S, ACTIVATION_TIMEOUT_S, LOAD_TIMEOUT_S
from mesh.core.ids import NodeId, Sha256
from mesh.core.plan import Deployment, Fence
from mesh.core.report import DeploymentReport, Happening, StageReport
from mesh.engines.contract import LoadOptions
from mesh.errors import LoadFailed, MeshError, Refused, Timeout
from mesh.runtime.edge_coding import check_codecs
from mesh.runtime.edge_sender import Link
from mesh.runtime.engine_pool import EngineLease, EnginePool
from mesh.runtime.replicated_edge import make_edge
from mesh.runtime.stage import Stage
from mesh.runtime.stage_ports import Downstream
from mesh.runtime.supervise import Supervisor, carry_through
from mesh.storage.content import ContentStore
from mesh.storage.deployments import DeploymentStore

MAX_HAPPENINGS = 50
"""Kept per deployment name for `mesh status`; older ones are forgotten."""

APPLY_LIMIT_S = 60.0
"""A change writes a few kilobytes to disk and may close an engine; an SD card that is worn out takes seconds."""

DialEdge = Callable[[str], Link]
"""Opens an edge to the node at an address."""

Fetch = Callable[[Sequence[Sha256], Sequence[str]], Awaitable[None]]
"""Gets content from the nodes at these addresses where it is not here; raises `NotFound` where none of them has it."""


def stages_on(deployment: Deployment, node: NodeId) -> tuple[int, ...]:
    """Which stages of `deployment` run on `node`; raises `Refused` if none does."""
    found = tuple(index for index, stage in enumerate(deployment.plan.stages) if node in stage.devices)
    if not found:
        raise Refused(f"deployment {deployment.name!r} has no stage for this node ({node})")
    return found


class DeploymentDriver:
    def __init__(
        self,
        node: NodeId,
        content: ContentStore,
        store: DeploymentStore,
        pool: EnginePool,
        options: LoadOptions,
        dial: DialEdge,
        fetch: Fetch,
        tasks: Supervisor,
    ) -> None:
        self._node = node
        self._content = content
        self._store = store
        self._pool = pool
        self._options = options
        self._dial = dial
        self._fetch = fetch
        self._tasks = tasks
        self._state = Deployments()
        self._stages: dict[Key, dict[int, Stage]] = {}
        self._senders: dict[Key, list[asyncio.Task[None]]] = {}
        self._pinned: dict[Key, tuple[Sha256, ...]] = {}
        self._happenings: dict[str, deque[Happening]] = {}
        self._restored: set[Key] = set()
        self._unactivated: dict[Key, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._applying = asyncio.Lock()

    # Reading --------------------------------------------------------------------------------------

    @property
    def state(self) -> Deployments:
        return self._state

    def stages(self, key: Key) -> tuple[Stage, ...]:
        """Those of deployment `key` that are loaded here, in running order."""
        return tuple(stage for _, stage in sorted(self._stages.get(key, {}).items()))

    def reports(self, name: str = "") -> list[DeploymentReport]:
        return [
            self._report(key, record)
            for key, record in sorted(self._state.records.items(), key=lambda item: (item[0].name, item[0].fence))
            if not name or key.name == name
        ]

    def _report(self, key: Key, record: machine.Record) -> DeploymentReport:
        stages = tuple(_report_stage(stage, self._node) for stage in self.stages(key))
        happenings = tuple(self._happenings.get(key.name, ()))
        return DeploymentReport(
            record.deployment, record.state.value, record.reason, stages, happenings, record.is_kept
        )

    def tell(self, name: str, text: str) -> None:
        """Note something for people who ask for this deployment's status."""
        self._happenings.setdefault(name, deque(maxlen=MAX_HAPPENINGS)).append(Happening(time.time(), text))

    def _tell_once(self, name: str, text: str) -> None:
        """For what holds for a segment, however many generations keep it."""
        if all(happening.text != text for happening in self._happenings.get(name, ())):
            self.tell(name, text)

    # Asking ---------------------------------------------------------------------------------------

    async def prepare(self, deployment: Deployment) -> float:
        """Load this node's stages; returns the seconds it took. Raises why it could not.

        Who has hung up meanwhile cannot take back what it asked for, so what is not activated in time is removed.
        """
        check_codecs(deployment, stages_on(deployment, self._node))
        key = machine.key_of(deployment)
        began = time.monotonic()
        self._stop_waiting_for(key)
        try:
            await self._load_it(key, deployment)
        except (asyncio.CancelledError, LoadFailed, Timeout):
            self._wait_for_activation(key, ABANDONED_TIMEOUT_S)
            raise
        self._wait_for_activation(key, ACTIVATION_TIMEOUT_S)
        return time.monotonic() - began

    async def _load_it(self, key: Key, deployment: Deployment) -> None:
        await self.apply(machine.PrepareAsked(deployment))
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await self._settled(key, {DeploymentState.READY, DeploymentState.ACTIVE, DeploymentState.FAILED})
        except TimeoutError:
            raise Timeout(f"deployment {key} was not loaded within {LOAD_TIMEOUT_S:g} s") from None
        record = self._state.records.get(key)
        if record is None or record.state is DeploymentState.DRAINING:
            raise Refused(f"deployment {key} was removed while it was loading")
        if record.state is DeploymentState.FAILED:
            raise LoadFailed(record.reason)

    def _wait_for_activation(self, key: Key, patience_s: float) -> None:
        self._stop_waiting_for(key)
        self._unactivated[key] = self._tasks.spawn(self._give_up(key, patience_s), f"wait for activation of {key}")

    async def _give_up(self, key: Key, patience_s: float) -> None:
        await asyncio.sleep(patience_s)
        del self._unactivated[key]
        await self.apply(machine.ActivationOverdue(key))

    def _stop_waiting_for(self, key: Key) -> None:
        waiting = self._unactivated.pop(key, None)
        if waiting is not None:
            waiting.cancel()

    async def activate(self, key: Key) -> None:
        await self.apply(machine.ActivateAsked(key))
        self._stop_waiting_for(key)

    async def drain(self, key: Key) -> None:
        """Remove one generation; returns when it is gone."""
        await self.apply(machine.DrainAsked(key))
        await self._settled(key, set())

    async def restore(self, stored: tuple[Deployment, ...]) -> None:
        """Load again what was here when the daemon last stopped."""
        async with self._applying:
            self._state, commands = machine.restore(stored, self._store.fences())
            self._restored = set(self._state.records)
            for command in commands:
                await self._perform(command)

    async def stop(self) -> None:
        """Drain everything; what is on disk stays there for the next start."""
        await self.apply(machine.StopAsked())
        async with self._changed:
            await self._changed.wait_for(lambda: not self._state.records)

    async def close(self) -> None:
        """Free every stage at once; for an end without `stop`, and harmless after it."""
        for key in list(self._stages):
            await self._unload(key)

    async def _settled(self, key: Key, states: set[DeploymentState]) -> None:
        def is_settled() -> bool:
            record = self._state.records.get(key)
            return (
                record is None or record.state in states or (bool(states) and record.state is DeploymentState.DRAINING)
            )

        async with self._changed:
            await self._changed.wait_for(is_settled)

    # Deciding and performing ----------------------------------------------------------------------

    async def apply(self, event: machine.Event) -> None:
        """One event; raises the machine's refusal, or a storage error that kept it from being taken.

        Not stopped half-way where the caller goes away: state, disk and commands would no longer agree.
        """
        try:
            await carry_through(self._apply(event), APPLY_LIMIT_S)
        except TimeoutError:
            raise Timeout(f"this node could not carry out a change within {APPLY_LIMIT_S:g} s") from None

    async def _apply(self, event: machine.Event) -> None:
        async with self._applying:
            state, commands = machine.step(self._state, event)
            for command in commands:
                # Raising leaves the state as it was: nobody was shown what is not on disk.
                if isinstance(command, machine.RaiseFence):
                    await asyncio.to_thread(self._store.raise_fence, command.key.name, command.key.fence)
                elif isinstance(command, machine.StoreDeployment):
                    await self._store_deployment(command.deployment, state.fences[command.deployment.name])
            self._state = state
            for command in commands:
                await self._perform(command)
        async with self._changed:
            self._changed.notify_all()

    async def _perform(self, command: machine.Command) -> None:
        match command:
            case machine.Refuse(error):
                raise error
            case machine.CheckContent(key):
                self._tasks.spawn(self._check_content(key), f"check content of {key}")
            case machine.LoadStage(key):
                self._tasks.spawn(self._load(key), f"load {key}")
            case machine.OpenStage(key):
                for stage in self.stages(key):
                    stage.activate()
                cause = self._state.records[key].deployment.cause
                self.tell(key.name, f"generation {key.fence} is active" + (f": {cause}" if cause else ""))
            case machine.DrainStage(key):
                self._tasks.spawn(self._drain(key), f"drain {key}")
            case machine.UnloadStage(key):
                await self._unload(key)
            case machine.ForgetDeployment(key):
                await asyncio.to_thread(self._store.remove, key.name)
                self._happenings.pop(key.name, None)
            case machine.RaiseFence() | machine.StoreDeployment():
                pass  # done before the state changed

    async def _store_deployment(self, deployment: Deployment, fence: Fence) -> None:
        # Imported here: the wire's encoding is also what is kept on disk.
        from mesh.wire.convert import deployment_to_bytes

        blob = deployment_to_bytes(deployment)
        await asyncio.to_thread(self._store.store, deployment.name, blob, fence)

    def _segments(self, key: Key) -> tuple[Sha256, ...]:
        deployment = self._state.records[key].deployment
        found = [deployment.plan.stages[index].segment.sha256 for index in stages_on(deployment, self._node)]
        if None in found:
            raise Refused(f"deployment {key} names no content for its stage on this node")
        return tuple(sha256 for sha256 in found if sha256 is not None)

    async def _check_content(self, key: Key) -> None:
        """Pin the segments of `key`, after getting from other nodes of the deployment what is not here."""
        pinned: list[Sha256] = []
        try:
            record = self._state.records.get(key)
            if record is None:
                return  # removed meanwhile
            addresses = [a for node, a in record.deployment.addresses.items() if node != self._node]
            for sha256 in self._segments(key):
                await self._fetch((sha256,), addresses)
                await asyncio.to_thread(self._content.pin, sha256)
                pinned.append(sha256)
        except MeshError as error:
            event: machine.Event = machine.ContentMissing(key, str(error))
        else:
            event = machine.ContentFound(key)
        if isinstance(event, machine.ContentFound) and key in self._state.records:
            self._pinned[key] = tuple(pinned)
        else:  # failed, or removed meanwhile: nobody else would release the pins
            for sha256 in pinned:
                await asyncio.to_thread(self._content.unpin, sha256)
        await self._report_outcome(key, event)

    async def _load(self, key: Key) -> None:
        record = self._state.records.get(key)
        pinned = self._pinned.get(key)
        if record is None or pinned is None:
            return  # removed meanwhile
        deployment = record.deployment
        loaded: dict[int, Stage] = {}
        try:
            for index, sha256 in zip(stages_on(deployment, self._node), pinned, strict=True):
                path: Path = await asyncio.to_thread(self._content.path, sha256)
                engine = await self._pool.acquire(path, sha256, self._options, key.name)
                loaded[index] = await self._make_stage(deployment, index, engine)
                if engine.fallback:
                    self._tell_once(key.name, f"segment {sha256[:8]}: {engine.fallback}")
        except BaseException as error:  # also when the daemon goes down meanwhile: each holds an engine
            await _close_all(loaded)
            if not isinstance(error, MeshError):
                raise
            await self._report_outcome(key, machine.LoadingFailed(key, str(error)))
            return
        if key not in self._pinned:
            await _close_all(loaded)  # removed while it was loading
            return
        self._stages[key] = loaded
        self._senders[key] = [self._tasks.spawn(s.run(), f"stage {index} of {key}") for index, s in loaded.items()]
        await self._report_outcome(key, machine.Loaded(key))
        if key in self._restored:
            self._restored.discard(key)
            self.tell(key.name, f"generation {key.fence} was restored after a restart")
            try:
                await self.apply(machine.ActivateAsked(key))
            except MeshError as error:  # it was removed, or the daemon stops, before it was loaded
                self.tell(key.name, f"generation {key.fence} was not activated after the restart: {error}")

    async def _make_stage(self, deployment: Deployment, index: int, engine: EngineLease) -> Stage:
        key = machine.key_of(deployment)
        engine.on_restart = lambda cause: self.tell(key.name, f"the engine was started again: {cause}")
        engine.on_quarantine = lambda reason: self._give_up_engine(key, reason)
        try:
            return Stage(deployment, index, engine, self._edge_from(deployment, index))
        except BaseException:
            await engine.release()
            raise

    def _give_up_engine(self, key: Key, reason: str) -> None:
        event = machine.EngineGaveUp(key, reason)
        self._tasks.spawn(self._report_outcome(key, event), f"give up the engine of {key}")

    def _edge_from(self, deployment: Deployment, index: int) -> Downstream | None:
        if index + 1 == len(deployment.plan.stages):
            return None
        return make_edge(deployment, index + 1, self._dial, self._tasks.spawn)

    async def _report_outcome(self, key: Key, event: machine.Event) -> None:
        await self.apply(event)
        record = self._state.records.get(key)
        if record is not None and record.state is DeploymentState.FAILED:
            self.tell(key.name, f"generation {key.fence} failed: {record.reason}")

    async def _drain(self, key: Key) -> None:
        for stage in self.stages(key):  # head first: each has somewhere to send what it holds
            await stage.drain()
        await self.apply(machine.Drained(key))

    async def _unload(self, key: Key) -> None:
        self._stop_waiting_for(key)
        for sender in self._senders.pop(key, ()):
            sender.cancel()
        await _close_all(self._stages.pop(key, {}))
        for sha256 in self._pinned.pop(key, ()):
            await asyncio.to_thread(self._content.unpin, sha256)


async def _close_all(stages: Mapping[int, Stage]) -> None:
    for stage in stages.values():
        await stage.close()


def _report_stage(stage: Stage, node: NodeId) -> StageReport:
    counted = stage.statistics
    return StageReport(
        stage.index,
        counted.frames,
        counted.compute_seconds,
        stage.throughput_per_s,
        counted.dropped,
        counted.failed,
        node,
        counted.waiting_seconds,
        counted.leaving_seconds,
        stage.sent_bytes,
        stage.engine.peak_bytes,
        max((lane.load_seconds for lane in stage.engine.engine.lanes), default=0.0),
    )
