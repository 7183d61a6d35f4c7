from __future__ import annotations

import io
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.client.sources import SourceFrame, open_source
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MeshError, NotFound, SourceUnreadable, TensorMismatch, UsageError

FIXED = TensorSpec("audio", DType.FLOAT32, (1, 4))
OPEN = TensorSpec("audio", DType.FLOAT32, ("batch", "samples"))


def write_wav(path: Path, samples: Any, *, rate: int = 8, channels: int = 1, width: int = 2) -> Path:
    raw = {
        1: lambda: (np.asarray(samples) + 128).astype(np.uint8).tobytes(),
        2: lambda: np.asarray(samples, "<i2").tobytes(),
        3: lambda: b"".join(int(value).to_bytes(3, "little", signed=True) for value in samples),
        4: lambda: np.asarray(samples, "<i4").tobytes(),
    }[width]()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


def riff(format_chunk: bytes, data: bytes, *, claimed: int | None = None, before: bytes = b"") -> bytes:
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(format_chunk)) + format_chunk
    body += b"data" + struct.pack("<I", len(data) if claimed is None else claimed) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pcm_chunk(code: int = 1, channels: int = 1, rate: int = 8, bits: int = 16) -> bytes:
    align = channels * bits // 8
    return struct.pack("<HHIIHH", code, channels, rate, rate * align, align, bits)


def read(url: str | Path, spec: TensorSpec, stdin: bytes | None = None) -> list[SourceFrame]:
    return list(open_source(str(url), [spec], stdin=None if stdin is None else io.BytesIO(stdin)).frames())


def values(frames: list[SourceFrame]) -> list[list[float]]:
    return [np.frombuffer(f.tensors[0].data, np.dtype(f.tensors[0].dtype.label)).tolist() for f in frames]


@pytest.mark.parametrize(("width", "full"), [(1, 1 << 7), (2, 1 << 15), (3, 1 << 23), (4, 1 << 31)])
def test_every_width_is_scaled_to_one(tmp_path: Path, width: int, full: int) -> None:
    path = write_wav(tmp_path / "a.wav", [-full, full // 2, 0, full - 1], width=width)
    ((low, half, zero, high),) = values(read(path, FIXED))
    assert (low, half, zero) == (-1.0, 0.5, 0.0)
    assert high == pytest.approx((full - 1) / full, rel=1e-7)


def test_channels_are_mixed_by_their_mean(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [16384, -16384, 16384, 0, 32767, 32767, 0, 0], channels=2)
    assert values(read(path, FIXED)) == [[0.0, 0.25, pytest.approx(32767 / 32768), 0.0]]
    path = write_wav(tmp_path / "b.wav", [64, -64, 64, 0, 0, 0, 0, 0], channels=2, width=1)
    assert values(read(path, FIXED)) == [[0.0, 0.25, 0.0, 0.0]]


def test_a_model_of_int16_gets_the_samples_untouched(tmp_path: Path) -> None:
    samples = [-32768, -1, 12345, 32767]
    path = write_wav(tmp_path / "a.wav", samples)
    assert values(read(path, TensorSpec("audio", DType.INT16, (4,)))) == [samples]


def test_windows_hop_and_the_rest_is_padded_dropped_or_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [n << 8 for n in range(7)], rate=8)
    scale = 128.0

    def windows(query: str) -> list[list[float]]:
        return [[value * scale for value in row] for row in values(read(f"{path}?{query}", FIXED))]

    assert windows("tail=drop") == [[0, 1, 2, 3]]
    assert windows("tail=pad") == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert windows("hop=0.25") == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 0]]
    assert windows("hop=0.25&tail=drop") == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert windows("hop=0.375&tail=error") == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert windows("hop=0.75") == [[0, 1, 2, 3], [6, 0, 0, 0]]
    assert windows("hop=0.875&tail=error") == [[0, 1, 2, 3]]
    with pytest.raises(TensorMismatch, match="no whole number of windows"):
        open_source(f"{path}?tail=error", [FIXED])


