from __future__ import annotations

import io
import os
import sys
from typing import Any, BinaryIO

import numpy as np
import pytest

from mesh.client.sources import SourceFrame, open_source
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MeshError, SourceUnreadable, TensorMismatch, UsageError

X = TensorSpec("x", DType.FLOAT32, ("batch", 3))
PIXELS = TensorSpec("x", DType.FLOAT32, (1, 3, 2, 2))


def read(url: str, data: bytes | BinaryIO, *specs: TensorSpec) -> list[SourceFrame]:
    pipe = io.BytesIO(data) if isinstance(data, bytes) else data
    return list(open_source(url, specs, stdin=pipe).frames())


class Trickle(io.RawIOBase):
    """A pipe that gives a byte or two at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._data.read(min(2, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_frames_are_the_bytes_of_the_inputs_in_order() -> None:
    label = TensorSpec("n", DType.INT64, ())
    data = b"".join(np.full(3, n, np.float32).tobytes() + np.int64(n).tobytes() for n in range(3))
    frames = read("stdin:", data, X, label)
    assert [frame.origin for frame in frames] == ["stdin[0]", "stdin[1]", "stdin[2]"]
    assert [tuple(tensor.shape for tensor in frame.tensors) for frame in frames] == [((1, 3), ())] * 3
    assert b"".join(bytes(tensor.data) for frame in frames for tensor in frame.tensors) == data


def test_a_pipe_that_trickles_gives_whole_frames() -> None:
    data = np.arange(6, dtype=np.float32).tobytes()
    trickle: Any = Trickle(data)
    assert b"".join(bytes(frame.tensors[0].data) for frame in read("-", trickle, X)) == data


def test_a_real_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, np.arange(6, dtype=np.float32).tobytes())
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        raw: Any = pipe
        assert len(read("-", raw, X)) == 2


def test_a_short_last_frame_is_an_error_unless_told_otherwise() -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    frames = open_source("stdin:", [X], stdin=io.BytesIO(data)).frames()
    next(frames)
    with pytest.raises(TensorMismatch, match=r"ended in frame 1, after 4 of 12 bytes .*\?tail=drop"):
        next(frames)
    assert len(read("stdin:?tail=drop", data, X)) == 1
    padded = read("stdin:?tail=pad", data, X)
    assert np.frombuffer(padded[1].tensors[0].data, np.float32).tolist() == [3, 0, 0]


def test_bytes_become_scaled_floats() -> None:
    (frame,) = read("stdin:?dtype=uint8&scale=255", bytes([0, 51, 255]), X)
    assert frame.tensors[0].dtype is DType.FLOAT32
    assert np.frombuffer(frame.tensors[0].data, np.float32).tolist() == pytest.approx([0, 0.2, 1])
    (whole,) = read("stdin:?dtype=uint8", bytes([0, 51, 255]), TensorSpec("x", DType.INT32, (3,)))
    assert np.frombuffer(whole.tensors[0].data, np.int32).tolist() == [0, 51, 255]


def test_interleaved_pixels_become_planes() -> None:
    pixels = bytes(range(12))
    planes = np.arange(12, dtype=np.uint8).reshape(2, 2, 3).transpose(2, 0, 1)
    (frame,) = read("stdin:?dtype=uint8&layout=hwc", pixels, PIXELS)
    assert np.array_equal(np.frombuffer(frame.tensors[0].data, np.float32).reshape(1, 3, 2, 2)[0], planes)
    floats = np.arange(12, dtype=np.float32).tobytes()
    (frame,) = read("stdin:?layout=hwc", floats, PIXELS)
    assert np.array_equal(np.frombuffer(frame.tensors[0].data, np.float32).reshape(1, 3, 2, 2)[0], planes)


@pytest.mark.parametrize(
    ("query", "spec", "error", "said"),
    [
        ("dtype=int8", X, UsageError, "one of uint8, float32"),
        ("scale=255", X, UsageError, "dtype=uint8"),
        ("dtype=uint8&scale=0", X, UsageError, "scale="),
        ("dtype=uint8&scale=nan", X, UsageError, "scale="),
        ("dtype=uint8&scale=2", TensorSpec("x", DType.INT32, (3,)), TensorMismatch, "scaled samples are floats"),
        ("layout=hwc", X, TensorMismatch, "image in planes"),
        ("layout=chw", PIXELS, UsageError, "as-is, hwc"),
        ("hop=1", X, UsageError, "unknown option 'hop'"),
        ("tail=keep", X, UsageError, "tail="),
        ("", TensorSpec("x", DType.STRING, (3,)), TensorMismatch, "no fixed size"),
        ("", TensorSpec("x", DType.FLOAT32, None), TensorMismatch, "does not say its shape"),
        ("", TensorSpec("x", DType.FLOAT32, (1, 0)), TensorMismatch, "cannot be read from a pipe"),
        ("", TensorSpec("x", DType.FLOAT32, (1 << 40,)), TensorMismatch, "cannot be read from a pipe"),
    ],
)
def test_what_does_not_fit_is_refused_at_opening(
    query: str, spec: TensorSpec, error: type[MeshError], said: str
) -> None:
    with pytest.raises(error, match=said):
        open_source(f"stdin:?{query}", [spec], stdin=io.BytesIO())


def test_a_path_a_terminal_and_several_inputs_are_refused() -> None:
    with pytest.raises(UsageError, match="takes no path"):
        open_source("stdin:file", [X], stdin=io.BytesIO())
    with pytest.raises(UsageError, match="is a terminal"):
        open_source("-", [X], stdin=Terminal())
    with pytest.raises(TensorMismatch, match="2 inputs"):
        open_source("stdin:?dtype=uint8", [X, PIXELS], stdin=io.BytesIO())


def test_a_pipe_that_breaks_is_a_source_error() -> None:
    pipe = io.BytesIO(b"\0" * 24)
    frames = open_source("-", [X], stdin=pipe).frames()
    next(frames)
    pipe.close()
    with pytest.raises(SourceUnreadable, match="cannot be read"):
        next(frames)


def test_standard_input_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(np.zeros(3, np.float32).tobytes())))
    assert len(list(open_source("-", [X]).frames())) == 1
