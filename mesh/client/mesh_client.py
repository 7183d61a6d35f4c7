"""The Python API: `async with mesh.connect() as m`, models, runs and streams.

A client finds nodes by itself and talks to head and tail of a deployment directly; a coordinator is
only asked to deploy. Nothing here needs numpy: feeds and answers are `Tensor`s, or NumPy arrays
where arrays were given.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mesh.client.values import keep
from mesh.core.frame import Outcome, StreamClass
from mesh.core.ids import NodeId, make_name
from mesh.core.plan import Deployment, Objective, PlanOptions
from mesh.core.report import DeploymentReport, NodeView
from mesh.core.tensor import Tensor, TensorSpec
from mesh.discovery import DiscoverySettings, make_discovery
from mesh.discovery.interfaces import interfaces_to_browse
from mesh.errors import MeshError, MissingExtra, NotFound, RunFailed, TensorMismatch
from mesh.runtime.coordinator import Coordinator, CoordinatorPort
from mesh.runtime.locate import ENVIRONMENT, open_coordinator
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient

if TYPE_CHECKING:
    from types import ModuleType

    from mesh.core.frame import Hop
    from mesh.runtime.calls import Calls
    from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
    from mesh.runtime.own_node import OwnNode

Feeds = Mapping[str, Any] | Sequence[Any] | Any
"""Values by input name, in input order, or the single input's value: `Tensor`s or NumPy arrays."""


def _be_quiet(line: str) -> None:
    """Nobody asked for progress."""


class Result(Mapping[str, Any]):
    """The answer to one frame: outputs by name. Reading one that is not OK raises its error."""

    def __init__(self, answer: Answer, outputs: Sequence[TensorSpec], as_arrays: bool) -> None:
        self.sequence = answer.sequence
        self.outcome: Outcome = answer.outcome
        self.error: MeshError | None = answer.error
        self.latency_s: float | None = answer.latency_s
        self.hops: tuple[Hop, ...] = answer.hops
        self.tensors: tuple[Tensor, ...] = answer.tensors
        self._outputs = outputs
        self._as_arrays = as_arrays

    def __getitem__(self, name: str) -> Any:
        if self.outcome is not Outcome.OK:
            raise self.error or RunFailed(f"frame {self.sequence} was answered {self.outcome.name.lower()}")
        for spec, tensor in zip(self._outputs, self.tensors, strict=True):
            if spec.name == name:
                return _arrays().to_array(tensor, name) if self._as_arrays else tensor
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"Result(sequence={self.sequence}, outcome={self.outcome.name}, latency_s={self.latency_s})"


class Model:
    """A deployed model. Made by `Mesh.deploy` and `Mesh.model`; lives as long as its `Mesh`."""

    def __init__(self, mesh: Mesh, deployment: Deployment) -> None:
        self._mesh = mesh
        self.deployment = deployment
        self._calls: Calls | None = None
        self._opening = asyncio.Lock()

    @property
    def name(self) -> str:
        return self.deployment.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.deployment.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.deployment.outputs

    async def run(self, feeds: Feeds) -> dict[str, Any]:
        """Run once; returns outputs by name. Calls may overlap; they share one unordered stream.

        Raises `TensorMismatch` for feeds that do not fit, `RunFailed` where the model cannot compute
        them, `NodeLost` when a node of the plan goes away.
        """
        tensors, as_arrays = to_tensors(feeds, self.inputs)
        async with self._opening:
            if self._calls is None or self._calls.is_broken:
                self._calls = await self._mesh.open_calls(self.deployment)
        answer = await self._calls.run(tensors)
        return dict(Result(answer, self.outputs, as_arrays))

    async def stream(
        self,
        frames: Iterable[Feeds] | AsyncIterable[Feeds],
        *,
        live: bool = False,
        deadline_s: float | None = None,
        window: int | None = None,
    ) -> AsyncIterator[Result]:
        """Send `frames` as they come and yield every frame's answer in order.

        `live`: newest wins; frames that cannot be sent in time are answered `dropped` or `late`. Otherwise
        the source is slowed to what the mesh takes. Raises what broke the stream, after the answers.
        """
        from mesh.runtime.frame_stream import StreamOptions

        options = StreamOptions(
            stream_class=StreamClass.LIVE if live else StreamClass.LOSSLESS, window=window, deadline_s=deadline_s
        )
        async with self._mesh.open_stream(self.deployment, options) as stream:
            form = {"as_arrays": False}

            async def feed() -> None:
                try:
                    async for feeds in _iterate(frames):
                        tensors, form["as_arrays"] = to_tensors(feeds, self.inputs)
                        await stream.send([keep(tensor) for tensor in tensors])
                    stream.finish()
                except MeshError as error:
                    stream.abandon(error)

            feeding = self._mesh.tasks.spawn(feed(), "stream: feed")
            try:
                async for answer in stream.answers():
                    yield Result(answer, self.outputs, form["as_arrays"])
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


