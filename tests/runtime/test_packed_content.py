"""Models and segments travel packed where that is smaller, and arrive as they were or not at all."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from mesh import packing
from mesh.core.fleet import CodecSpeed
from mesh.core.ids import Sha256
from mesh.core.report import NodeView
from mesh.errors import MissingExtra, NotFound, ProtocolViolation
from mesh.hardware.probe import ProbeResult
from mesh.packing import MAX_PIECE_BYTES, Piece, pack, pack_piece, unpack
from mesh.runtime import node as node_module
from mesh.runtime import sending
from mesh.runtime.fleet import Answered
from mesh.runtime.sending import send_content
from mesh.wire import channel
from tests.runtime.fake_mesh import FakeMesh, FakeNode, open_mesh

CONTENTS = {
    "weights of eight bits": np.random.default_rng(1).normal(0, 12, 3 << 20).astype(np.int8).tobytes(),
    "noise": np.random.default_rng(1).bytes(2 << 20),
    "a little": b"segment",
}


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch) as opened:
        result = ProbeResult(runtime_version="1", codecs=(CodecSpeed("zstd", 1e-9, 1e-9),))
        monkeypatch.setattr(node_module, "run_probe", lambda stop: result)
        yield opened


@pytest.fixture
def moved_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each chunk of content that somebody receives."""
    sizes: list[int] = []
    read = Piece.unpack

    def count(piece: Piece) -> bytes:
        sizes.append(len(piece.data))
        return read(piece)

    monkeypatch.setattr(Piece, "unpack", count)
    return sizes


def digest_of(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).hexdigest())


async def answered(node: FakeNode) -> Answered:
    capabilities = await node.client.get_capabilities()
    return Answered(NodeView(capabilities, node.address), node.client, (), 0)


async def get(node: FakeNode, sha256: Sha256) -> bytes:
    return b"".join([chunk async for _, chunk in node.client.get_content(sha256)])


@pytest.mark.parametrize("name", CONTENTS)
async def test_content_arrives_as_it_was_in_fewer_bytes_where_they_are_fewer(
    mesh: FakeMesh, name: str, moved_bytes: list[int]
) -> None:
    data = CONTENTS[name]
    first, second = await mesh.start("first"), await mesh.start("second")
    await send_content(await answered(first), digest_of(data), data)
    sent = sum(moved_bytes)
    moved_bytes.clear()
    assert await get(first, digest_of(data)) == data
    assert sum(moved_bytes) == sent
    await second.client.fetch_content([digest_of(data)], [first.address])
    assert await get(second, digest_of(data)) == data
    assert sent < 0.9 * len(data) if "weights" in name else sent == len(data)


async def test_who_does_not_read_packed_content_gets_it_plain(
    mesh: FakeMesh, moved_bytes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CONTENTS["weights of eight bits"]
    monkeypatch.setattr(node_module, "run_probe", lambda stop: ProbeResult(runtime_version="1"))
    node = await mesh.start("old")
    await send_content(await answered(node), digest_of(data), data)
    assert sum(moved_bytes) == len(data)
    moved_bytes.clear()
    monkeypatch.setattr(channel, "is_available", lambda: False)
    assert await get(node, digest_of(data)) == data
    assert sum(moved_bytes) == len(data)


async def test_pieces_that_unpack_to_something_else_are_refused_and_leave_nothing(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CONTENTS["weights of eight bits"]
    node = await mesh.start("first")
    to = await answered(node)

    async def lie(chunk: bytes) -> Piece:
        return Piece(pack(chunk), len(chunk) + 1)

    async def spoil(chunk: bytes) -> Piece:
        return Piece(pack(chunk[::-1]), len(chunk))

    monkeypatch.setattr(sending, "_pack", lie)
    with pytest.raises(ProtocolViolation, match="1048576 bytes, 1048577 were to be"):
        await send_content(to, digest_of(data), data)
    monkeypatch.setattr(sending, "_pack", spoil)
    with pytest.raises(ProtocolViolation, match=r"SHA-256|sha256|hash"):
        await send_content(to, digest_of(data), data)
    with pytest.raises(NotFound):
        await get(node, digest_of(data))


def test_what_a_piece_may_claim_is_bounded() -> None:
    bomb = pack(bytes(MAX_PIECE_BYTES + 1))
    with pytest.raises(ProtocolViolation, match="the limit is"):
        Piece(bomb, MAX_PIECE_BYTES + 1).unpack()
    with pytest.raises(ProtocolViolation, match=f"packed are {MAX_PIECE_BYTES + 1} bytes, 100 were to be"):
        Piece(bomb, 100).unpack()
    with pytest.raises(ProtocolViolation, match="cannot be unpacked"):
        unpack(b"no frame at all", 100)
    assert pack_piece(b"x" * 1000).unpack() == b"x" * 1000
    assert pack_piece(b"") == Piece(b"")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(packing, "_contexts", None)
    with pytest.raises(MissingExtra) as refused:
        pack(b"x")
    assert "infermesh[zstd]" in refused.value.hint
