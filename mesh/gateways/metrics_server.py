"""Metrics over HTTP: those of this gateway, and of every node of the mesh on the nodes' behalf.

Nodes serve no HTTP: what Prometheus wants of a node is asked of it by the call that commands use as well, so a small
device pays for its metrics only while somebody looks. Prometheus finds the nodes at `/prometheus/targets` (its HTTP
service discovery), and fetches each below `/metrics/nodes`. A node that does not answer is answered 503, and so is down
for Prometheus as it is for the mesh. One per gateway, made by its command.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mesh.gateways.contract import Directory
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.metrics import gateway_metrics, node_metrics
from mesh.runtime.fleet import Answered

FRESH_S = 1.0
"""One look at the mesh serves the scrapes of all nodes, which Prometheus spreads over its interval, for so long."""


class MetricsPages:
    """The application; `http_server` serves it."""

    def __init__(
        self, gateway: InferenceGateway, directory: Directory, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._gateway = gateway
        self._directory = directory
        self._now = now
        self._looking = asyncio.Lock()
        self._looked_at: float | None = None
        self._nodes: dict[str, Answered] = {}

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/metrics", self._own),
                Route("/metrics/nodes/{node_id}", self._node),
                Route("/prometheus/targets", self._targets),
            ]
        )

    async def _own(self, request: Request) -> Response:
        return _page(gateway_metrics(self._gateway.counted, self._gateway.requests_in_flight))

    async def _node(self, request: Request) -> Response:
        node_id = request.path_params["node_id"]
        found = (await self._look()).get(node_id)
        if found is not None:
            return _page(node_metrics(found))
        known = {view.capabilities.node_id for view in await self._directory.list_nodes()}
        if node_id in known:
            return PlainTextResponse("the node does not answer\n", status_code=503)
        return PlainTextResponse("there is no such node\n", status_code=404)

    async def _targets(self, request: Request) -> Response:
        """Every node that is known, lost ones too, so that they are seen to be down; and this gateway."""
        here = request.headers.get("host", "")
        views = {view.capabilities.node_id: view.capabilities.name for view in await self._directory.list_nodes()}
        groups = [{"targets": [here], "labels": {"job": "infermesh", "instance": "gateway"}}]
        groups += [
            {
                "targets": [here],
                "labels": {"job": "infermesh", "instance": name, "__metrics_path__": f"/metrics/nodes/{node_id}"},
            }
            for node_id, name in sorted(views.items(), key=lambda item: (item[1], item[0]))
        ]
        return JSONResponse(groups)

    async def _look(self) -> dict[str, Answered]:
        async with self._looking:
            if self._looked_at is None or self._now() - self._looked_at > FRESH_S:
                found = await self._directory.look()
                self._nodes = {node.view.capabilities.node_id: node for node in found}
                self._looked_at = self._now()
            return self._nodes


class _Collected:
    """What `prometheus_client` renders: metrics that are made already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _page(metrics: Iterable[Metric]) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(list(metrics)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
