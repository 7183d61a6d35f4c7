"""Messages of sensors: what they hold is read to the last bit, and what is broken is a typed error."""

from __future__ import annotations

import io
import json
import struct
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import SourceUnreadable
from mesh.pipelines.decoding import MAX_JSON_BYTES, MAX_PAYLOAD_BYTES, check_payload, decode_samples, point
from mesh.pipelines.pipeline_file import SourceRule

NOW = 1_700_000_000.0
AUDIO = SourceRule("audio", 1, 16000.0)
PACKED = SourceRule("float32", 3)
JSON = SourceRule("json", 2, None, "/values", "/ts")


def values_of(rule: SourceRule, payload: bytes) -> Any:
    return decode_samples(rule, payload, NOW).values


def wav(samples: Any, rate_hz: int = 16000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
def test_sound_comes_as_pcm_or_wav(samples: list[int]) -> None:
    expected = np.array(samples, np.float32)[:, None] / 32768
    np.testing.assert_array_equal(values_of(AUDIO, np.array(samples, "<i2").tobytes()), expected)
    np.testing.assert_array_equal(values_of(AUDIO, wav(samples)), expected)


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=20))
def test_packed_floats_come_back(rows: list[tuple[float, ...]]) -> None:
    array = np.array(rows, "<f4")
    np.testing.assert_array_equal(values_of(PACKED, array.tobytes()), array)


@given(st.integers(1, 99))
def test_a_wav_chunk_that_is_cut_off_is_refused(missing: int) -> None:
    with pytest.raises(SourceUnreadable):
        values_of(AUDIO, wav(range(50))[:-missing])


def test_a_wav_chunk_may_not_know_its_length() -> None:
    for length in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"):
        streamed = bytearray(wav(range(50)))
        streamed[40:44] = length
        assert len(values_of(AUDIO, bytes(streamed))) == 50


@pytest.mark.parametrize(
    ("code", "bits", "samples"),
    [
        (1, 16, np.array([0, 16384, -32768], "<i2")),
        (1, 24, np.array([0, 16384 << 16, -32768 << 16], "<i4").view(np.uint8).reshape(3, 4)[:, 1:]),
        (3, 32, np.array([0.0, 0.5, -1.0], "<f4")),
    ],
)
def test_a_wav_chunk_may_be_of_the_extensible_form(code: int, bits: int, samples: Any) -> None:
    rate, width = 16000, bits // 8
    told = struct.pack("<HHIIHHHHIH14s", 0xFFFE, 1, rate, rate * width, width, bits, 22, bits, 4, code, bytes(14))
    data = samples.tobytes()
    chunks = b"fmt " + struct.pack("<I", len(told)) + told + b"data" + struct.pack("<I", len(data)) + data
    chunk = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    np.testing.assert_array_equal(values_of(AUDIO, chunk), [[0.0], [0.5], [-1.0]])


def test_a_wav_chunk_of_floats_is_finite() -> None:
    told = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    chunk = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + told + b"data\4\0\0\0" + struct.pack("<f", float("nan"))
    with pytest.raises(SourceUnreadable, match="no finite numbers"):
        values_of(AUDIO, chunk)


def test_a_time_that_no_float_holds_is_refused() -> None:
    with pytest.raises(SourceUnreadable, match="/ts is 1000"):
        values_of(JSON, b'{"values": [1, 2], "ts": 1' + b"0" * 400 + b"}")


def test_json_has_rows_and_a_time() -> None:
    found = decode_samples(JSON, json.dumps({"ts": NOW - 5, "values": [[1, 2], [3, 4.5]]}).encode(), NOW)
    assert found.first_time_s == NOW - 5
    assert found.values.tolist() == [[1, 2], [3, 4.5]]
    assert values_of(SourceRule("json"), b"3.5").tolist() == [[3.5]]
    assert values_of(SourceRule("json"), b"[1, 2]").tolist() == [[1], [2]]


def test_pointers() -> None:
    document = {"a/b": {"~": [1, {"x": 2}]}}
    assert point(document, "") == document
    assert point(document, "/a~1b/~0/1/x") == 2
    for wrong in ("/b", "/a~1b/~0/2", "/a~1b/~0/x", "/a~1b/~0/1/x/y", "/a~1b/~0/" + "9" * 5000):
        with pytest.raises(SourceUnreadable, match="has no"):
            point(document, wrong)


BROKEN: list[tuple[SourceRule, bytes, str]] = [
    (AUDIO, b"", "empty"),
    (AUDIO, b"abc", "no whole samples"),
    (AUDIO, wav([1, 2])[:30], "format chunk is cut off"),
    (AUDIO, wav([1, 2], 8000), "8000 samples a second"),
    (AUDIO, b"RIFF", "not a WAV file"),
    (AUDIO, b"RIFF\0\0\0\0WAVE", "holds no samples"),
    (PACKED, b"abcd", "no whole rows of 3 float32"),
    (PACKED, np.array([1, np.nan, 2], "<f4").tobytes(), "no finite numbers"),
    (JSON, b"\xff", "not JSON"),
    (JSON, b"{", "not JSON"),
    (JSON, b"[" * 10_000, "not JSON"),
    (JSON, b'{"values": NaN, "ts": 1}', "NaN, which is not JSON"),
    (JSON, b'{"values": [1e400, 1], "ts": 1}', "too large"),
    (JSON, b'{"values": [1e39, 1], "ts": 1}', "too large"),
    (JSON, b'{"values": [1, ' + b"9" * 400 + b'], "ts": 1}', "too large"),
    (JSON, b'{"values": 1, "values": 2}', "a key twice"),
    (JSON, b'{"ts": 1}', "has no /values"),
    (JSON, b'{"values": [1, 2, 3]}', "no whole rows"),
    (JSON, b'{"values": [[1, 2], [3]]}', "a row of 1 values"),
    (JSON, b'{"values": [[1, "2"]]}', "must be numbers"),
    (JSON, b'{"values": [[1, true]]}', "must be numbers"),
    (JSON, b'{"values": []}', "must be numbers"),
    (JSON, b'{"values": [1, 2]}', "has no /ts"),
    (JSON, b'{"values": [1, 2], "ts": "now"}', "no unix time"),
    (JSON, b'{"values": [1, 2], "ts": 0}', "more than a week from now"),
    (JSON, b'{"values": [1, 2], "ts": 4102444800}', "more than a week from now"),
    (JSON, b" " * (MAX_JSON_BYTES + 1), "bytes of JSON, more than"),
]


@pytest.mark.parametrize(("rule", "payload", "said"), BROKEN)
def test_what_is_broken_is_told(rule: SourceRule, payload: bytes, said: str) -> None:
    with pytest.raises(SourceUnreadable, match=said):
        values_of(rule, payload)


@given(st.sampled_from([AUDIO, PACKED, JSON]), st.binary(max_size=200))
def test_no_bytes_do_anything_else(rule: SourceRule, payload: bytes) -> None:
    try:
        found = values_of(rule, payload)
    except SourceUnreadable:
        return
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_what_no_sensor_sends_is_refused_unread() -> None:
    with pytest.raises(SourceUnreadable, match="more than"):
        check_payload(bytes(MAX_PAYLOAD_BYTES + 1))
