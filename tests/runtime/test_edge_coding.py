"""Codecs between real nodes over loopback: answers, bytes on the wire, replicas, credits, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mesh import codecs
from mesh.arrays import Array, from_array, to_array
from mesh.control.deployments import key_of
from mesh.core.coding import CODECS, is_lossy
from mesh.core.frame import Outcome
from mesh.core.plan import Deployment
from mesh.errors import MissingExtra
from mesh.runtime import edge_coding
from mesh.runtime.edge_receiver import EDGE_CREDIT_BYTES
from mesh.runtime.edge_sender import EdgeSender
from mesh.runtime.frame_stream import FrameStream
from mesh.wire import links
from tests.runtime.fake_mesh import FakeMesh, open_mesh
from tests.runtime.fake_models import chain, make_deployment, until

VALUES = np.maximum(np.random.default_rng(4).standard_normal(60_000), 0).astype(np.float32)
"""240 KB, coded in a thread."""


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch) as opened:
        yield opened


async def put(mesh: FakeMesh, codec: str, layout: Sequence[Sequence[int]] = ((0,), (1,), (2,))) -> Deployment:
    """A chain, each stage of which adds one, with `codec` on the edges between them."""
    for index in range(1 + max(max(stage) for stage in layout)):
        await mesh.start(f"n{index}")
    nodes = [[mesh.nodes[index] for index in stage] for stage in layout]
    models = chain(len(layout))
    made = make_deployment(models, {stage[0].node_id: stage[0].address for stage in nodes})
    last = len(layout) - 1
    stages = tuple(
        replace(stage, devices=tuple(node.node_id for node in on), codec=codec if index < last else "raw")
        for index, (stage, on) in enumerate(zip(made.plan.stages, nodes, strict=True))
    )
    addresses = {node.node_id: node.address for node in mesh.nodes}
    deployment = replace(made, plan=replace(made.plan, stages=stages), addresses=addresses)
    await mesh.put(deployment, models)
    return deployment


async def exchange(stream: FrameStream, items: Sequence[Array]) -> list[Array]:
    async def feed() -> None:
        for item in items:
            await stream.send([from_array(item)])
        stream.finish()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(feed())
        return [to_array(answer.tensors[0]) async for answer in stream.answers()]


@pytest.fixture
def sent_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each frame that a client or a node writes into an edge."""
    sizes: list[int] = []
    encode = links.encode_frames

    def count(frames: Sequence[object]) -> object:
        sizes.extend(frame.payload_bytes for frame in frames)  # type: ignore[attr-defined]
        return encode(frames)  # type: ignore[arg-type]

    monkeypatch.setattr(links, "encode_frames", count)
    return sizes


@pytest.mark.parametrize("codec", CODECS)
async def test_answers_and_bytes_are_what_the_codec_says(mesh: FakeMesh, codec: str, sent_bytes: list[int]) -> None:
    deployment = await put(mesh, codec)
    items = [VALUES * np.float32(scale) for scale in (1, 0, 5, 1e-3)]
    async with mesh.stream(deployment) as stream:
        answers = await exchange(stream, items)
    for item, answer in zip(items, answers, strict=True):
        allowed = {"fp16": 2.0**-10, "int8": 1.1 / 255}.get(codec.removesuffix("+zstd"), 2.0**-22)
        assert np.abs(answer - (item + 3)).max() <= allowed * (item.max() + 3)
        assert is_lossy(codec) or np.array_equal(answer, ((item + 1) + 1) + 1)
    factor = {"raw": 1, "fp16": 2, "int8": 4}.get(codec.removesuffix("+zstd"), 1)
    between = [size for size in sent_bytes if size != VALUES.nbytes] or sent_bytes
    if codec in ("raw", "fp16", "int8"):
        assert {size * factor for size in between} == {VALUES.nbytes}
    else:
        assert max(between) * max(factor, 1.2) < VALUES.nbytes
    await mesh.is_clean(deployment)


@pytest.mark.parametrize("layout", [((0, 1), (2,)), ((0,), (1, 2))])
async def test_replicas_share_coded_frames(mesh: FakeMesh, layout: Sequence[Sequence[int]]) -> None:
    deployment = await put(mesh, "int8+zstd", layout)
    async with mesh.stream(deployment) as stream:
        answers = await exchange(stream, [np.full(500, number, np.float32) for number in range(40)])
    assert [round(float(answer[0]), 2) for answer in answers] == [number + 2.0 for number in range(40)]
    await mesh.is_clean(deployment)


async def test_credits_count_the_bytes_that_a_receiver_holds(mesh: FakeMesh) -> None:
    """Zeros pack to next to nothing: more of them may not be under way than unpacked ones."""
    deployment = await put(mesh, "int8+zstd", ((0,), (1,)))
    large = np.zeros(EDGE_CREDIT_BYTES // 4 // 2, np.float32)
    async with mesh.stream(deployment) as stream:
        mesh.nodes[1].engine.gate.close()
        exchanging = asyncio.ensure_future(exchange(stream, [large] * 6))
        edge = mesh.nodes[0].stage(deployment)._downstream
        assert isinstance(edge, EdgeSender)
        connection = edge._connection
        assert connection is not None
        await until(lambda: connection.window.outstanding_bytes >= large.nbytes, "a frame under way")
        assert connection.window.outstanding_bytes <= EDGE_CREDIT_BYTES + large.nbytes
        mesh.nodes[1].engine.gate.open()
        answers = await exchanging
    assert [round(float(answer[0]), 3) for answer in answers] == [2.0] * 6


async def test_a_node_without_the_package_refuses_to_prepare(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "spoken_codecs", lambda: ("raw", "fp16", "int8"))
    with pytest.raises(MissingExtra, match="'int8\\+zstd' needs the package zstandard") as refused:
        await put(mesh, "int8+zstd", ((0,), (1,)))
    assert "infermesh[zstd]" in refused.value.hint
    assert not await mesh.nodes[1].states()


async def test_a_peer_that_sends_rubbish_is_told_so_and_the_stream_ends(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = await put(mesh, "int8+zstd", ((0,), (1,)))
    encode = codecs.encode_frame_tensors

    def spoil(frame: object, codec: str) -> object:
        made = encode(frame, codec)  # type: ignore[arg-type]
        (tensor,) = made.tensors
        spoilt = replace(tensor, data=memoryview(b"\0" * len(tensor.data)))
        return replace(made, tensors=(spoilt,))

    monkeypatch.setattr(codecs, "encode_frame_tensors", spoil)
    async with mesh.stream(deployment) as stream:
        await stream.send([from_array(VALUES)])
        stream.finish()
        (answer,) = [answer async for answer in stream.answers()]
    assert answer.outcome is Outcome.UNKNOWN
    assert "cannot be unpacked" in str(answer.error)
    assert (await mesh.nodes[1].states())[key_of(deployment)] == "active"
    await mesh.is_clean(deployment)


def test_what_a_stage_needs_is_checked_at_both_of_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_deployment(chain(3), {f"{i:032x}": f"127.0.0.1:{i}" for i in range(1, 4)})  # type: ignore[misc]
    stages = tuple(replace(s, codec=c) for s, c in zip(made.plan.stages, ("zstd", "raw", "raw"), strict=True))
    deployment = replace(made, plan=replace(made.plan, stages=stages))
    monkeypatch.setattr(codecs, "spoken_codecs", lambda: ("raw",))
    edge_coding.check_codecs(deployment, [2])
    for stage in (0, 1):
        with pytest.raises(MissingExtra):
            edge_coding.check_codecs(deployment, [stage])
