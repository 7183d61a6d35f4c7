"""Metrics of the gateway and of nodes, as Prometheus reads them, and how it finds them."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.core.fleet import Capabilities, NodeState
from mesh.core.ids import NodeId
from mesh.core.report import DeploymentReport, NodeView, StageReport
from mesh.errors import MeshError, RunFailed
from mesh.gateways.contract import InferenceRequest
from mesh.gateways.http_server import HttpServer
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.metrics_server import FRESH_S, MetricsPages
from mesh.gateways.repository import ModelRepository
from mesh.runtime.fleet import Answered
from mesh.runtime.supervise import Supervisor
from tests.gateways.played_mesh import PlayedMesh, deployment_of
from tests.runtime.fake_models import spec, vector

ATTIC, GONE = NodeId("a" * 32), NodeId("b" * 32)


def view(node_id: NodeId, name: str, is_lost: bool = False) -> NodeView:
    told = Capabilities(
        node_id, name, "aarch64", 0.5, 400, 300, 200, (), "1.26", 10.0, 5.0, NodeState.READY, "0.1.0", "a board"
    )
    return NodeView(told, "127.0.0.1:1", is_lost)


class Pages:
    """The pages served on loopback, and what they show."""

    def __init__(self, mesh: PlayedMesh, gateway: InferenceGateway) -> None:
        self.mesh = mesh
        self.gateway = gateway
        self.clock = [0.0]
        pages = MetricsPages(gateway, mesh, lambda: self.clock[0])
        self.server = HttpServer(pages.application(), mesh.tasks)
        self.address = ""

    async def fetch(self, path: str) -> tuple[int, str]:
        def work() -> tuple[int, str]:
            connection = http.client.HTTPConnection(self.address, timeout=10)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            finally:
                connection.close()

        return await asyncio.to_thread(work)

    async def samples(self, path: str) -> dict[tuple[str, ...], float]:
        """By name and label values, sorted by label."""
        status, text = await self.fetch(path)
        assert status == 200
        found: dict[tuple[str, ...], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found[sample.name, *labels] = sample.value
        return found


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with Supervisor() as tasks:
        mesh = PlayedMesh(tasks)
        mesh.put("echo", [spec("x")], [spec("y")])
        stage = StageReport(0, 7, 0.002, 30.0, 3, 1, ATTIC, 0.001, 0.0005, {GONE: 700, "": 28})
        report = DeploymentReport(deployment_of("echo", (), ()), "active", "", (stage,), ())
        attic = view(ATTIC, "attic")
        mesh.nodes = [attic, view(GONE, "gone", is_lost=True)]
        mesh.answering = [Answered(attic, None, (report,), 1)]  # type: ignore[arg-type]
        made = Pages(mesh, InferenceGateway(mesh, ModelRepository(None, False)))
        made.address = await made.server.start("127.0.0.1:0")
        yield made
        await made.server.stop()


async def test_requests_are_counted_by_model_and_outcome(pages: Pages) -> None:
    request = InferenceRequest("echo", "", {"x": vector(1)})
    for _ in range(3):
        await pages.gateway.infer(request)
    pages.mesh.streams[0].compute = lambda tensors: RunFailed("no")
    with pytest.raises(MeshError):
        await pages.gateway.infer(request)
    found = await pages.samples("/metrics")
    assert found["mesh_inference_requests_total", "echo", "ok"] == 3
    assert found["mesh_inference_requests_total", "echo", "run-failed"] == 1
    assert found["mesh_inference_duration_seconds_count", "echo"] == 3
    buckets = [value for key, value in found.items() if key[0] == "mesh_inference_duration_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3
    assert found["mesh_queue_depth",] == 0


async def test_a_node_tells_what_its_stages_do(pages: Pages) -> None:
    found = await pages.samples(f"/metrics/nodes/{ATTIC}")
    assert found["mesh_node_ready",] == 1
    assert found["mesh_node_memory_bytes",] == 400
    assert found["mesh_stage_frames_total", "1.1", "echo", "0"] == 7
    assert found["mesh_stage_failed_frames_total", "1.1", "echo", "0"] == 1
    assert found["mesh_dropped_frames_total", "1.1", "echo", "superseded", "0"] == 3
    assert found["mesh_stage_duration_seconds", "1.1", "echo", "computing", "0"] == 0.002
    assert found["mesh_deployment_state", "1.1", "echo", "active"] == 1
    assert found["mesh_transfer_bytes_total", "1.1", "echo", "bbbbbbbb", "0"] == 700
    assert found["mesh_transfer_bytes_total", "1.1", "echo", "client", "0"] == 28


async def test_one_look_serves_the_scrapes_of_a_moment(pages: Pages) -> None:
    for _ in range(5):
        await pages.fetch(f"/metrics/nodes/{ATTIC}")
    assert pages.mesh.looks == 1
    pages.clock[0] += 2 * FRESH_S
    await pages.fetch(f"/metrics/nodes/{ATTIC}")
    assert pages.mesh.looks == 2


async def test_a_node_that_is_away_is_down_and_an_unknown_one_is_not_found(pages: Pages) -> None:
    assert (await pages.fetch(f"/metrics/nodes/{GONE}"))[0] == 503
    assert (await pages.fetch("/metrics/nodes/" + "c" * 32))[0] == 404


async def test_prometheus_finds_the_gateway_and_every_node(pages: Pages) -> None:
    status, text = await pages.fetch("/prometheus/targets")
    assert status == 200
    groups: list[dict[str, Any]] = json.loads(text)
    assert all(group["targets"] == [pages.address] for group in groups)
    paths = {group["labels"]["instance"]: group["labels"].get("__metrics_path__") for group in groups}
    assert paths == {"gateway": None, "attic": f"/metrics/nodes/{ATTIC}", "gone": f"/metrics/nodes/{GONE}"}
