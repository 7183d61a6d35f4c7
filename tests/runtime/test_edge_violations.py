"""Peers that break the stream protocol over real gRPC: each ends with a typed error, and hurts only itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.control import timing
from mesh.control.deployments import key_of
from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.ids import DeploymentName
from mesh.core.messages import (
    Acknowledge,
    CloseStream,
    Credit,
    Heartbeat,
    OpenStream,
    ResultsAccepted,
    StreamAccepted,
)
from mesh.core.plan import Fence
from mesh.errors import (
    DeploymentNotFound,
    MeshError,
    NodeLost,
    Overloaded,
    ProtocolViolation,
    Refused,
    StaleGeneration,
    TensorMismatch,
    Timeout,
    UsageError,
)
from mesh.runtime import edge_receiver, edge_sender, results_link
from mesh.wire.frame_codec import CHUNK_BYTES, encode_frame
from mesh.wire.links import ClientLink
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import copy, until
from tests.runtime.raw_peer import STREAM, Peer, error_of, next_of, still_answers


@pytest.fixture
async def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    monkeypatch.setattr(edge_receiver, "GOODBYE_LIMIT_S", 0.05)
    async with open_mesh(tmp_path, monkeypatch, 1) as mesh:
        yield Peer(mesh, mesh.nodes[0], await mesh.deploy([copy()], mesh.nodes))


# --- what ends an edge ----------------------------------------------------------------------------

Offence = Callable[[Peer], Awaitable[ClientLink]]


async def frame_before_opening(peer: Peer) -> ClientLink:
    link = peer.edge()
    await link.send(peer.frame(0))
    return link


async def stream_before_opening(peer: Peer) -> ClientLink:
    link = peer.edge()
    await link.send(OpenStream(STREAM, StreamClass.LIVE, True, 1))
    return link


def open_with(**changes: Any) -> Offence:
    async def offend(peer: Peer) -> ClientLink:
        link = peer.edge()
        await link.send(peer.opening(**changes))
        return link

    return offend


def open_stream_with(window: int) -> Offence:
    async def offend(peer: Peer) -> ClientLink:
        link = await peer.opened_edge()
        await link.send(OpenStream(STREAM, StreamClass.LOSSLESS, True, window))
        return link

    return offend


def results_with(**changes: Any) -> Offence:
    async def offend(peer: Peer) -> ClientLink:
        return await peer.results(**changes)

    return offend


async def frame_of_another_generation(peer: Peer) -> ClientLink:
    edge, _ = await peer.opened()
    await edge.send(peer.frame(0, fence=Fence(1, 9)))
    return edge


async def opening_twice(peer: Peer) -> ClientLink:
    edge, _ = await peer.opened()
    await edge.send(peer.opening())
    return edge


async def chunks_out_of_order(peer: Peer) -> ClientLink:
    edge, _ = await peer.opened()
    chunks = list(encode_frame(peer.frame(0, 3 * CHUNK_BYTES)))
    assert len(chunks) == 3
    await edge._call.write(chunks[1])
    return edge


async def a_frame_between_chunks(peer: Peer) -> ClientLink:
    edge, _ = await peer.opened()
    await edge._call.write(next(iter(encode_frame(peer.frame(0, 3 * CHUNK_BYTES)))))
    await edge.send(peer.frame(1))
    return edge


async def a_tensor_too_many(peer: Peer) -> ClientLink:
    edge, _ = await peer.opened()
    frame = peer.frame(0)
    frame.tensors *= 2
    await edge.send(frame)
    return edge


async def bytes_that_are_no_message(peer: Peer) -> ClientLink:
    edge, _ = await peer.opened()
    await edge._call.write(b"\xff" * 20)
    return edge


async def an_answer_acknowledged_twice(peer: Peer) -> ClientLink:
    _, results = await peer.opened()
    await results.send(Acknowledge(1))
    await results.send(Acknowledge(1))
    return results


@pytest.mark.parametrize(
    ("offend", "expected"),
    [
        (frame_before_opening, ProtocolViolation),
        (stream_before_opening, ProtocolViolation),
        (open_with(deployment=DeploymentName("unheard-of")), DeploymentNotFound),
        (open_with(fence=Fence(0, 9)), StaleGeneration),
        (open_with(fence=Fence(2, 1)), DeploymentNotFound),
        (open_with(stage=1), Refused),
        (open_with(stage=(1 << 32) - 1), Refused),
        (open_stream_with(0), UsageError),
        (open_stream_with(1 << 31), UsageError),
        (results_with(window=0), UsageError),
        (results_with(window=1 << 31), UsageError),
        (results_with(fence=Fence(0, 9)), StaleGeneration),
        (results_with(deployment=DeploymentName("unheard-of")), DeploymentNotFound),
        (frame_of_another_generation, StaleGeneration),
        (opening_twice, ProtocolViolation),
        (chunks_out_of_order, ProtocolViolation),
        (a_frame_between_chunks, ProtocolViolation),
        (a_tensor_too_many, (TensorMismatch, ProtocolViolation)),
        (bytes_that_are_no_message, ProtocolViolation),
        (an_answer_acknowledged_twice, ProtocolViolation),
    ],
)
async def test_an_offence_ends_the_link_with_its_error(
    peer: Peer, offend: Offence, expected: type[MeshError] | tuple[type[MeshError], ...]
) -> None:
    async with peer.mesh.stream(peer.deployment) as honest:
        assert isinstance(await error_of(await offend(peer)), expected)
        await still_answers(honest)
    await peer.is_well()


async def test_overrunning_the_credit_ends_the_edge_and_the_stream(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_receiver, "EDGE_CREDIT_BYTES", 1000)
    edge, results = await peer.opened(window=100)
    peer.node.engine.gate.close()
    for sequence in range(5):  # two enter the engine, two wait within the credit
        await edge.send(peer.frame(sequence, 400))
    error = await error_of(edge)
    assert isinstance(error, ProtocolViolation)
    assert "credit" in error.message
    closing = await next_of(results, CloseStream)
    assert isinstance(closing, CloseStream)
    assert isinstance(closing.error, ProtocolViolation)
    peer.node.engine.gate.open()
    await peer.is_well()


async def test_keeping_to_the_credit_any_amount_can_be_sent(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_receiver, "EDGE_CREDIT_BYTES", 1000)
    edge, results = await peer.opened(window=100)
    outstanding = 0
    for sequence in range(20):
        while outstanding + 400 > 1000:
            credit = await next_of(edge, Credit)
            assert isinstance(credit, Credit)
            outstanding -= credit.bytes
        outstanding += 400
        await edge.send(peer.frame(sequence, 400))
    for sequence in range(20):
        answer = await next_of(results, Frame)
        assert isinstance(answer, Frame)
        assert (answer.sequence, answer.outcome) == (sequence, Outcome.OK)
    edge.cancel()
    await peer.is_well()


async def test_who_is_just_writing_hears_why_the_link_ends(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that meets the end of a call hides the call's status; the reason must come before it."""
    monkeypatch.setattr(edge_receiver, "GOODBYE_LIMIT_S", 10)
    for stream in range(10):
        edge, _ = await peer.opened(window=1000, stream=stream)
        heard = asyncio.Event()

        async def write(edge: ClientLink = edge, stream: int = stream, heard: asyncio.Event = heard) -> None:
            with contextlib.suppress(MeshError):
                for sequence in range(100_000):
                    if heard.is_set():
                        return
                    fence = Fence(9, 9) if sequence == 10 else None
                    await edge.send(peer.frame(sequence, stream=stream, fence=fence))

        writing = asyncio.ensure_future(write())
        closing = await next_of(edge, CloseStream)
        assert isinstance(closing, CloseStream)
        assert isinstance(closing.error, StaleGeneration)
        heard.set()
        await writing
        edge.cancel()
    await peer.is_well()


