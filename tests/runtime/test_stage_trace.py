"""Traces of a deployment: every frame on every stage, in order of its way, and nothing recorded when nobody asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.control.deployments import key_of
from mesh.core.measurement import SourceRequest
from mesh.errors import DeploymentNotFound, Overloaded, RunFailed, UsageError
from mesh.runtime import stage_trace
from mesh.runtime.frame_stream import StreamOptions
from mesh.runtime.measure_deployment import read_offset, run_sources, run_together, trace_deployment
from tests.runtime.fake_mesh import FakeMesh, open_mesh
from tests.runtime.fake_models import chain, until, vector

COMPUTE_S = 0.002

TRACE_S = 3.0
"""Far more than 20 frames need, on a busy machine too: what is sent after it is not seen."""


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    monkeypatch.setattr("mesh.runtime.measure_deployment.TRACE_MARGIN_S", 0.2)
    async with open_mesh(tmp_path, monkeypatch, 2) as opened:
        yield opened


def trace_of(number: int) -> str:
    """Every other frame belongs to somebody's trace."""
    return f"00-{number:032x}-b7ad6b7169203331-01" if number % 2 else ""


async def test_every_frame_is_seen_on_every_stage(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy([replace(each, delay_seconds=COMPUTE_S) for each in chain(2)], mesh.nodes)
    sent: list[int] = []

    async def drive() -> None:
        async with mesh.stream(deployment, StreamOptions(window=20)) as stream:
            for number in range(20):
                sent.append(await stream.send([vector(number)], traceparent=trace_of(number)))
            stream.finish()
            assert len([answer async for answer in stream.answers()]) == 20

    stages, _ = await trace_deployment(deployment, mesh.client, TRACE_S, drive)
    assert [recorded.stage for recorded in stages] == [0, 1]
    assert [recorded.device for recorded in stages] == [node.node_id for node in mesh.nodes]
    for recorded in stages:
        assert [span.sequence for span in recorded.spans] == sent
        assert [span.traceparent for span in recorded.spans] == [trace_of(number) for number in range(20)]
        for span in recorded.spans:
            assert span.received <= span.engine_started <= span.engine_ended <= span.sent + 1e-5
            assert span.engine_ended - span.engine_started >= COMPUTE_S
        assert abs(recorded.offset.seconds) <= recorded.offset.error_s, "it is the same clock"
    for first, second in zip(stages[0].spans, stages[1].spans, strict=True):
        assert first.engine_ended <= second.received, "same clock, so cause comes before effect"
        assert first.stream == second.stream
    assert all(node.stage(deployment).recorder is None for node in mesh.nodes)


async def test_the_ring_keeps_the_newest(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_trace, "MAX_SPANS", 5)
    monkeypatch.setattr(stage_trace, "SPANS_PER_ANSWER", 2)
    deployment = await mesh.deploy(chain(1), mesh.nodes[:1])
    request = SourceRequest(seconds=0.1, warm_up_seconds=0.0)
    stages, report = await trace_deployment(
        deployment, mesh.client, 0.1, lambda: run_sources(deployment, mesh.client, request)
    )
    sequences = [span.sequence for span in stages[0].spans]
    assert report.answered > 10
    assert sequences == list(range(sequences[0], sequences[0] + 5))
    assert sequences[0] > 5


async def test_refusals(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy(chain(1), mesh.nodes[:1])
    client, key = mesh.nodes[0].client, key_of(deployment)
    first = client.trace_stage(key, 0, 60)
    assert (await anext(first)).spans == ()
    with pytest.raises(Overloaded):
        await anext(client.trace_stage(key, 0, 1))
    await first.aclose()  # type: ignore[attr-defined]
    await until(lambda: mesh.nodes[0].stage(deployment).recorder is None, "the end of a trace that nobody reads")
    for seconds in (0.0, stage_trace.MAX_TRACE_SECONDS * 2):
        with pytest.raises(UsageError):
            await anext(client.trace_stage(key, 0, seconds))
    with pytest.raises(DeploymentNotFound):
        await anext(client.trace_stage(replace(key, name="other"), 0, 1))  # type: ignore[type-var]


async def test_what_fails_while_it_records_ends_the_trace(mesh: FakeMesh) -> None:
    deployment = await mesh.deploy(chain(2), mesh.nodes)

    async def fail() -> None:
        raise RunFailed("no")

    with pytest.raises(RunFailed):
        await trace_deployment(deployment, mesh.client, 50, fail)
    await until(lambda: all(node.stage(deployment).recorder is None for node in mesh.nodes), "no recorder")


async def test_clocks_of_one_machine_agree(mesh: FakeMesh) -> None:
    offset = await read_offset(mesh.nodes[0].client)
    assert abs(offset.seconds) <= offset.error_s


async def test_the_first_failure_cancels_the_others() -> None:
    async def wait() -> int:
        await asyncio.Event().wait()
        return 0

    async def fail() -> int:
        raise RunFailed("no")

    async def one() -> int:
        return 1

    with pytest.raises(RunFailed):
        await run_together([wait(), fail()])
    assert await run_together([one(), one()]) == [1, 1]
