"""Messages to samples: sound, packed floats, JSON. Every byte comes from outside and is checked. Pure.

Samples are float32, n x channels, and finite. Pictures are decoded where they are prepared, by the client's own reader.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesh.arrays import Array
from mesh.client.sources.audio import PcmFormat
from mesh.client.sources.wav import read_layout
from mesh.errors import SourceUnreadable
from mesh.pipelines.pipeline_file import SourceRule

MAX_PAYLOAD_BYTES = 16 << 20
"""A picture of a large camera, or minutes of sound; far above what sensors publish."""

MAX_JSON_BYTES = 1 << 20
"""Text is ten times what it holds once read."""

MAX_CLOCK_ERROR_S = 7 * 24 * 3600.0
"""A sensor whose clock is off by more has none: 1970 after a power cut, or a time in other units."""

WAV_MAGIC = b"RIFF"


@dataclass(frozen=True, slots=True)
class Samples:
    values: Array
    """float32, n x channels."""
    first_time_s: float | None
    """Unix time of the first, where the message tells it."""


def decode_samples(rule: SourceRule, payload: bytes, now_unix_s: float) -> Samples:
    """What a message of `rule.kind` holds; raises `SourceUnreadable`, naming the field."""
    check_payload(payload)
    if rule.kind == "audio":
        return Samples(_decode_audio(rule, payload), None)
    if rule.kind == "float32":
        return Samples(_decode_packed(rule, payload), None)
    return _decode_json(rule, payload, now_unix_s)


def check_payload(payload: bytes) -> None:
    """Raise `SourceUnreadable` for an empty message and for one that no sensor sends."""
    if not payload:
        raise SourceUnreadable("the message is empty")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise SourceUnreadable(f"the message has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}")


def _decode_audio(rule: SourceRule, payload: bytes) -> Array:
    """16-bit PCM, or a WAV chunk with its own header; mono afterwards, -1..1 unless it is of floats."""
    pcm, data = PcmFormat(round(rule.rate_hz or 0), rule.channels, 2), payload
    if payload.startswith(WAV_MAGIC):
        try:
            layout = read_layout(io.BytesIO(payload), Path("the WAV chunk"))
        except SourceUnreadable as error:
            raise SourceUnreadable(error.message) from None  # without its hints, which are about files
        pcm = layout.format
        data = payload[layout.offset : layout.offset + layout.samples * pcm.frame_bytes]
        if pcm.sample_rate_hz != rule.rate_hz:
            raise SourceUnreadable(f"the WAV file has {pcm.sample_rate_hz} samples a second, {rule.rate_hz:g} are due")
    if not data or len(data) % pcm.frame_bytes:
        raise SourceUnreadable(f"{len(data)} bytes of sound are no whole samples of {pcm.frame_bytes} bytes")
    values = np.array(pcm.decode_mono(data), np.float32)[:, None]
    if not np.isfinite(values).all():
        raise SourceUnreadable("the message has values that are no finite numbers")
    return values


def _decode_packed(rule: SourceRule, payload: bytes) -> Array:
    row_bytes = 4 * rule.channels
    if len(payload) % row_bytes:
        raise SourceUnreadable(f"{len(payload)} bytes are no whole rows of {rule.channels} float32 ({row_bytes} bytes)")
    values = np.frombuffer(payload, "<f4").reshape(-1, rule.channels)
    if not np.isfinite(values).all():
        raise SourceUnreadable("the message has values that are no finite numbers")
    return values.astype(np.float32, copy=False)


def _decode_json(rule: SourceRule, payload: bytes, now_unix_s: float) -> Samples:
    if len(payload) > MAX_JSON_BYTES:
        raise SourceUnreadable(f"the message has {len(payload)} bytes of JSON, more than {MAX_JSON_BYTES}")
    try:
        document = json.loads(
            payload.decode(), parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice, parse_float=_finite
        )
    except SourceUnreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise SourceUnreadable(f"the message is not JSON: {str(error)[:200]}") from None
    values = _rows(point(document, rule.values), rule.channels, rule.values or "the document")
    time_s: float | None = None
    if rule.time:
        told = point(document, rule.time)
        if isinstance(told, bool) or not isinstance(told, int | float):
            raise SourceUnreadable(f"{rule.time} is {str(told)[:40]!r}, no unix time in seconds")
        # Without subtracting: a whole number may be too large for a float.
        if not now_unix_s - MAX_CLOCK_ERROR_S <= told <= now_unix_s + MAX_CLOCK_ERROR_S:
            raise SourceUnreadable(
                f"{rule.time} is {str(told)[:40]}, more than a week from now",
                hint="set the sensor's clock; the unit is seconds",
            )
        time_s = float(told)
    return Samples(values, time_s)


def point(document: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) points to; raises `SourceUnreadable` where there is nothing."""
    found = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isascii() and key.isdecimal() and int(key[:9]) < len(found):
            found = found[int(key[:9])]
        else:
            raise SourceUnreadable(f"the message has no {pointer}")
    return found


def _rows(value: Any, channels: int, where: str) -> Array:
    """A number, a list of numbers, or a list of rows of `channels` numbers."""
    listed = value if isinstance(value, list) else [value]
    flat: list[Any] = []
    for row in listed:
        if isinstance(row, list):
            if len(row) != channels:
                raise SourceUnreadable(f"{where} has a row of {len(row)} values, {channels} are due")
            flat.extend(row)
        else:
            flat.append(row)
    if not flat or any(isinstance(each, bool) or not isinstance(each, int | float) for each in flat):
        raise SourceUnreadable(f"{where} must be numbers, or rows of {channels} numbers")
    if len(flat) % channels:
        raise SourceUnreadable(f"{where} has {len(flat)} values, no whole rows of {channels}")
    try:
        with np.errstate(over="ignore"):
            rows = np.array(flat, np.float32).reshape(-1, channels)
    except OverflowError:
        raise SourceUnreadable(f"{where} has a number that is too large") from None
    if not np.isfinite(rows).all():
        raise SourceUnreadable(f"{where} has a number that is too large")
    return rows


def _refuse_constant(name: str) -> Any:
    raise SourceUnreadable(f"the message has {name}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise SourceUnreadable(f"the message has {text[:40]}, which is too large")
    return value


def _refuse_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise SourceUnreadable("the message has a key twice")
    return document
