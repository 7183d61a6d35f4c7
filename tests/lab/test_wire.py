"""The wire: frames arrive whole, in order and not before their time. On socket pairs instead of TAP devices."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mesh.lab import wire
from mesh.lab.wire import Direction, carry

DELAY_S = 0.03


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, list[Direction]]]:
    """Two devices and the wire's directions between them. Datagrams, as a TAP has frames."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    (left, left_inside), (right, right_inside) = pairs
    for inside in (left_inside, right_inside):
        inside.setblocking(False)
    yield (
        left,
        right,
        [
            Direction(left_inside.fileno(), right_inside.fileno(), DELAY_S),
            Direction(right_inside.fileno(), left_inside.fileno(), DELAY_S),
        ],
    )
    for pair in pairs:
        for each in pair:
            each.close()


def test_frames_come_whole_in_order_and_late(
    ends: tuple[socket.socket, socket.socket, list[Direction]],
) -> None:
    left, right, directions = ends
    right.settimeout(5)
    left.settimeout(5)
    stop = threading.Event()
    carrier = threading.Thread(target=carry, args=(directions, lambda: not stop.is_set()))
    carrier.start()
    try:
        frames = [bytes([number]) * (number * 100 + 1) for number in range(20)]
        sent_at = []
        for frame in frames:
            sent_at.append(time.monotonic())
            left.send(frame)
        for frame, sent in zip(frames, sent_at, strict=True):
            assert right.recv(wire.MAX_FRAME_BYTES) == frame
            assert time.monotonic() - sent >= DELAY_S
        right.send(b"back")
        assert left.recv(100) == b"back"
    finally:
        stop.set()
        left.send(b"wakes it up")
        carrier.join()


def test_waits_until_due(ends: tuple[socket.socket, socket.socket, list[Direction]]) -> None:
    left, right, (there, _) = ends
    right.setblocking(False)
    left.send(b"frame")
    assert there.due is None
    there.take(now=100.0)
    assert there.due == 100.0 + DELAY_S
    there.deliver(now=100.0 + DELAY_S - 0.001)
    with pytest.raises(BlockingIOError):
        right.recv(100)
    there.deliver(now=100.0 + DELAY_S)
    assert right.recv(100) == b"frame"
    assert there.queued_bytes == 0


def test_what_is_too_much_is_lost(
    ends: tuple[socket.socket, socket.socket, list[Direction]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, (there, _) = ends
    right.setblocking(False)
    monkeypatch.setattr(wire, "MAX_QUEUED_BYTES", 10)
    for frame in (b"123456", b"1234567", b"1234"):
        left.send(frame)
    there.take(now=0.0)
    there.deliver(now=1.0)
    assert (right.recv(100), right.recv(100), there.lost) == (b"123456", b"1234", 1)


def test_a_side_that_is_gone_loses_frames(ends: tuple[socket.socket, socket.socket, list[Direction]]) -> None:
    left, right, (there, _) = ends
    left.send(b"frame")
    right.close()
    there.take(now=0.0)
    there.deliver(now=1.0)
    assert there.lost == 1