class Mesh:
    """A connection to the mesh; use `async with mesh.connect(...) as m`."""

    def __init__(
        self,
        *,
        peers: Sequence[str] = (),
        interfaces: Sequence[str] = (),
        mdns: bool = True,
        coordinator: str | None = None,
        only: frozenset[NodeId] | None = None,
        costs: Path | None = None,
        warn: Callable[[str], None] = _be_quiet,
        own_node: OwnNode | None = None,
    ) -> None:
        # A mesh of particular nodes is complete as it is described: the environment is about another one.
        environment = os.environ if only is None else {}
        self._peers = tuple(peers) or tuple(environment.get("MESH_PEER", "").split())
        self._interfaces = tuple(interfaces) or tuple(environment.get("MESH_INTERFACE", "").split())
        self._broker = environment.get("MESH_MQTT", "")
        self._coordinator_environment = environment.get(ENVIRONMENT)
        self._mdns = mdns
        self._coordinator_address = coordinator
        self._only = only
        self._costs = costs
        self._own_node = own_node
        self._warn = warn
        self._stack = contextlib.AsyncExitStack()
        self._directory: Coordinator | None = None
        self.tasks = Supervisor()

    async def __aenter__(self) -> Mesh:
        names = [*(["mdns"] if self._mdns else []), *(["mqtt"] if self._broker else [])]
        names += ["static"] if self._peers or not names else []
        interfaces = self._interfaces or (interfaces_to_browse() if self._mdns else ())
        discovery = make_discovery(names, DiscoverySettings(interfaces, self._peers, self._broker))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.tasks)
            opening = open_coordinator(
                discovery,
                self.tasks,
                settles=self._mdns or bool(self._broker),
                argument=self._coordinator_address,
                environment=self._coordinator_environment,
                warn=self._warn,
                only=self._only,
                costs=self._costs,
            )
            self._located = await stack.enter_async_context(opening)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @property
    def coordinator(self) -> CoordinatorPort:
        """Whoever plans: a daemon that was named or found, else this process."""
        return self._located.port

    @property
    def directory(self) -> Coordinator:
        """What the nodes themselves tell, asked from this process: needs no coordinator daemon."""
        if self._directory is None:
            self._directory = Coordinator(self._located.fleet)
        return self._directory

    def client(self, address: str) -> NodeClient:
        """The connection to a node, "host:port", which stays this one's to close."""
        return self._located.fleet.client(address)

    async def nodes(self) -> list[NodeView]:
        """Everyone who was announced, and whether they answer."""
        return await self.coordinator.list_nodes()

    async def deploy(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        stages: int | None = None,
        objective: str = "throughput",
    ) -> Model:
        """Plan the ONNX model at `path` on the nodes that answer, put it in force, and return it."""
        data = await asyncio.to_thread(read_model_file, Path(path))
        options = PlanOptions(objective=Objective(objective), stages=stages)
        chosen = name if name is not None else make_name(Path(path).stem, "model")
        return Model(self, await self.coordinator.deploy(data, chosen, options, _be_quiet))

    async def model(self, name: str) -> Model:
        """A model that is deployed already; raises `DeploymentNotFound`."""
        return Model(self, await self.coordinator.resolve(name))

    async def status(self, name: str = "") -> list[DeploymentReport]:
        return await self.coordinator.status(name)

    async def undeploy(self, name: str) -> None:
        await self.coordinator.undeploy(name)

    @contextlib.asynccontextmanager
    async def open_stream(self, deployment: Deployment, options: StreamOptions) -> AsyncIterator[FrameStream]:
        """A raw stream of frames; closed when the block ends."""
        # Imported here: most commands only ask, and start sooner without what streams need.
        from mesh.runtime.frame_stream import FrameStream
        from mesh.runtime.repairing import Repairer

        repairer = Repairer(self._located.fleet.client, self.coordinator.resolve, self.tasks.spawn)
        client, own_node = self._located.fleet.client, self._own_node
        stream = FrameStream(deployment, options, client, self.tasks, recover=repairer.recover, own_node=own_node)
        try:
            await stream.open()
            yield stream
        finally:
            await stream.close()

    async def open_calls(self, deployment: Deployment) -> Calls:
        """Independent calls over one unordered stream, which stays open for as long as this connection."""
        from mesh.runtime.calls import Calls
        from mesh.runtime.frame_stream import StreamOptions

        opening = self.open_stream(deployment, StreamOptions(is_ordered=False))
        calls = Calls(await self._stack.enter_async_context(opening))
        self.tasks.spawn(calls.collect(), f"calls to {deployment.name}")
        return calls


