"""Clients of a node and of a coordinator: core values in, core values out, gRPC inside.

Control and data go over connections of their own, so that bulk data never delays a control call.
Every call has a deadline. Credentials are an argument from the first day; None is plaintext.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from mesh.control.generations import Key
from mesh.control.introductions import MAX_INTRODUCED
from mesh.control.timing import CALL_TIMEOUT_S, DRAIN_TIMEOUT_S, LOAD_TIMEOUT_S
from mesh.core.fleet import Capabilities, Link, Peer
from mesh.core.ids import NodeId, Sha256
from mesh.core.measurement import EnergyReading, SourceReport, SourceRequest, StageTrace
from mesh.core.plan import Deployment
from mesh.core.report import DeploymentReport, Echo, MeasuredModel, ModelProfile
from mesh.core.tensor import TensorSpec
from mesh.errors import NodeLost
from mesh.packing import Piece, is_available
from mesh.v1 import node_pb2, node_pb2_grpc
from mesh.wire import convert, convert_measurement
from mesh.wire.door_checks import check_number
from mesh.wire.options import CHANNEL_OPTIONS
from mesh.wire.status import translate_rpc_errors

if TYPE_CHECKING:
    from mesh.wire.links import ClientLink

Pack = Callable[[bytes], Awaitable[Piece]]

CHUNK_BYTES = 1 << 20
"""Of content on its way: the size at which gRPC streams move most bytes per second (measured)."""

TRANSFER_BYTES_PER_S = 1 << 17
"""The slowest link on which a model may still be sent, 1 Mbit/s: sets the deadline of a transfer."""

MEASURE_TIMEOUT_S = 60.0
"""Loading a model and running it for the budget, on a slow board."""

LINK_TIMEOUT_S = 20.0
"""Four bursts of 1 MiB at 2 Mbit/s."""

SOURCE_GRACE_S = 20.0
"""Beyond the time that a source was asked to run for: opening its stream on a slow board, and answering."""

EDGE_PATH = "/mesh.v1.StreamService/Edge"
RESULTS_PATH = "/mesh.v1.StreamService/Results"


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


class NodeClient:
    """`peer` names the node in errors. Owned by whoever made it, and closed by them."""

    def __init__(self, address: str, peer: str = "", credentials: grpc.ChannelCredentials | None = None) -> None:
        self.address = address
        self._peer = peer or f"node at {address}"
        self._credentials = credentials
        self._control = open_channel(address, credentials)
        self._data: grpc.aio.Channel | None = None
        self._calls = 0
        self._streams: set[Any] = set()
        self._node: Any = node_pb2_grpc.NodeServiceStub(self._control)
        self._content: Any = node_pb2_grpc.ContentServiceStub(self._control)

    def call_it(self, peer: str) -> None:
        """Name the node in errors from now on: who is behind an address shows when it has answered."""
        self._peer = peer

    @property
    def is_busy(self) -> bool:
        """Whether a call or a stream is under way, which closing would end."""
        return self._calls > 0 or bool(self._streams)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        self._calls += 1
        try:
            with translate_rpc_errors(self._peer):
                yield
        except grpc.aio.UsageError:  # what gRPC says of a channel that its owner has closed
            raise NodeLost(f"the connection to {self._peer} was closed here") from None
        finally:
            self._calls -= 1

    async def close(self) -> None:
        await self._control.close()
        if self._data is not None:
            await self._data.close()

    # Control --------------------------------------------------------------------------------------

    async def get_capabilities(self, timeout_s: float = CALL_TIMEOUT_S) -> Capabilities:
        with self._calling():
            answer = await self._node.GetCapabilities(node_pb2.GetCapabilitiesRequest(), timeout=timeout_s)
        return convert.capabilities_from_proto(answer.capabilities)

    async def describe(self, timeout_s: float = CALL_TIMEOUT_S) -> tuple[Capabilities, list[Peer]]:
        """Its capabilities, and the nodes that introduced themselves to it."""
        with self._calling():
            answer = await self._node.GetCapabilities(node_pb2.GetCapabilitiesRequest(), timeout=timeout_s)
        introduced = [convert.introduced_from_proto(peer) for peer in answer.introduced[:MAX_INTRODUCED]]
        return convert.capabilities_from_proto(answer.capabilities), introduced

    async def introduce(self, node_id: NodeId, name: str, port: int) -> None:
        """Make the caller known to this node."""
        with self._calling():
            request = node_pb2.IntroduceRequest(node_id=node_id, name=name, port=port)
            await self._node.Introduce(request, timeout=CALL_TIMEOUT_S)

    async def list_deployments(
        self, name: str = "", timeout_s: float = CALL_TIMEOUT_S
    ) -> tuple[list[DeploymentReport], int]:
        with self._calling():
            request = node_pb2.ListDeploymentsRequest(name=name)
            answer = await self._node.ListDeployments(request, timeout=timeout_s)
        return [convert.report_from_proto(status) for status in answer.deployments], answer.highest_term

    async def prepare(self, deployment: Deployment) -> float:
        with self._calling():
            request = node_pb2.PrepareRequest(deployment=convert.deployment_to_proto(deployment))
            answer = await self._node.Prepare(request, timeout=LOAD_TIMEOUT_S)
        return float(answer.load_seconds)

    async def activate(self, key: Key) -> None:
        with self._calling():
            request = node_pb2.ActivateRequest(name=key.name, term=key.fence.term, generation=key.fence.generation)
            await self._node.Activate(request, timeout=CALL_TIMEOUT_S)

    async def drain(self, key: Key) -> None:
        with self._calling():
            request = node_pb2.DrainRequest(name=key.name, term=key.fence.term, generation=key.fence.generation)
            await self._node.Drain(request, timeout=2 * DRAIN_TIMEOUT_S)

    async def measure_link(self, address: str) -> Link:
        with self._calling():
            request = node_pb2.MeasureLinkRequest(address=address)
            answer = await self._node.MeasureLink(request, timeout=LINK_TIMEOUT_S)
        return convert.link_from_proto(answer)

    async def echo(self, payload: bytes) -> Echo:
        with self._calling():
            answer = await self._node.Echo(node_pb2.EchoRequest(payload=payload), timeout=LINK_TIMEOUT_S)
        return Echo(int(answer.received_bytes), check_number(answer.process_seconds, "process_seconds"))

    async def measure_model(self, sha256: Sha256, budget_seconds: float) -> MeasuredModel:
        with self._calling():
            request = node_pb2.MeasureModelRequest(sha256=sha256, budget_seconds=budget_seconds)
            answer = await self._node.MeasureModel(request, timeout=MEASURE_TIMEOUT_S)
        return MeasuredModel(answer.run_seconds, answer.runs)

    async def profile_model(self, sha256: Sha256, parts: Sequence[Sha256], budget_seconds: float) -> ModelProfile:
        """How the model's time is spread over its kernels and over `parts` of it, which the node has as content."""
        with self._calling():
            request = node_pb2.ProfileModelRequest(sha256=sha256, parts=parts, budget_seconds=budget_seconds)
            answer = await self._node.ProfileModel(request, timeout=MEASURE_TIMEOUT_S)
        return convert_measurement.profile_from_proto(answer)

    async def run_source(self, key: Key, request: SourceRequest) -> SourceReport:
        """Make frames inside this node, the head of the deployment; returns after the time asked for."""
        with self._calling():
            answer = await self._node.RunSource(
                convert_measurement.source_request_to_proto(key.name, key.fence, request),
                timeout=request.seconds + request.warm_up_seconds + SOURCE_GRACE_S,
            )
        return convert_measurement.source_report_from_proto(answer)

    async def read_clock(self) -> float:
        """The monotonic clock of the node, seconds."""
        return (await self.read_clocks())[0]

    async def read_clocks(self) -> tuple[float, float]:
        """Its monotonic clock and its wall clock (since 1970; 0 where it does not tell), seconds."""
        with self._calling():
            answer = await self._node.ReadClock(node_pb2.ReadClockRequest(), timeout=CALL_TIMEOUT_S)
        monotonic = check_number(answer.monotonic_seconds, "monotonic_seconds")
        return monotonic, check_number(answer.unix_seconds, "unix_seconds")

    async def read_energy(self) -> EnergyReading:
        """What the node has taken until now; only the difference of two readings means something."""
        with self._calling():
            answer = await self._node.ReadEnergy(node_pb2.ReadEnergyRequest(), timeout=CALL_TIMEOUT_S)
        return convert_measurement.energy_from_proto(answer)

    async def trace_stage(self, key: Key, stage: int, seconds: float) -> AsyncIterator[StageTrace]:
        """The first trace has no spans and says that recording has begun; the others come after `seconds`."""
        request = node_pb2.TraceStageRequest(
            name=key.name, term=key.fence.term, generation=key.fence.generation, stage=stage, seconds=seconds
        )
        with self._calling():
            call = self._node.TraceStage(request, timeout=seconds + SOURCE_GRACE_S)
            try:
                async for answer in call:
                    yield convert_measurement.trace_from_proto(answer)
            finally:
                call.cancel()  # a caller who has seen enough ends the recording

    # Content --------------------------------------------------------------------------------------

    async def has_content(self, digests: Iterable[Sha256], timeout_s: float = CALL_TIMEOUT_S) -> set[str]:
        """Those of `digests` that the node holds."""
        with self._calling():
            request = node_pb2.HasContentRequest(sha256=list(digests))
            answer = await self._content.HasContent(request, timeout=timeout_s)
        return set(answer.sha256)

    async def put_content(self, sha256: Sha256, data: bytes, pack: Pack | None = None) -> None:
        """Raises what the node says against it, such as `StorageFull`. `pack` makes pieces smaller, if the node reads
        packed ones."""
        timeout_s = CALL_TIMEOUT_S + len(data) / TRANSFER_BYTES_PER_S
        with self._calling():
            try:
                await self._content.PutContent(_content_chunks(sha256, data, pack), timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INTERNAL or error.trailing_metadata():
                    raise
                # Refused while we were still writing, and then gRPC loses the reason: announce it alone to hear it.
                announcement = node_pb2.PutContentRequest(sha256=sha256, total_bytes=len(data))
                await self._content.PutContent(_only(announcement), timeout=CALL_TIMEOUT_S)

    async def get_content(self, sha256: Sha256) -> AsyncGenerator[tuple[int, bytes]]:
        """Size of the whole and the next piece, at least once; raises `NotFound` where the node does not have it."""
        with self._calling():
            request = node_pb2.GetContentRequest(sha256=sha256, accepts_packed=is_available())
            async for answer in self._content.GetContent(request, timeout=LOAD_TIMEOUT_S):
                yield answer.total_bytes, Piece(answer.chunk, answer.unpacked_bytes).unpack()

    async def fetch_content(self, digests: Iterable[Sha256], addresses: Iterable[str]) -> None:
        """Have the node get content from others; raises what keeps it from that."""
        with self._calling():
            request = node_pb2.FetchContentRequest(sha256=list(digests), addresses=list(addresses))
            await self._content.FetchContent(request, timeout=LOAD_TIMEOUT_S)

    # Streams --------------------------------------------------------------------------------------

    def _data_channel(self) -> grpc.aio.Channel:
        if self._data is None:
            self._data = open_channel(self.address, self._credentials)
        return self._data

    def _open_stream(self, path: str) -> Any:
        call: Any = self._data_channel().stream_stream(path)()
        self._streams.add(call)
        call.add_done_callback(self._streams.discard)
        return call

    def open_edge(self) -> ClientLink:
        # Imported here and below: most commands open no stream, and need not know how one is written.
        from mesh.wire.client_links import edge_link

        return edge_link(self._open_stream(EDGE_PATH), self._peer)

    def open_results(self, boundary: Sequence[TensorSpec]) -> ClientLink:
        """`boundary`: the model's outputs, as answers carry them."""
        from mesh.wire.client_links import results_link

        return results_link(self._open_stream(RESULTS_PATH), self._peer, tuple(boundary))


async def _only(request: node_pb2.PutContentRequest) -> AsyncIterator[node_pb2.PutContentRequest]:
    yield request


async def _content_chunks(sha256: Sha256, data: bytes, pack: Pack | None) -> AsyncIterator[node_pb2.PutContentRequest]:
    view = memoryview(data)
    for offset in range(0, max(1, len(data)), CHUNK_BYTES):
        chunk = bytes(view[offset : offset + CHUNK_BYTES])
        piece = Piece(chunk) if pack is None else await pack(chunk)
        request = node_pb2.PutContentRequest(chunk=piece.data, unpacked_bytes=piece.plain_bytes)
        if not offset:
            request.sha256, request.total_bytes = sha256, len(data)
        yield request
