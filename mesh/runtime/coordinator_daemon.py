"""The coordinator daemon: one fleet view kept warm, served over gRPC and announced.

It keeps no state that the nodes do not have, only its identity and what it measured: killed and started again, it
answers as before. It owns its discovery: what it watches nodes with is what it announces itself with.
On stop: refuse new work, undo what is half done, say goodbye, close.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from mesh import __version__
from mesh.discovery.contract import Advertisement, Discovery
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.coordinator_service import CoordinatorService
from mesh.runtime.fleet import open_fleet
from mesh.runtime.service_manager import ServiceManager
from mesh.runtime.supervise import Supervisor
from mesh.storage.cost_store import FILE_NAME as COSTS_FILE
from mesh.storage.cost_store import CostStore
from mesh.storage.folder import DataFolder
from mesh.storage.identity import Identity, load_identity
from mesh.wire.convert_coordinator import CoordinatorIdentity
from mesh.wire.coordinator_server import CoordinatorServer

API_VERSION = "1"
"""Of `mesh.v1`, as nodes announce it."""

FOLDER = "coordinator"
"""Inside the data folder: a node and a coordinator may be given the same one, and are two identities."""

SERVER_GRACE_S = 1.0
"""For calls that are answered while the server stops."""


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    data_dir: Path
    listen: str
    """"host:port"; port 0 lets the system choose."""
    name: str | None = None
    settles: bool = True
    """False where discovery knows everyone at once (seeds only)."""


@dataclass(frozen=True, slots=True)
class CoordinatorReady:
    """Told once, when the daemon listens."""

    identity: Identity
    address: str
    damage: str = ""
    """Why measurements that were stored are not used; empty where all is well."""


Companion = Callable[[str], AbstractAsyncContextManager[None]]
"""What runs in a coordinator's process beside it, such as a gateway: given where it listens."""


class CoordinatorDaemon:
    """`discovery` is handed in and entered by `run`."""

    def __init__(self, settings: CoordinatorSettings, discovery: Discovery) -> None:
        self._settings = settings
        self._discovery = discovery

    async def run(
        self,
        stop: asyncio.Event,
        on_ready: Callable[[CoordinatorReady], None],
        companion: Companion | None = None,
    ) -> None:
        """Run until `stop` is set. Raises `StorageError`, `ListenError`, `MissingExtra` before `on_ready`."""
        service_manager = ServiceManager.from_environment()
        with DataFolder.open(self._settings.data_dir / FOLDER) as folder:
            identity = load_identity(folder, self._settings.name)
            async with contextlib.AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(Supervisor())
                opening = open_fleet(self._discovery, tasks, settles=self._settings.settles)
                fleet = await stack.enter_async_context(opening)
                told = CoordinatorIdentity(identity.node_id, identity.name, __version__)
                costs = await asyncio.to_thread(CostStore, folder.path / COSTS_FILE)
                coordinator = Coordinator(fleet, costs)
                service = CoordinatorService(coordinator, told, tasks)
                server = CoordinatorServer(service)
                address = await server.start(self._settings.listen)
                # Left in reverse: first the work, which still needs its caller and the nodes, then the server.
                stack.push_async_callback(server.stop, SERVER_GRACE_S)
                stack.push_async_callback(service.stop)
                await stack.enter_async_context(_watching(coordinator, costs, tasks))
                await self._discovery.advertise(_advertisement(identity, address))
                async with contextlib.nullcontext() if companion is None else companion(address):
                    on_ready(CoordinatorReady(identity, address, costs.damage))
                    service_manager.ready(tasks, f"coordinator {identity.name} listens on {address}")
                    await stop.wait()
                    service_manager.stopping()


@contextlib.asynccontextmanager
async def _watching(coordinator: Coordinator, costs: CostStore, tasks: Supervisor) -> AsyncIterator[None]:
    """What runs is held against its plan until the block ends, and a change under way then is undone.

    Where planning is not installed, nothing is deployed from here, and so nothing planned again.
    """
    try:
        from mesh.runtime.watching import Watch
    except ImportError:
        yield
        return
    watching = tasks.spawn(Watch(coordinator, costs).run(), "watch deployments")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait({watching})


def _advertisement(identity: Identity, address: str) -> Advertisement:
    host, _, port = address.rpartition(":")
    addresses = () if host in ("0.0.0.0", "[::]") else (host.strip("[]"),)  # noqa: S104 - compared, not bound
    properties = {"api": API_VERSION, "ver": __version__}
    return Advertisement(identity.node_id, identity.name, "coordinator", int(port), addresses, properties)