def connect(
    *,
    peers: Sequence[str] = (),
    interfaces: Sequence[str] = (),
    mdns: bool = True,
    coordinator: str | None = None,
) -> Mesh:
    """Connect to the mesh: `async with mesh.connect() as m`.

    `peers`: "host:port" of nodes where multicast does not reach; `mdns=False` uses only those.
    `interfaces`: names or addresses for mDNS; by itself it takes all that carry multicast, and loopback.
    `coordinator`: "host:port"; else one that is found, else planning happens in this process.
    What is not given is taken from MESH_PEER, MESH_INTERFACE (several by spaces) and MESH_COORDINATOR; with MESH_MQTT
    ("host:port" of a broker) nodes are found there as well.
    """
    return Mesh(peers=peers, interfaces=interfaces, mdns=mdns, coordinator=coordinator)


def to_tensors(feeds: Feeds, inputs: Sequence[TensorSpec]) -> tuple[tuple[Tensor, ...], bool]:
    """Feeds in input order, and whether any was an array. Raises `TensorMismatch` for wrong or missing names."""
    values = _in_order(feeds, inputs)
    tensors: list[Tensor] = []
    as_arrays = False
    for spec, value in zip(inputs, values, strict=True):
        if isinstance(value, Tensor):
            tensor = value
        else:
            arrays = _arrays()
            tensor = arrays.from_array(arrays.as_array(value), spec.name, dtype=spec.dtype)
            as_arrays = True
        spec.check(tensor.dtype, tensor.shape)
        tensor.check_bytes(spec.name)
        tensors.append(tensor)
    return tuple(tensors), as_arrays


def _in_order(feeds: Feeds, inputs: Sequence[TensorSpec]) -> list[Any]:
    names = [spec.name for spec in inputs]
    if isinstance(feeds, Mapping):
        unknown = [name for name in feeds if name not in names]
        missing = [name for name in names if name not in feeds]
        if unknown or missing:
            told = [f"unknown inputs {unknown}" if unknown else "", f"missing inputs {missing}" if missing else ""]
            raise TensorMismatch(f"{' and '.join(filter(None, told))}; the model's inputs are {names}")
        return [feeds[name] for name in names]
    if isinstance(feeds, tuple | list):
        if len(feeds) != len(names):
            raise TensorMismatch(f"{len(feeds)} values for the {len(names)} inputs {names}")
        return list(feeds)
    if len(names) != 1:
        raise TensorMismatch(f"one value for the {len(names)} inputs {names}", hint="give a mapping by input name")
    return [feeds]


def read_model_file(path: Path) -> bytes:
    """The model as one self-contained file; external data needs the onnx package, which is then named."""
    try:
        from mesh.model.read import read_model
    except ImportError:
        # Without onnx the file goes as it is; whoever plans checks it, and says so if it is not self-contained.
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no model file {path}") from None
    return read_model(path).data


def _arrays() -> ModuleType:
    try:
        from mesh import arrays
    except ImportError:
        raise MissingExtra(
            "NumPy is not installed",
            hint="install the extra infermesh[numpy]: pip install '.[numpy]' in a clone, or give Tensors",
        ) from None
    return arrays


async def _iterate(frames: Iterable[Feeds] | AsyncIterable[Feeds]) -> AsyncIterator[Feeds]:
    if isinstance(frames, AsyncIterable):
        async for feeds in frames:
            yield feeds
    elif inspect.isgenerator(frames):
        while (feeds := await asyncio.to_thread(next, frames, _END)) is not _END:
            yield feeds
    else:
        for feeds in frames:
            yield feeds


_END = object()
