"""`stdin:` (or `-`): raw frames from a pipe, `ffmpeg ... -f rawvideo - | mesh stream NAME --source stdin:`.

Without options each frame is the bytes of the model's inputs, one after the other in the model's order, open dimensions
counting as 1. Options for a model with one input:

* `dtype=uint8&scale=255`: one byte per element on the pipe, divided by `scale`, as the model's type;
* `layout=hwc`: pixels come interleaved (ffmpeg's rgb24), the model wants planes (`[N,C,H,W]`);
* `format=pcm_s16le` with `window`, `hop` (seconds), `sample_rate` (16000 unless given), `channels` (1): audio windows.

`tail=error|drop|pad` says what becomes of a short last frame: raw frames default to error, audio to pad.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Sequence
from typing import BinaryIO

from mesh.client.resource_url import ResourceUrl
from mesh.client.sources.audio import MAX_CHANNELS, MAX_SAMPLE_RATE_HZ, TAILS, PcmFormat, plan_windows
from mesh.client.sources.contract import (
    IteratorSource,
    Source,
    SourceFrame,
    SourceRequest,
    nominal_shape,
    single_input,
)
from mesh.client.values import ByteLookup
from mesh.core.tensor import MAX_TENSOR_BYTES, DType, Tensor, TensorSpec
from mesh.errors import SourceUnreadable, TensorMismatch, UsageError

OPTIONS = ("dtype", "scale", "layout", "format", "window", "hop", "sample_rate", "channels", "tail")
HELP = (
    "stdin:[?dtype=uint8&scale=N&layout=hwc&tail=error|drop|pad]\n    raw frames of the model's input size on a pipe\n"
    "stdin:?format=pcm_s16le[&window=S&hop=S&sample_rate=HZ&channels=N&tail=...]\n    audio on a pipe"
)

DEFAULT_SAMPLE_RATE_HZ = 16_000
"""What speech models and the protocols of voice control use."""

_ORIGIN = "stdin"
_RAW_OPTIONS = ("dtype", "scale", "layout", "tail")
_PCM_OPTIONS = ("format", "window", "hop", "sample_rate", "channels", "tail")

Split = Callable[[bytes], tuple[Tensor, ...]]


def open_stdin(request: SourceRequest) -> Source:
    """A source that reads the pipe until its end; it never closes it. Raises `UsageError` or `TensorMismatch`."""
    url = request.url
    if url.path:
        raise UsageError(f"{url.text!r}: stdin takes no path", hint="write stdin: or -")
    pipe = request.stdin if request.stdin is not None else sys.stdin.buffer
    if pipe.isatty():
        raise UsageError(
            "standard input is a terminal, not a stream of frames",
            hint="pipe frames in: ffmpeg -i VIDEO -f rawvideo -pix_fmt rgb24 - | mesh stream NAME --source stdin:",
        )
    if "format" in url.options:
        return _open_pcm(request, pipe)
    url.check_options(_RAW_OPTIONS)
    return _open_raw(request, pipe)


def read_exactly(pipe: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes, fewer only at the end of the pipe; raises `SourceUnreadable` where reading fails."""
    parts: list[bytes] = []
    left = size
    while left:
        try:
            part = pipe.read(left)
        except (OSError, ValueError) as error:  # ValueError: closed underneath
            raise SourceUnreadable(f"standard input cannot be read: {error}") from error
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _open_pcm(request: SourceRequest, pipe: BinaryIO) -> Source:
    url = request.url
    url.check_options(_PCM_OPTIONS)
    url.choice("format", ("pcm_s16le",), "pcm_s16le")
    spec = single_input(request, "audio")
    rate = url.integer("sample_rate", DEFAULT_SAMPLE_RATE_HZ, minimum=1) or DEFAULT_SAMPLE_RATE_HZ
    channels = url.integer("channels", 1, minimum=1) or 1
    if rate > MAX_SAMPLE_RATE_HZ:
        raise url.wrong("sample_rate", f"at most {MAX_SAMPLE_RATE_HZ} Hz")
    if channels > MAX_CHANNELS:
        raise url.wrong("channels", f"at most {MAX_CHANNELS}")
    pcm = PcmFormat(rate, channels, 2)
    windowing = plan_windows(url, spec, rate)

    def read(samples: int) -> Sequence[float]:
        data = read_exactly(pipe, samples * pcm.frame_bytes)
        if len(data) % pcm.frame_bytes and windowing.tail == "error":
            raise TensorMismatch(
                f"standard input ended inside a sample of {pcm.frame_bytes} bytes", hint="?tail=drop leaves it out"
            )
        return pcm.decode_mono(data[: len(data) // pcm.frame_bytes * pcm.frame_bytes])

    def produce() -> Generator[SourceFrame, None, None]:
        for start, tensor in windowing.cut(read, "standard input"):
            yield SourceFrame((tensor,), f"{_ORIGIN}@{start / rate:.6f}s")

    return IteratorSource(produce, frame_count=None, natural_rate_hz=rate / windowing.hop)


def _open_raw(request: SourceRequest, pipe: BinaryIO) -> Source:
    frame_bytes, split = _plan_raw(request)
    tail = request.url.choice("tail", TAILS, "error")

    def produce() -> Generator[SourceFrame, None, None]:
        index = 0
        while True:
            data = read_exactly(pipe, frame_bytes)
            if len(data) < frame_bytes:
                if not data or tail == "drop":
                    return
                if tail == "error":
                    raise TensorMismatch(
                        f"standard input ended in frame {index}, after {len(data)} of {frame_bytes} bytes",
                        hint="check size and pixel format of what is piped in; ?tail=drop leaves a short frame out, "
                        "?tail=pad fills it up with zeros",
                    )
                data = data.ljust(frame_bytes, b"\0")
            yield SourceFrame(split(data), f"{_ORIGIN}[{index}]")
            index += 1

    return IteratorSource(produce, frame_count=None)


def _plan_raw(request: SourceRequest) -> tuple[int, Split]:
    """Bytes of a frame on the pipe, and how they become tensors."""
    url = request.url
    if "dtype" in url.options or "layout" in url.options or "scale" in url.options:
        spec = single_input(request, "the options dtype, scale and layout can")
        return _plan_samples(url, spec)
    fields: list[tuple[TensorSpec, tuple[int, ...], int]] = []
    for spec in request.inputs:
        shape = nominal_shape(spec, "raw bytes")
        fields.append((spec, shape, _size(spec, shape, spec.dtype)))
    total = sum(size for _, _, size in fields)

    def split(data: bytes) -> tuple[Tensor, ...]:
        view = memoryview(data)
        tensors: list[Tensor] = []
        offset = 0
        for spec, shape, size in fields:
            tensors.append(Tensor.from_bytes(spec.dtype, shape, view[offset : offset + size], spec.name))
            offset += size
        return tuple(tensors)

    return total, split


def _size(spec: TensorSpec, shape: tuple[int, ...], dtype: DType) -> int:
    if dtype is DType.STRING:
        raise TensorMismatch(
            f"input {spec.name!r}: strings have no fixed size, so raw frames cannot be told apart",
            hint="use an .npz file",
        )
    size = math.prod(shape) * dtype.item_bytes
    if not 0 < size <= MAX_TENSOR_BYTES:
        raise TensorMismatch(f"input {spec.name!r}: {size} bytes per frame ({spec}) cannot be read from a pipe")
    return size


def _plan_samples(url: ResourceUrl, spec: TensorSpec) -> tuple[int, Split]:
    shape = nominal_shape(spec, "raw bytes")
    sample = spec.dtype
    lookup: ByteLookup | None = None
    if "dtype" in url.options:
        url.choice("dtype", ("uint8", spec.dtype.label), "uint8")
        sample = DType.from_label(url.options["dtype"])
    scale = url.number("scale", 1.0) or 1.0
    if sample is not DType.UINT8 and scale != 1.0:
        raise UsageError(f"{url.text!r}: scale needs bytes on the pipe", hint="add dtype=uint8, or leave scale away")
    if sample is DType.UINT8 and (spec.dtype is not DType.UINT8 or scale != 1.0):
        if scale != 1.0 and not spec.dtype.is_float:
            raise TensorMismatch(
                f"input {spec.name!r}: scaled samples are floats, the model wants {spec.dtype.label}",
                hint="leave ?scale= away",
            )
        lookup = ByteLookup([value / scale for value in range(256)], spec.dtype)
    size = _size(spec, shape, sample)
    channels = _plane_count(url, spec, shape)

    def split(data: bytes) -> tuple[Tensor, ...]:
        planes = data if channels == 1 else _separate(data, channels, sample.item_bytes)
        packed = planes if lookup is None else lookup.apply(planes)
        return (Tensor.from_bytes(spec.dtype, shape, packed, spec.name),)

    return size, split


def _plane_count(url: ResourceUrl, spec: TensorSpec, shape: tuple[int, ...]) -> int:
    """Channels to take apart: 1 leaves the bytes as they come."""
    if url.choice("layout", ("as-is", "hwc"), "as-is") == "as-is":
        return 1
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise TensorMismatch(
            f"input {spec.name!r}: layout=hwc is for one image in planes, [1,C,H,W] or [C,H,W]; the model wants {spec}",
            hint="leave ?layout= away",
        )
    return shape[-3]


def _separate(data: bytes, channels: int, item_bytes: int) -> bytes:
    """Interleaved elements (height, width, channel) as planes (channel, height, width)."""
    if item_bytes == 1:
        return b"".join(data[channel::channels] for channel in range(channels))
    stride = channels * item_bytes
    planes = bytearray()
    for channel in range(channels):
        plane = bytearray(len(data) // channels)
        for byte in range(item_bytes):
            plane[byte::item_bytes] = data[channel * item_bytes + byte :: stride]
        planes += plane
    return bytes(planes)
