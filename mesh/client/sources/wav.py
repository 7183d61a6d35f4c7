"""`wav:FILE.wav`: windows of a recording.

Options: `window` and `hop` in seconds, `tail=pad|drop|error`, `sample_rate` (refuse a file of another rate; nothing is
resampled). Reads PCM of 8, 16, 24 and 32 bits and 32-bit float, also in the extensible form that recorders and ffmpeg
write for 24 bits, which the standard library's reader refuses. Reads as it goes: memory is one window, not the file.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mesh.client.sources.audio import MAX_CHANNELS, MAX_SAMPLE_RATE_HZ, PcmFormat, plan_windows
from mesh.client.sources.contract import IteratorSource, Source, SourceFrame, SourceRequest, single_input
from mesh.client.sources.files import open_file
from mesh.errors import SourceUnreadable, TensorMismatch, UsageError

OPTIONS = ("window", "hop", "tail", "sample_rate")
HELP = "wav:FILE.wav[?window=S&hop=S&tail=pad|drop|error&sample_rate=HZ]\n    windows of a recording, mono, -1..1"

MAX_CHUNKS = 1024
"""Chunks before the samples in any honest file are a handful; bounds the walk through a damaged one."""

UNKNOWN_LENGTH = 0x7FFF0000
"""From here on a length means "not known when the header was written": ffmpeg leaves 0xFFFFFFFF, sox 0x7FFFFFFF."""

_RIFF = struct.Struct("<4sI4s")
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SUBFORMAT_OFFSET = 24
"""Where the extensible form keeps the real format code."""


@dataclass(frozen=True, slots=True)
class WavLayout:
    """Where the samples of a file are: `samples` of each channel from byte `offset`."""

    format: PcmFormat
    offset: int
    samples: int


def open_wav(request: SourceRequest) -> Source:
    """A source of windows; raises `NotFound`, `SourceUnreadable`, `UsageError` or `TensorMismatch`."""
    path = request.url.file
    spec = single_input(request, "audio")
    with open_file(path) as file:
        layout = read_layout(file, path)
    rate = layout.format.sample_rate_hz
    wanted_rate = request.url.integer("sample_rate", minimum=1)
    if wanted_rate is not None and wanted_rate != rate:
        raise TensorMismatch(
            f"{path}: is sampled at {rate} Hz, {wanted_rate} Hz is wanted",
            hint=f"resample it: ffmpeg -i {path.name} -ar {wanted_rate} out.wav",
        )
    windowing = plan_windows(request.url, spec, rate)
    count = windowing.count(layout.samples)
    if windowing.tail == "error" and windowing.leaves_rest(layout.samples):
        raise TensorMismatch(
            f"{path}: {layout.samples} samples are no whole number of windows of {windowing.window}",
            hint="?tail=pad fills up with silence, ?tail=drop leaves the rest out",
        )
    if count == 0:
        raise UsageError(
            f"{path}: {layout.samples} samples are less than one window of {windowing.window}",
            hint="?tail=pad fills up with silence",
        )

    def produce() -> Generator[SourceFrame, None, None]:
        with open_file(path) as file:
            file.seek(layout.offset)
            left = layout.samples

            def read(samples: int) -> Sequence[float]:
                nonlocal left
                take = min(samples, left)
                data = file.read(take * layout.format.frame_bytes)
                if len(data) < take * layout.format.frame_bytes:
                    raise SourceUnreadable(f"{path}: became shorter while it was read")
                left -= take
                return layout.format.decode_mono(data)

            for start, tensor in windowing.cut(read, str(path)):
                yield SourceFrame((tensor,), f"{path.name}@{start / rate:.6f}s")

    return IteratorSource(produce, frame_count=count, natural_rate_hz=rate / windowing.hop)


def read_layout(file: BinaryIO, path: Path) -> WavLayout:
    """Walk the chunks of a RIFF/WAVE file; raises `SourceUnreadable` for what is none, damaged or compressed."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_RIFF.size)
    if len(head) < _RIFF.size or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise SourceUnreadable(
            f"{path}: not a WAV file", hint=f"convert it: ffmpeg -i {path.name} -ac 1 -c:a pcm_s16le out.wav"
        )
    pcm: PcmFormat | None = None
    for _ in range(MAX_CHUNKS):
        header = file.read(_CHUNK.size)
        if len(header) < _CHUNK.size:
            break
        name, length = _CHUNK.unpack(header)
        here = file.tell()
        if name == b"fmt ":
            pcm = _read_format(file.read(min(length, 64)), path)
        elif name == b"data":
            if pcm is None:
                raise SourceUnreadable(f"{path}: the samples come before their format")
            return _place(pcm, here, length, size, path)
        file.seek(here + length + (length & 1))
    raise SourceUnreadable(f"{path}: holds no samples")


def _place(pcm: PcmFormat, offset: int, length: int, size: int, path: Path) -> WavLayout:
    # Writers to a pipe cannot know the length and leave a number near the largest; then the file's end counts.
    if length >= UNKNOWN_LENGTH:
        length = size - offset
    if offset + length > size:
        raise SourceUnreadable(
            f"{path}: ends {offset + length - size} bytes before the end of its samples", hint="copy the file again"
        )
    samples = length // pcm.frame_bytes
    if samples == 0:
        raise SourceUnreadable(f"{path}: holds no samples")
    return WavLayout(pcm, offset, samples)


def _read_format(data: bytes, path: Path) -> PcmFormat:
    if len(data) < _FORMAT.size:
        raise SourceUnreadable(f"{path}: its format chunk is cut off")
    code, channels, rate, _, align, bits = _FORMAT.unpack_from(data)
    if code == _EXTENSIBLE and len(data) >= _SUBFORMAT_OFFSET + 2:
        (code,) = struct.unpack_from("<H", data, _SUBFORMAT_OFFSET)
    if (code, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)}:
        raise SourceUnreadable(
            f"{path}: is no PCM of 8, 16, 24 or 32 bits (format {code}, {bits} bits)",
            hint=f"convert it: ffmpeg -i {path.name} -c:a pcm_s16le out.wav",
        )
    if not 1 <= channels <= MAX_CHANNELS or not 1 <= rate <= MAX_SAMPLE_RATE_HZ or align != channels * bits // 8:
        raise SourceUnreadable(f"{path}: its header makes no sense ({channels} channels, {rate} Hz, {align} bytes)")
    return PcmFormat(rate, channels, bits // 8, code == _FLOAT)
