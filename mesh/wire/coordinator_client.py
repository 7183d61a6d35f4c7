"""The client of a coordinator: what `mesh.runtime.coordinator.Coordinator` offers, asked of another process.

Core values in, core values out, gRPC inside. Every call has a deadline; that the coordinator has died
or frozen is noticed by keepalive within seconds, however long the call may take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from mesh.control.timing import CALL_TIMEOUT_S, LOAD_TIMEOUT_S
from mesh.core.ids import check_name
from mesh.core.plan import Deployment, Plan, PlanOptions
from mesh.core.report import DeploymentReport, NodeView
from mesh.errors import DeploymentNotFound, ProtocolViolation
from mesh.v1 import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire import convert
from mesh.wire.channel import TRANSFER_BYTES_PER_S, open_channel
from mesh.wire.convert_coordinator import CoordinatorIdentity, identity_from_proto, options_to_proto
from mesh.wire.door_checks import check_list, check_text
from mesh.wire.model_upload import check_model_size, cut_upload
from mesh.wire.status import translate_rpc_errors

FLEET_TIMEOUT_S = 15.0
"""For an answer that needs every node: 3 s until discovery has settled, then 2 s for each of two questions, which are
asked again where what is wanted was not found."""

UNDEPLOY_TIMEOUT_S = 300.0
"""Each stage of each generation may take 10 s to finish what is in flight."""

WORK_TIMEOUT_S = 6 * LOAD_TIMEOUT_S
"""Planning and deploying after the upload: probing, measuring and proving take minutes at most on slow boards,
sending and loading segments as long as the model is large. Long on purpose: it only ends what would never end."""

MAX_NODES = 4096
MAX_DEPLOYMENTS = 4096
"""Items in one answer; far above any fleet."""


class CoordinatorClient:
    """Owned by whoever made it, and closed by them."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.address = address
        self._peer = f"coordinator at {address}"
        self._channel = open_channel(address, credentials)
        self._stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def identity(self, timeout_s: float = CALL_TIMEOUT_S) -> CoordinatorIdentity:
        """Who answers. Raises `NodeLost` or `Timeout` where nobody does, `Refused` where it is no coordinator."""
        with translate_rpc_errors(self._peer):
            answer = await self._stub.GetIdentity(coordinator_pb2.GetIdentityRequest(), timeout=timeout_s)
        return identity_from_proto(answer)

    async def list_nodes(self) -> list[NodeView]:
        with translate_rpc_errors(self._peer):
            answer = await self._stub.ListNodes(coordinator_pb2.ListNodesRequest(), timeout=FLEET_TIMEOUT_S)
        return list(check_list(answer.nodes, MAX_NODES, "nodes", convert.node_view_from_proto))

    async def plan(self, model: bytes, options: PlanOptions, progress: Callable[[str], None]) -> Plan:
        check_model_size(len(model))
        first = coordinator_pb2.PlanModelRequest(options=options_to_proto(options))
        call = self._stub.PlanModel(cut_upload(first, model), timeout=_work_timeout_s(model))
        return convert.plan_from_proto((await self._follow(call, "plan", progress)).plan)

    async def deploy(
        self, model: bytes, name: str, options: PlanOptions, progress: Callable[[str], None]
    ) -> Deployment:
        """Cancelling this, or losing the connection, makes the coordinator take everything back."""
        check_name(name, "deployment")
        check_model_size(len(model))
        first = coordinator_pb2.DeployRequest(options=options_to_proto(options), name=name)
        call = self._stub.Deploy(cut_upload(first, model), timeout=_work_timeout_s(model))
        return convert.deployment_from_proto((await self._follow(call, "deployment", progress)).deployment)

    async def status(self, name: str = "") -> list[DeploymentReport]:
        """The newest generation of each deployment; raises `DeploymentNotFound` where `name` is none."""
        with translate_rpc_errors(self._peer):
            answer = await self._stub.GetStatus(coordinator_pb2.GetStatusRequest(name=name), timeout=FLEET_TIMEOUT_S)
        return list(check_list(answer.deployments, MAX_DEPLOYMENTS, "deployments", convert.report_from_proto))

    async def resolve(self, name: str) -> Deployment:
        """Where the newest generation of `name` runs; raises `DeploymentNotFound`."""
        check_name(name, "deployment")
        for report in await self.status(name):
            if report.deployment.name == name:
                return report.deployment
        raise DeploymentNotFound(f"there is no deployment {name!r}")

    async def undeploy(self, name: str) -> None:
        check_name(name, "deployment")
        with translate_rpc_errors(self._peer):
            await self._stub.Undeploy(coordinator_pb2.UndeployRequest(name=name), timeout=UNDEPLOY_TIMEOUT_S)

    async def _follow(self, call: Any, result: str, progress: Callable[[str], None]) -> Any:
        """Pass on lines of progress until the message that holds `result`."""
        try:
            with translate_rpc_errors(self._peer):
                found = None
                async for answer in call:
                    kind = answer.WhichOneof("message")
                    if kind == "progress":
                        progress(check_text(answer.progress, "progress"))
                    elif kind == result:
                        found = answer  # an error may still follow: only the end of the call makes it true
        finally:
            call.cancel()  # does nothing to a call that has ended
        if found is None:
            raise ProtocolViolation(f"{self._peer} ended the call without a {result}")
        return found


def _work_timeout_s(model: bytes) -> float:
    return WORK_TIMEOUT_S + len(model) / TRANSFER_BYTES_PER_S
