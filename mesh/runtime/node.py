"""The node daemon: composes storage, engine, wire and discovery, and owns every task of the process.

Order of life: own the data folder, listen, advertise, and only then probe (state `measuring`), so
that a slow board is visible within seconds. What was deployed when the daemon last stopped is
loaded again. On stop: refuse new work, drain, say goodbye, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mesh import __version__
from mesh.control.introductions import INTRODUCE_INTERVAL_S, INTRODUCE_RETRY_S
from mesh.control.timing import DRAIN_TIMEOUT_S
from mesh.core.fleet import Capabilities, NodeState, Watts
from mesh.core.plan import Deployment
from mesh.discovery.contract import Advertisement, Discovery
from mesh.engines import DEFAULT_ENGINE, describe_runtime
from mesh.engines.contract import Engine, LoadOptions
from mesh.errors import MeshError, ProtocolViolation, UsageError
from mesh.hardware.probe import ProbeResult, StaticFacts, run_probe, static_facts
from mesh.runtime.content_fetch import fetch_content
from mesh.runtime.deployment_driver import DeploymentDriver
from mesh.runtime.edge_sender import Link
from mesh.runtime.engine_mode import EngineMode, choose_engine_mode, make_node_engine
from mesh.runtime.engine_pool import EnginePool
from mesh.runtime.hanging import hang_when_asked
from mesh.runtime.node_clients import NodeClients
from mesh.runtime.node_service import NodeService
from mesh.runtime.own_node import OwnNode
from mesh.runtime.service_manager import ServiceManager
from mesh.runtime.staleness import keep_current
from mesh.runtime.supervise import Supervisor
from mesh.storage.content import ContentStore
from mesh.storage.deployments import Damage, DeploymentStore
from mesh.storage.folder import DataFolder
from mesh.storage.identity import Identity, load_identity
from mesh.wire.channel import NodeClient
from mesh.wire.convert import deployment_from_bytes
from mesh.wire.server import NodeServer

API_VERSION = "1"
"""Of `mesh.v1`; told in the advertisement so that a peer of another version is recognised before it is called."""

MAX_PEER_CLIENTS = 64
"""Connections to other nodes that are kept; a node has fewer streams to others than that at one time."""

SERVER_GRACE_S = 1.0
"""For calls that are answered while the server stops."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    data_dir: Path
    listen: str
    """"host:port"; port 0 lets the system choose."""
    name: str | None = None
    content_capacity_bytes: int = 2 << 30
    engine: str = DEFAULT_ENGINE
    seeds: tuple[str, ...] = ()
    """Nodes to introduce ourselves to, "host:port", where multicast does not reach."""
    threads: int = 0
    """Engine threads; 0 takes the cores that the process has."""
    runs: int = 1
    """Runs at once of one model, each with so many threads."""
    engine_mode: EngineMode | None = None
    """None: child processes where there is memory for them."""
    watts: Watts | None = None
    """Of the device at full load and at rest, as its owner states them."""


@dataclass(frozen=True, slots=True)
class NodeReady:
    """Told once, when the daemon listens."""

    identity: Identity
    address: str
    damages: tuple[Damage, ...] = ()
    """Stored deployments that could not be read; the daemon runs without them."""


Companion = Callable[[OwnNode, str], AbstractAsyncContextManager[None]]
"""What runs in a node's process beside it, such as a gateway: given the node and where it listens, entered once that
is so, and left before the node drains. It raises on the way in what is wrong with it."""