@given(
    samples=st.integers(1, 40), hop=st.integers(1, 12), window=st.integers(1, 10), tail=st.sampled_from(["pad", "drop"])
)
def test_the_promised_count_is_kept_and_pipe_and_file_agree(
    tmp_path_factory: pytest.TempPathFactory, samples: int, hop: int, window: int, tail: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "law.wav"
    write_wav(path, range(1, samples + 1), rate=1000)
    query = f"window={window / 1000}&hop={hop / 1000}&tail={tail}"
    raw = np.arange(1, samples + 1, dtype="<i2").tobytes()
    piped = read(f"stdin:?format=pcm_s16le&sample_rate=1000&{query}", OPEN, raw)
    try:
        source = open_source(f"{path}?{query}", [OPEN])
    except UsageError:
        assert piped == [] and samples < window and tail == "drop"
        return
    frames = list(source.frames())
    assert source.frame_count == len(frames) > 0
    assert source.natural_rate_hz == pytest.approx(1000 / hop)
    assert [frame.tensors for frame in frames] == [frame.tensors for frame in piped]
    heard = {round(value * 32768) for row in values(frames) for value in row} - {0}
    if tail == "pad" and hop <= window:
        assert heard == set(range(1, samples + 1))


def test_open_models_take_the_window_in_seconds(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", range(16), rate=8)
    frames = read(f"{path}?window=1.5&tail=drop", OPEN)
    assert [frame.tensors[0].shape for frame in frames] == [(1, 12)]
    assert read(path, TensorSpec("a", DType.FLOAT32, (1, 1, 8)))[1].origin == "a.wav@1.000000s"
    assert read(path, TensorSpec("a", DType.FLOAT32, (1, 8, 1)))[0].tensors[0].shape == (1, 8, 1)
    assert read(f"{path}?window=1", TensorSpec("a", DType.FLOAT32, None))[0].tensors[0].shape == (1, 8)
    with pytest.raises(UsageError, match=r"\?window=1.0"):
        open_source(str(path), [OPEN])


@pytest.mark.parametrize(
    ("spec", "query", "error", "said"),
    [
        (
            FIXED,
            "window=1",
            TensorMismatch,
            "1.0 s is 8 samples at 8 Hz, the model wants 4 .*resample the audio to 4 Hz",
        ),
        (FIXED, "window=nan", UsageError, "window="),
        (FIXED, "hop=-1", UsageError, "hop="),
        (FIXED, "hop=0.001", UsageError, "at least one sample"),
        (FIXED, "tail=cut", UsageError, "one of pad, drop, error"),
        (FIXED, "rate=8", UsageError, "unknown option 'rate'"),
        (FIXED, "sample_rate=16000", TensorMismatch, "is sampled at 8 Hz.*ffmpeg -i a.wav -ar 16000"),
        (TensorSpec("a", DType.FLOAT32, (1, 40, 101)), "", TensorMismatch, "one axis of samples"),
        (TensorSpec("a", DType.FLOAT32, ()), "", TensorMismatch, "one axis of samples"),
        (TensorSpec("a", DType.INT64, (1, 4)), "", TensorMismatch, "int64"),
        (TensorSpec("a", DType.FLOAT32, (1, 100)), "tail=drop", UsageError, "less than one window"),
        (OPEN, "window=1e9", UsageError, "larger than a tensor"),
    ],
)
def test_what_does_not_fit_is_refused_at_opening(
    tmp_path: Path, spec: TensorSpec, query: str, error: type[MeshError], said: str
) -> None:
    path = write_wav(tmp_path / "a.wav", range(16), rate=8)
    with pytest.raises(error, match=said):
        open_source(f"{path}?{query}", [spec])


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", range(16))
    with pytest.raises(TensorMismatch, match="2 inputs"):
        open_source(str(path), [FIXED, OPEN])


def test_the_forms_that_recorders_write_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    floats = np.array([0.5, -0.25, 0, 1], "<f4").tobytes()
    path.write_bytes(riff(pcm_chunk(code=3, bits=32), floats))
    assert values(read(path, FIXED)) == [[0.5, -0.25, 0.0, 1.0]]
    shorts = struct.pack("<4h", 16384, 0, 0, -32768)
    extensible = pcm_chunk(code=0xFFFE) + struct.pack("<HHIH", 22, 16, 4, 1) + b"\0" * 14
    odd_chunk = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    path.write_bytes(riff(extensible, shorts, before=odd_chunk))
    assert values(read(path, FIXED)) == [[0.5, 0.0, 0.0, -1.0]]
    path.write_bytes(riff(pcm_chunk(), shorts, claimed=0xFFFFFFFF))  # written to a pipe
    assert values(read(path, FIXED)) == [[0.5, 0.0, 0.0, -1.0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a WAV file"),
        (b"OggS" + b"\0" * 60, "not a WAV file"),
        (riff(pcm_chunk(), b"\0" * 8)[:30], "holds no samples|cut off"),
        (riff(pcm_chunk(), b""), "holds no samples"),
        (riff(pcm_chunk(), b"\0" * 8, claimed=800), "ends 792 bytes before"),
        (riff(pcm_chunk(code=85), b"\0" * 8), "no PCM"),
        (riff(pcm_chunk(bits=12), b"\0" * 8), "no PCM"),
        (riff(pcm_chunk(channels=0), b"\0" * 8), "header makes no sense"),
        (riff(pcm_chunk(rate=0), b"\0" * 8), "header makes no sense"),
        (riff(pcm_chunk(channels=65), b"\0" * 8), "header makes no sense"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 3000, "holds no samples"),
        (b"RIFF\0\0\0\0WAVEdata\x08\0\0\0" + b"\0" * 8, "before their format"),
    ],
)
def test_damaged_files_are_refused_at_opening(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(SourceUnreadable, match=said):
        open_source(str(tmp_path / "a.wav"), [FIXED])


@given(content=st.binary(max_size=80), cut=st.integers(0, 60))
def test_no_header_is_a_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.wav"
    path.write_bytes(riff(pcm_chunk(), b"\0" * 8)[:cut] + content)
    try:
        list(open_source(str(path), [FIXED]).frames())
    except MeshError:
        return


def test_missing_files_and_files_that_shrink_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_source(str(tmp_path / "no.wav"), [FIXED])
    path = write_wav(tmp_path / "a.wav", range(16))
    frames = open_source(str(path), [FIXED]).frames()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SourceUnreadable, match="became shorter"):
        list(frames)


def test_audio_on_a_pipe(tmp_path: Path) -> None:
    stereo = np.array([[16384, 0], [0, 0], [0, 0], [0, 0], [8192, 8192]], "<i2").tobytes()
    frames = read("stdin:?format=pcm_s16le&channels=2", FIXED, stereo)
    assert values(frames) == [[0.25, 0, 0, 0], [0.25, 0, 0, 0]]
    assert frames[1].origin == "stdin@0.000250s"
    assert len(read("-?format=pcm_s16le&channels=2&tail=drop", FIXED, stereo)) == 1
    for short in (stereo, stereo[:18]):
        with pytest.raises(TensorMismatch, match=r"window of 4|inside a sample"):
            read("stdin:?format=pcm_s16le&channels=2&tail=error", FIXED, short)


@pytest.mark.parametrize(
    "query",
    ["format=mp3", "format=pcm_s16le&scale=2", "format=pcm_s16le&channels=65", "format=pcm_s16le&sample_rate=1e3"],
)
def test_options_of_piped_audio_are_checked(query: str) -> None:
    with pytest.raises(UsageError):
        open_source(f"stdin:?{query}", [FIXED], stdin=io.BytesIO())
