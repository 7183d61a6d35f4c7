"""Sources inside the head node: what they measure, what they refuse, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.control.deployments import key_of
from mesh.core.measurement import SourceRequest
from mesh.core.plan import Fence
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import (
    DeploymentNotFound,
    MeshError,
    ModelUnsupported,
    NodeLost,
    Overloaded,
    Refused,
    RunFailed,
    StaleGeneration,
    Timeout,
    UsageError,
)
from mesh.runtime.frame_source import MAX_SOURCE_SECONDS, made_up_tensor
from mesh.runtime.node_service import MAX_SOURCES
from tests.runtime.fake_mesh import FakeMesh, open_mesh
from tests.runtime.fake_models import add_one, chain, until

SHORT = SourceRequest(seconds=0.3, warm_up_seconds=0.05)
LONG = SourceRequest(seconds=60, warm_up_seconds=0.05)


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch, 2) as opened:
        yield opened


@pytest.mark.parametrize("stages", [1, 2])
async def test_a_deployment_is_measured_without_a_client(mesh: FakeMesh, stages: int) -> None:
    models = [replace(model, delay_seconds=0.002) for model in chain(stages)]
    deployment = await mesh.deploy(models, mesh.nodes[:stages])
    report = await mesh.nodes[0].client.run_source(key_of(deployment), SHORT)
    assert report.answered > 10
    assert 0.05 < report.seconds <= SHORT.seconds
    assert [figures.stage for figures in report.stages] == list(range(stages))
    assert all(figures.compute_seconds >= 0.002 for figures in report.stages)
    assert report.throughput_per_s <= 500
    assert min(report.latencies_us) >= stages * 2000
    assert report.cpu_seconds > 0
    await mesh.is_clean(deployment)


async def test_the_window_bounds_what_is_under_way(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy(chain(2), mesh.nodes)
    second = mesh.nodes[1]
    second.engine.gate.close()
    source = asyncio.ensure_future(mesh.nodes[0].client.run_source(key_of(deployment), replace(LONG, window=3)))
    await until(lambda: second.engine.gate.begun == 1)
    await until(lambda: mesh.nodes[0].stage(deployment).statistics.frames == 3)
    second.engine.gate.allow()
    await until(lambda: mesh.nodes[0].stage(deployment).statistics.frames == 4)
    source.cancel()
    await asyncio.wait({source})
    second.engine.gate.open()
    await mesh.is_clean(deployment)


async def test_a_rate_is_kept(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy(chain(1), mesh.nodes[:1])
    report = await mesh.nodes[0].client.run_source(key_of(deployment), replace(SHORT, seconds=0.5, rate_per_s=40))
    assert 1 <= report.answered <= 21


async def test_a_frame_that_cannot_be_computed_ends_it_with_its_error(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy([add_one("x", "y", failing_runs=(5,))], mesh.nodes[:1])
    with pytest.raises(RunFailed):
        await mesh.nodes[0].client.run_source(key_of(deployment), LONG)
    await mesh.is_clean(deployment)


async def test_no_answer_is_a_timeout(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy(chain(1), mesh.nodes[:1])
    mesh.nodes[0].engine.gate.close()
    with pytest.raises(Timeout, match="fewer than two answers"):
        await mesh.nodes[0].client.run_source(key_of(deployment), SHORT)


async def test_a_lost_stage_ends_it(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy([replace(model, delay_seconds=0.01) for model in chain(2)], mesh.nodes)
    head, tail = mesh.nodes
    source = asyncio.ensure_future(head.client.run_source(key_of(deployment), LONG))
    await until(lambda: tail.stage(deployment).statistics.frames > 5)
    await tail.end()
    with pytest.raises((NodeLost, DeploymentNotFound)):
        await source


async def test_only_so_many_at_once(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy([add_one("x", "y", delay_seconds=0.005)], mesh.nodes[:1])
    client, stage = mesh.nodes[0].client, mesh.nodes[0].stage(deployment)
    sources = [asyncio.ensure_future(client.run_source(key_of(deployment), LONG)) for _ in range(MAX_SOURCES)]
    await until(lambda: len(stage._streams) == MAX_SOURCES)
    with pytest.raises(Overloaded):
        await client.run_source(key_of(deployment), SHORT)
    for source in sources:  # as Ctrl-C does
        source.cancel()
    await asyncio.wait(sources)
    await mesh.is_clean(deployment)
    assert (await client.run_source(key_of(deployment), SHORT)).answered


async def test_it_needs_the_head_of_a_generation_in_force(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy(chain(2), mesh.nodes, fence=Fence(1, 2))
    key = key_of(deployment)
    refusals: list[tuple[int, object, type[MeshError]]] = [
        (1, key, Refused),
        (0, replace(key, fence=Fence(1, 1)), StaleGeneration),
        (0, replace(key, name="other"), DeploymentNotFound),
    ]
    for index, asked, error in refusals:
        with pytest.raises(error):
            await mesh.nodes[index].client.run_source(asked, SHORT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_",
    [
        replace(SHORT, seconds=0.0),
        replace(SHORT, seconds=MAX_SOURCE_SECONDS),
        replace(SHORT, warm_up_seconds=MAX_SOURCE_SECONDS),
        replace(SHORT, window=1 << 20),
    ],
)
async def test_requests_out_of_bounds_are_refused(mesh: FakeMesh, request_: SourceRequest) -> None:
    deployment = await mesh.deploy(chain(1), mesh.nodes[:1])
    with pytest.raises(UsageError):
        await mesh.nodes[0].client.run_source(key_of(deployment), request_)


def test_made_up_tensors_fit_their_specs() -> None:
    floats = made_up_tensor(TensorSpec("x", DType.FLOAT32, (2, "n", 3)))
    assert (floats.shape, len(floats.data)) == ((2, 1, 3), 24)
    assert bytes(floats.data) != bytes(24)
    assert floats == made_up_tensor(TensorSpec("x", DType.FLOAT32, (2, "n", 3)))
    assert bytes(made_up_tensor(TensorSpec("ids", DType.INT64, (4,))).data) == bytes(32)
    with pytest.raises(ModelUnsupported):
        made_up_tensor(TensorSpec("x", DType.FLOAT32, None))
