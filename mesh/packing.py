"""Zstandard, where it is installed: for tensors between stages (`mesh.codecs`) and for content on its way to nodes.

Packs bytes, and unpacks what peers send without trusting any of it: what a frame announces is looked at before room is
made for it. Pure; safe to call from any thread. The package is imported on use.
"""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import dataclass
from typing import Any

from mesh.errors import MissingExtra, ProtocolViolation

LEVEL = 1
"""The others take twice the time for a few per cent."""

HASH_LOG = 12
"""Activations hold few repetitions, weights none: a small table finds as many, and stays in the first cache."""

HINT = "install the extra infermesh[zstd]: pip install '.[zstd]' in a clone"

MAX_PIECE_BYTES = 4 << 20
"""Of content, unpacked: four times what is sent at once."""

LEAST_GAIN = 0.05
"""Share of a piece that packing must save to be worth unpacking it on a small board."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of some content on its way."""

    data: bytes
    plain_bytes: int = 0
    """What `data` unpacks to; 0 where it is not packed."""

    def unpack(self) -> bytes:
        """Raises `ProtocolViolation` for what does not unpack to what it announces."""
        if not self.plain_bytes:
            return self.data
        if self.plain_bytes > MAX_PIECE_BYTES:
            raise ProtocolViolation(f"a piece of {self.plain_bytes} bytes of content, the limit is {MAX_PIECE_BYTES}")
        return unpack(self.data, self.plain_bytes)


def pack_piece(data: bytes) -> Piece:
    """Packed where that saves something, else as it is. Raises `MissingExtra`."""
    packed = pack(data)
    return Piece(packed, len(data)) if len(packed) <= (1 - LEAST_GAIN) * len(data) else Piece(data)


def is_available() -> bool:
    return importlib.util.find_spec("zstandard") is not None


def pack(data: Any) -> bytes:
    """One Zstandard frame of `data`, anything with a contiguous buffer. Raises `MissingExtra`."""
    packed: bytes = _context().compressor.compress(data)
    return packed


def unpack(data: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes that were packed. Raises `ProtocolViolation` for anything else, and `MissingExtra`."""
    context = _context()
    try:
        announced = context.module.get_frame_parameters(data).content_size
        if announced != size:
            raise ProtocolViolation(f"packed are {announced} bytes, {size} were to be")
        unpacked: bytes = context.decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except context.module.ZstdError as error:
        raise ProtocolViolation(f"bytes that cannot be unpacked: {error}") from None
    if len(unpacked) != size:
        raise ProtocolViolation(f"{len(unpacked)} bytes were packed, {size} were to be")
    return unpacked


class _Contexts(threading.local):
    """Zstandard's working memory: made once per thread, because neither may be used by two at a time."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("this needs the package zstandard", hint=HINT) from None
        parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, hash_log=HASH_LOG)
        self.module: Any = zstandard
        self.compressor: Any = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor: Any = zstandard.ZstdDecompressor()


_contexts: _Contexts | None = None


def _context() -> _Contexts:
    global _contexts
    if _contexts is None:
        _contexts = _Contexts()
    return _contexts