class Node:
    """`discovery` is handed in and entered by `run`; it is not used before the port is open."""

    def __init__(self, settings: NodeSettings, discovery: Discovery) -> None:
        self._settings = settings
        self._discovery = discovery
        self._state = NodeState.MEASURING
        self._probe = ProbeResult()
        self._mode = ""

    async def run(
        self, stop: asyncio.Event, on_ready: Callable[[NodeReady], None], companion: Companion | None = None
    ) -> None:
        """Run until `stop` is set. Raises `StorageError`, `ListenError`, `MissingExtra` before `on_ready`."""
        service_manager = ServiceManager.from_environment()
        hang_when_asked()
        with DataFolder.open(self._settings.data_dir) as folder:
            self._identity = load_identity(folder, self._settings.name)
            self._content = ContentStore(folder, self._settings.content_capacity_bytes)
            store = DeploymentStore(folder)
            async with contextlib.AsyncExitStack() as stack:
                engine, options, pool = self._make_engines()
                stack.push_async_callback(pool.close)  # after the last task that may load something has ended
                tasks = await stack.enter_async_context(Supervisor())
                self._clients = NodeClients(tasks.spawn, MAX_PEER_CLIENTS)
                stack.push_async_callback(self._clients.close)
                driver, service = self._compose(store, engine, options, pool, tasks)
                stack.push_async_callback(driver.close)
                # Before anybody can ask for anything: the fences must be in force by then.
                await driver.restore(read_deployments(store))
                for damage in store.damages:
                    driver.tell(damage.name, f"what was stored of it is set aside as {damage.path}: {damage.reason}")
                server = NodeServer(service)
                address = await server.start(self._settings.listen)
                stack.push_async_callback(server.stop, SERVER_GRACE_S)
                await stack.enter_async_context(self._discovery)
                await self._discovery.advertise(self._advertisement(address))
                tasks.spawn(self._measure(), "probe the hardware")
                tasks.spawn(keep_current(self._identity.node_id, driver, self._clients.get), "drain what was replaced")
                for seed in self._settings.seeds:
                    tasks.spawn(self._introduce(seed, address, service), f"introduce ourselves to {seed}")
                own_node = OwnNode(self._identity.node_id, service, tasks.spawn)
                async with contextlib.nullcontext() if companion is None else companion(own_node, address):
                    on_ready(NodeReady(self._identity, address, tuple(store.damages)))
                    service_manager.ready(tasks, f"node {self._identity.name} listens on {address}")
                    await stop.wait()
                    self._state = NodeState.DRAINING
                    service_manager.stopping()
                async with asyncio.timeout(2 * DRAIN_TIMEOUT_S):
                    await driver.stop()

    def _make_engines(self) -> tuple[Engine, LoadOptions, EnginePool]:
        facts = static_facts(self._settings.data_dir)
        mode = choose_engine_mode(self._settings.engine_mode, facts.memory_available_bytes)
        engine = make_node_engine(self._settings.engine, mode, facts.memory_available_bytes)
        cores = max(1, int(facts.cores))
        options = LoadOptions(threads=self._settings.threads or cores, runs=self._settings.runs)
        self._mode = f"{options.threads}x{options.runs}"
        return engine, options, EnginePool(engine, slots=max(1, cores // options.threads, options.runs))

    def _compose(
        self, store: DeploymentStore, engine: Engine, options: LoadOptions, pool: EnginePool, tasks: Supervisor
    ) -> tuple[DeploymentDriver, NodeService]:
        fetch = partial(fetch_content, self._content, self._clients.get)
        driver = DeploymentDriver(
            self._identity.node_id, self._content, store, pool, options, self._dial_edge, fetch, tasks
        )
        return driver, NodeService(self._capabilities, driver, self._content, engine, options, self._clients.get, fetch)

    def _capabilities(self) -> Capabilities:
        facts: StaticFacts = static_facts(self._settings.data_dir)
        return Capabilities(
            node_id=self._identity.node_id,
            name=self._identity.name,
            arch=facts.arch,
            cores=facts.cores,
            memory_bytes=facts.memory_bytes,
            memory_available_bytes=facts.memory_available_bytes,
            disk_available_bytes=self._content.available_bytes(),
            providers=self._probe.providers,
            runtime_version=describe_runtime(self._settings.engine, self._probe.runtime_version),
            gflops=self._probe.gflops,
            memory_gb_per_s=self._probe.memory_gb_per_s,
            state=self._state,
            software_version=__version__,
            hardware=facts.hardware,
            mode=self._mode,
            codecs=self._probe.codecs,
            watts=self._settings.watts,
            governor=facts.governor,
        )

    def _advertisement(self, address: str) -> Advertisement:
        host, _, port = address.rpartition(":")
        facts = static_facts(self._settings.data_dir)
        addresses = () if host in ("0.0.0.0", "[::]") else (host.strip("[]"),)  # noqa: S104 - compared, not bound
        properties = {"api": API_VERSION, "arch": facts.arch, "ver": __version__}
        return Advertisement(self._identity.node_id, self._identity.name, "node", int(port), addresses, properties)

    async def _measure(self) -> None:
        given_up = threading.Event()
        try:
            self._probe = await asyncio.to_thread(run_probe, stop=given_up)
        finally:
            given_up.set()  # the child must not outlive a daemon that stops while it measures
        if self._state is NodeState.MEASURING:
            self._state = NodeState.READY

    async def _introduce(self, seed: str, address: str, service: NodeService) -> None:
        """For as long as the daemon runs; a seed that is down now may be up later.

        Who asks us hears of the seed as well: whichever node of a mesh is named, all are found.
        """
        port = int(address.rpartition(":")[2])
        client = NodeClient(seed)
        try:
            while True:
                pause_s = INTRODUCE_INTERVAL_S
                try:
                    await client.introduce(self._identity.node_id, self._identity.name, port)
                    known, _ = await client.describe()
                    await service.introduce(known.node_id, known.name, seed)
                except MeshError:  # nobody waits for this; the next round says the same again
                    pause_s = INTRODUCE_RETRY_S
                await asyncio.sleep(pause_s)
        finally:
            await client.close()

    def _dial_edge(self, address: str) -> Link:
        return self._clients.get(address).open_edge()


def read_deployments(store: DeploymentStore) -> tuple[Deployment, ...]:
    """What is to be loaded again; what this version cannot read is set aside, see `DeploymentStore.damages`."""
    found = []
    for name, blob in store.load_all().items():
        try:
            deployment = deployment_from_bytes(blob)
            if deployment.name != name:
                raise ProtocolViolation(f"it is deployment {deployment.name!r}")
        except (ProtocolViolation, UsageError) as error:
            store.set_aside(name, f"mesh {__version__} cannot read it: {error}")
        else:
            found.append(deployment)
    return tuple(found)