async def test_who_writes_the_rest_of_a_refused_frame_hears_why(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first chunk is refused while the others are under way; they make no sense without it."""
    monkeypatch.setattr(edge_receiver, "GOODBYE_LIMIT_S", 10)
    for stream in range(5):
        edge, _ = await peer.opened(stream=stream)
        frame = peer.frame(0, 8 * CHUNK_BYTES, stream=stream)
        (tensor,) = frame.tensors
        frame.tensors = (replace(tensor, shape=(1, *tensor.shape)),)
        await edge.send(frame)
        closing = await next_of(edge, CloseStream)
        assert isinstance(closing, CloseStream)
        assert isinstance(closing.error, TensorMismatch)
        edge.cancel()
    await peer.is_well()


# --- what closes a stream, but not its edge -------------------------------------------------------


@pytest.fixture
def small_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every frame is worth a credit message."""
    monkeypatch.setattr(edge_receiver, "EDGE_CREDIT_BYTES", 16)


@pytest.mark.usefixtures("small_credit")
async def test_a_stream_id_that_is_taken_and_a_stream_without_consumer_are_refused(peer: Peer) -> None:
    first, _ = await peer.opened()
    second = await peer.opened_edge()
    for stream, text in ((STREAM, "open already"), (99, "no consumer")):
        await second.send(OpenStream(stream, StreamClass.LOSSLESS, True, 4))
        closing = await next_of(second, CloseStream)
        assert isinstance(closing, CloseStream)
        assert closing.stream == stream
        assert isinstance(closing.error, ProtocolViolation)
        assert text in closing.error.message
    again = await peer.results()
    assert isinstance(await error_of(again), ProtocolViolation)
    await first.send(peer.frame(0))
    assert await next_of(first, Credit) == Credit(4)
    first.cancel()
    second.cancel()
    await peer.is_well()


async def test_more_frames_than_the_window_close_the_stream_and_spare_the_edge(peer: Peer) -> None:
    edge, results = await peer.opened(window=3)
    peer.node.engine.gate.close()
    for sequence in range(4):
        await edge.send(peer.frame(sequence))
    for link in (edge, results):
        closing = await next_of(link, CloseStream)
        assert isinstance(closing, CloseStream)
        assert isinstance(closing.error, ProtocolViolation)
        assert "window of 3" in closing.error.message
    peer.node.engine.gate.open()
    again = await peer.results(stream=8)
    assert isinstance(await again.receive(), ResultsAccepted)
    await edge.send(OpenStream(8, StreamClass.LOSSLESS, True, 3))
    assert await next_of(edge, StreamAccepted) == StreamAccepted(8)
    edge.cancel()
    await peer.is_well()


@pytest.mark.usefixtures("small_credit")
async def test_a_frame_of_a_stream_that_was_closed_is_no_offence(peer: Peer) -> None:
    edge, results = await peer.opened()
    results.cancel()
    closing = await next_of(edge, CloseStream)
    assert isinstance(closing, CloseStream)
    assert isinstance(closing.error, NodeLost)
    await edge.send(peer.frame(0))
    assert await next_of(edge, Credit) == Credit(4)
    edge.cancel()
    await peer.is_well()


# --- silence, and peers that do not read ----------------------------------------------------------


async def test_a_connection_that_says_nothing_is_closed(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_receiver, "HANDSHAKE_TIMEOUT_S", 0.1)
    for link in (peer.edge(), peer.node.client.open_results(())):
        began = time.monotonic()
        assert isinstance(await error_of(link), Timeout)
        assert time.monotonic() - began < 2


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (timing, edge_receiver, edge_sender, results_link):
        monkeypatch.setattr(module, "HEARTBEAT_INTERVAL_S", 0.02)
    monkeypatch.setattr(timing, "SILENCE_LIMIT_S", 0.15)


@pytest.mark.usefixtures("quick_beats")
@pytest.mark.parametrize("silent", ["edge", "results"])
async def test_a_peer_that_falls_silent_is_given_up(peer: Peer, silent: str) -> None:
    edge, results = await peer.opened()
    speaking = results if silent == "edge" else edge

    async def beat() -> None:
        with contextlib.suppress(NodeLost):
            while True:
                await speaking.send(Heartbeat())
                await asyncio.sleep(0.02)

    beating = asyncio.ensure_future(beat())
    closing = await next_of(speaking, CloseStream)
    assert isinstance(closing, CloseStream)
    assert isinstance(closing.error, NodeLost)
    assert "silent" in closing.error.message
    speaking.cancel()
    await beating
    await peer.mesh.is_clean(peer.deployment)


@pytest.mark.usefixtures("quick_beats")
async def test_who_beats_is_not_given_up(peer: Peer) -> None:
    async with peer.mesh.stream(peer.deployment) as stream:
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            await still_answers(stream)
            await asyncio.sleep(0.05)


async def test_a_consumer_that_never_reads_is_cut_off_and_others_go_on(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_receiver, "MAX_UNREAD_BYTES", 4 << 20)
    edge, _ = await peer.opened(window=1000)
    stage = peer.node.stage(peer.deployment)
    largest = 0

    async def push() -> None:
        outstanding, sequence = 0, 0
        while True:
            while outstanding and outstanding + (1 << 20) > edge_receiver.EDGE_CREDIT_BYTES:
                message = await edge.receive()
                if isinstance(message, CloseStream):
                    assert isinstance(message.error, Overloaded)
                    return
                outstanding -= message.bytes if isinstance(message, Credit) else 0
            nonlocal largest
            for sink in stage._sinks.values():
                largest = max(largest, sink._outgoing._waiting_bytes)  # type: ignore[attr-defined]
            outstanding += 1 << 20
            await edge.send(peer.frame(sequence, 1 << 20))
            sequence += 1

    async with peer.mesh.stream(peer.deployment) as honest, asyncio.timeout(20):
        pushing = asyncio.ensure_future(push())
        while not pushing.done():
            await still_answers(honest)
        await pushing
        await still_answers(honest)
    assert 0 < largest <= 4 << 20
    edge.cancel()
    await until(lambda: key_of(peer.deployment) in peer.node.driver.state.records)
    await peer.is_well()
