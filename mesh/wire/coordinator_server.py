"""The gRPC server of a coordinator: translates calls into `CoordinatorHandlers` and errors into statuses.

No meaning lives here, and no task: handlers that take long are iterators which tell of progress and
end with the result. A caller who goes away cancels its call; that closes the iterator, and the
handler undoes what it had begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, Protocol

import grpc

from mesh.core.ids import check_name
from mesh.core.plan import Deployment, Plan, PlanOptions
from mesh.core.report import DeploymentReport, NodeView
from mesh.errors import Overloaded
from mesh.v1 import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire import convert
from mesh.wire.convert_coordinator import CoordinatorIdentity, identity_to_proto, options_from_proto
from mesh.wire.door_checks import MAX_TEXT_BYTES
from mesh.wire.ended_calls import await_ended_calls
from mesh.wire.model_upload import check_model_size, collect_upload, first_of
from mesh.wire.options import SERVER_OPTIONS
from mesh.wire.protobuf_bytes import cut_text
from mesh.wire.server import bind
from mesh.wire.status import answer_errors

MAX_UPLOADS = 4
"""Models that are received or worked on at the same time: each is held in memory as a whole."""


class CoordinatorHandlers(Protocol):
    """What a coordinator answers; see `mesh.runtime.coordinator_service`."""

    def identity(self) -> CoordinatorIdentity: ...

    async def list_nodes(self) -> Sequence[NodeView]: ...

    def plan(self, model: bytes, options: PlanOptions) -> AsyncGenerator[str | Plan, None]:
        """Lines of progress, at last the plan."""
        ...

    def deploy(self, model: bytes, name: str, options: PlanOptions) -> AsyncGenerator[str | Deployment, None]:
        """Lines of progress, at last the deployment. Closed early, it takes everything back."""
        ...

    async def status(self, name: str) -> Sequence[DeploymentReport]: ...

    async def undeploy(self, name: str) -> None: ...


class CoordinatorServer:
    def __init__(self, handlers: CoordinatorHandlers, credentials: grpc.ServerCredentials | None = None) -> None:
        self._handlers = handlers
        self._credentials = credentials
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str) -> str:
        """Listen; returns "host:port" with the port that was bound. Raises `ListenError`."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        servicer = _CoordinatorServicer(self._handlers)
        coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(servicer, self._server)
        address = await bind(self._server, listen, self._credentials)
        await self._server.start()
        return address

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
            await await_ended_calls()


class _CoordinatorServicer(coordinator_pb2_grpc.CoordinatorServiceServicer):
    def __init__(self, handlers: CoordinatorHandlers) -> None:
        self._handlers = handlers
        self._uploads = 0

    async def GetIdentity(self, request: Any, context: Any) -> Any:
        async with answer_errors(context):
            return identity_to_proto(self._handlers.identity())

    async def ListNodes(self, request: Any, context: Any) -> Any:
        async with answer_errors(context):
            views = await self._handlers.list_nodes()
            return coordinator_pb2.ListNodesResponse(nodes=[convert.node_view_to_proto(view) for view in views])

    async def PlanModel(self, requests: Any, context: Any) -> None:
        async with answer_errors(context):
            with self._counted_upload():
                iterator = aiter(requests)
                first = await first_of(iterator)
                options = options_from_proto(first.options)
                check_model_size(first.model_bytes)
                model = await collect_upload(first, iterator)
                await _tell(context, self._handlers.plan(model, options), _plan_answer)

    async def Deploy(self, requests: Any, context: Any) -> None:
        async with answer_errors(context):
            with self._counted_upload():
                iterator = aiter(requests)
                first = await first_of(iterator)
                options = options_from_proto(first.options)
                name = check_name(first.name, "deployment")
                check_model_size(first.model_bytes)
                model = await collect_upload(first, iterator)
                await _tell(context, self._handlers.deploy(model, name, options), _deploy_answer)

    async def GetStatus(self, request: Any, context: Any) -> Any:
        async with answer_errors(context):
            name = check_name(request.name, "deployment") if request.name else ""
            reports = await self._handlers.status(name)
            return coordinator_pb2.GetStatusResponse(deployments=[convert.report_to_view(report) for report in reports])

    async def Undeploy(self, request: Any, context: Any) -> Any:
        async with answer_errors(context):
            await self._handlers.undeploy(check_name(request.name, "deployment"))
            return coordinator_pb2.UndeployResponse()

    @contextlib.contextmanager
    def _counted_upload(self) -> Iterator[None]:
        if self._uploads >= MAX_UPLOADS:
            raise Overloaded(f"this coordinator works on {MAX_UPLOADS} models, its limit", hint="try again later")
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


async def _tell(context: Any, told: AsyncGenerator[Any, None], encode: Callable[[Any], Any]) -> None:
    """Send everything that is told; the generator is closed however the call ends."""
    async with contextlib.aclosing(told):
        async for item in told:
            await context.write(encode(item))


def _plan_answer(told: str | Plan) -> coordinator_pb2.PlanModelResponse:
    if isinstance(told, str):
        return coordinator_pb2.PlanModelResponse(progress=_line(told))
    return coordinator_pb2.PlanModelResponse(plan=convert.plan_to_proto(told))


def _deploy_answer(told: str | Deployment) -> coordinator_pb2.DeployResponse:
    if isinstance(told, str):
        return coordinator_pb2.DeployResponse(progress=_line(told))
    return coordinator_pb2.DeployResponse(deployment=convert.deployment_to_proto(told))


def _line(text: str) -> str:
    return cut_text(text, MAX_TEXT_BYTES).decode()
