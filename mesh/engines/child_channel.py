"""What an engine's child process and its parent say to each other, and how tensors pass between them.

Both ends use this; nothing here starts a process or a thread. A message is a few numbers and a body of
JSON, over a Unix socket; a descriptor may travel with it. Tensors lie in regions: anonymous files (`memfd`)
that both ends map. The parent makes those that feeds are written to, the child those with answers; a region
is taken again once the other end has said that it is free. Where tensors lie in a region is the body, which
is the same for each frame of a model, so both ends remember the last one (`LayoutCache`).
The two ends are one program, so what arrives is well-formed; a peer that ends raises `EOFError`.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.core.tensor import DType, Tensor, TensorSpec

_HEAD = struct.Struct("<IHBB")
"""Bytes of the body, how many numbers come before it, whether it is an error, whether a descriptor comes along."""

_NUMBER_BYTES = 8

RUN_NUMBER = struct.Struct("<Q")
"""What is said on the control socket: which run to terminate."""

READ_BYTES = 1 << 13
"""Many questions and answers; the specs of a model with thousands of outputs come in several reads."""

ALIGNMENT = 64
"""Of each tensor in a region: a cache line, and more than any element type needs."""

MIN_REGION_BYTES = 1 << 16
"""Regions are powers of two from here on; pages of memory are taken only when they are written."""

_DESCRIPTOR_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)


@dataclass(slots=True)
class Message:
    """A question: run, feed region, its size, regions that are free. An answer: run, nanoseconds, region, its size,
    peak memory, regions that are no more. Opening and specs have no numbers."""

    numbers: tuple[int, ...] = ()
    body: bytes = b""
    is_error: bool = False
    descriptor: int | None = None
    """Belongs to whoever received it."""


class Channel:
    """One end of the data socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unread = b""
        self._descriptors: deque[int] = deque()

    @property
    def descriptor(self) -> int:
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def send(self, message: Message) -> None:
        """Raises `OSError` where the other end is gone."""
        numbers = message.numbers
        has_descriptor = message.descriptor is not None
        data = b"".join(
            (
                _HEAD.pack(len(message.body), len(numbers), message.is_error, has_descriptor),
                struct.pack(f"<{len(numbers)}Q", *numbers),
                message.body,
            )
        )
        if message.descriptor is None:
            self._socket.sendall(data)
            return
        sent = socket.send_fds(self._socket, [data], [message.descriptor])
        if sent < len(data):
            self._socket.sendall(data[sent:])

    def receive(self) -> Message:
        """Wait for a message. Raises `EOFError`, `OSError`."""
        while (message := self._take()) is None:
            self._read(0)
        return message

    def receive_nowait(self) -> list[Message]:
        """What is there; raises `EOFError`, `OSError`."""
        try:
            self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        messages: list[Message] = []
        while (message := self._take()) is not None:
            messages.append(message)
        return messages

    def _read(self, flags: int) -> None:
        data, attached, _, _ = self._socket.recvmsg(READ_BYTES, _DESCRIPTOR_SPACE, flags | socket.MSG_CMSG_CLOEXEC)
        for _, _, content in attached:
            self._descriptors.extend(array.array("i", content))
        if not data:
            raise EOFError("the other end is gone")
        self._unread = self._unread + data if self._unread else data

    def _take(self) -> Message | None:
        data = self._unread
        if len(data) < _HEAD.size:
            return None
        size, count, is_error, has_descriptor = _HEAD.unpack_from(data)
        begin = _HEAD.size + count * _NUMBER_BYTES
        if len(data) < begin + size:
            return None
        self._unread = data[begin + size :]
        return Message(
            struct.unpack_from(f"<{count}Q", data, _HEAD.size),
            data[begin : begin + size],
            bool(is_error),
            # The kernel never reads on beyond bytes that a descriptor came with, so they are in the order of messages.
            self._descriptors.popleft() if has_descriptor else None,
        )

    def shut_down(self) -> None:
        """End a `receive` that waits on another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end has gone first

    def close(self) -> None:
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())


def encode_json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


# Regions ------------------------------------------------------------------------------------------


class Region:
    """Shared memory that this end has made and writes to; `descriptor` is what the other end is given."""

    def __init__(self, number: int, size_bytes: int) -> None:
        self.number = number
        self.size_bytes = max(MIN_REGION_BYTES, 1 << (size_bytes - 1).bit_length())
        self.descriptor = os.memfd_create("mesh-engine", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, self.size_bytes)
        self._mapping = mmap.mmap(self.descriptor, self.size_bytes)
        self._view = memoryview(self._mapping)

    def write(self, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors in, one after the other, as `LayoutCache.encode` says."""
        offset = 0
        for tensor in tensors:
            size = len(tensor.data)
            self._view[offset : offset + size] = tensor.data
            offset = _align(offset + size)

    def close(self) -> None:
        self._view.release()
        self._mapping.close()
        os.close(self.descriptor)


def _align(offset: int) -> int:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class LayoutCache:
    """Where tensors lie in a region, as bytes and back; each way remembers the last one. One per end and session."""

    def __init__(self) -> None:
        self._encoded_key: list[Any] = []
        self._encoded = b"[]", 0
        self._decoded_key = b"[]"
        self._decoded: tuple[tuple[DType, tuple[int, ...], int, int], ...] = ()

    def encode(self, tensors: Sequence[Tensor]) -> tuple[bytes, int]:
        """The layout of `tensors`, and the bytes that they need in a region; 0 where none has any."""
        key = [(tensor.dtype, tensor.shape, len(tensor.data)) for tensor in tensors]
        if key != self._encoded_key:
            layout: list[Any] = []
            offset = 0
            for dtype, shape, size in key:
                layout.append([dtype.value, shape, offset, size])
                offset = _align(offset + size)
            self._encoded_key, self._encoded = key, (encode_json(layout), offset)
        return self._encoded

    def decode(self, body: bytes, view: memoryview) -> list[Tensor]:
        """Tensors over `view`, without a copy and without a check: an engine checks what it is fed."""
        if body != self._decoded_key:
            self._decoded = tuple(
                (DType(dtype), tuple(shape), offset, offset + size) for dtype, shape, offset, size in json.loads(body)
            )
            self._decoded_key = body
        return [Tensor(dtype, shape, view[begin:end].toreadonly()) for dtype, shape, begin, end in self._decoded]


def spec_to_json(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.dtype.value, spec.shape]


def spec_from_json(fields: Sequence[Any]) -> TensorSpec:
    name, dtype, shape = fields
    return TensorSpec(name, DType(dtype), None if shape is None else tuple(shape))
