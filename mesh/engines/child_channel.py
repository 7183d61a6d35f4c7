"""What an engine's child process and its parent say to each other, and how tensors pass between them.

Both ends use this; nothing here starts a process or a thread. A message is four bytes of length and
that many bytes of JSON, over a Unix socket; a descriptor may travel with it. Tensors lie in regions:
anonymous files (`memfd`) that both ends map. The parent makes the one that feeds are written to, the
child those with answers; a region is taken again once the other end has said that it is free.
The two ends are one program, so what arrives is well-formed; a peer that ends raises `EOFError`.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from mesh.core.tensor import DType, Tensor, TensorSpec

Message = dict[str, Any]

_LENGTH = struct.Struct("<I")

RUN_NUMBER = struct.Struct("<Q")
"""What is said on the control socket: which run to terminate."""

READ_BYTES = 1 << 16
"""More than any message but the specs of a model with thousands of outputs."""

ALIGNMENT = 64
"""Of each tensor in a region: a cache line, and more than any element type needs."""

MIN_REGION_BYTES = 1 << 16
"""Regions are powers of two from here on; pages of memory are taken only when they are written."""


class Channel:
    """One end of the data socket. Strictly question and answer, so a read never holds two messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Raises `OSError` where the other end is gone."""
        body = json.dumps(message, separators=(",", ":")).encode()
        data = _LENGTH.pack(len(body)) + body
        sent = socket.send_fds(self._socket, [data], [] if descriptor is None else [descriptor])
        if sent < len(data):
            self._socket.sendall(data[sent:])

    def receive(self) -> tuple[Message, int | None]:
        """A message and the descriptor that came with it, now the caller's. Raises `EOFError`, `OSError`."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, READ_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            more = self._socket.recv(READ_BYTES)
            if not more:
                raise EOFError("the other end is gone")
            data += more
        message: Message = json.loads(data[_LENGTH.size :])
        return message, descriptors[0] if descriptors else None

    def shut_down(self) -> None:
        """End a `receive` that waits on another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end has gone first

    def close(self) -> None:
        self._socket.close()


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

    def write(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Copy the tensors in, one after the other; returns where they lie (`read_layout`)."""
        layout: list[Any] = []
        offset = 0
        for tensor in tensors:
            size = len(tensor.data)
            self._view[offset : offset + size] = tensor.data
            layout.append([tensor.dtype.value, tensor.shape, offset, size])
            offset = _align(offset + size)
        return layout

    def close(self) -> None:
        self._view.release()
        self._mapping.close()
        os.close(self.descriptor)


def _align(offset: int) -> int:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def needed_bytes(tensors: Sequence[Tensor]) -> int:
    """In a region, for all of them; 0 where none has any bytes."""
    return sum(_align(len(tensor.data)) for tensor in tensors)


def describe_empty(tensors: Sequence[Tensor]) -> list[Any]:
    """The layout of tensors without bytes, which need no region."""
    return [[tensor.dtype.value, tensor.shape, 0, 0] for tensor in tensors]


def read_layout(layout: Sequence[Any], view: memoryview) -> list[Tensor]:
    """Tensors over `view`, without a copy and without a check: an engine checks what it is fed."""
    return [
        Tensor(DType(dtype), tuple(shape), view[offset : offset + size].toreadonly())
        for dtype, shape, offset, size in layout
    ]


def spec_to_json(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.dtype.value, spec.shape]


def spec_from_json(fields: Sequence[Any]) -> TensorSpec:
    name, dtype, shape = fields
    return TensorSpec(name, DType(dtype), None if shape is None else tuple(shape))
