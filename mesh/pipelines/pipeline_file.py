"""Pipeline files: what sensors publish, which model judges it, and what is told, written down as TOML.

`parse_pipelines` is pure: text in, frozen values out. Whatever is wrong ends in a `UsageError` that names the pipeline,
the table and the key. See docs/pipelines.md for what each key means.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mesh.core.ids import check_name
from mesh.errors import UsageError
from mesh.pipelines.windows import GapPolicy, WindowKind

MAX_FILE_CHARACTERS = 256 * 1024
MAX_PIPELINES = 64
MAX_WINDOW_SAMPLES = 10_000_000
"""Ten minutes of sound; a window is held in memory for each source."""
MAX_CHANNELS = 64
MAX_RATE_HZ = 1_000_000.0
MAX_LABELS = 100_000

SOURCE_KINDS = ("image", "audio", "float32", "json")
OUTPUT_KINDS = ("labels", "boxes", "score", "raw")
FEATURES = ("none", "log-mel", "mfcc")
BOX_FORMATS = ("xyxy", "yolo")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class SourceRule:
    """What a message holds. `channels` and `rate_hz` are of samples: sound and other signals."""

    kind: str
    channels: int = 1
    rate_hz: float | None = None
    values: str = ""
    """JSON: a pointer (RFC 6901) to the samples; empty for the whole document."""
    time: str = ""
    """JSON: a pointer to the unix time in seconds of the first sample; empty where there is none."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    kind: WindowKind = WindowKind.TUMBLING
    size_s: float | None = None
    hop_s: float | None = None
    size: int | None = None
    """In samples; it or `size_s`, and neither where the model fixes it."""
    hop: int | None = None
    gap: GapPolicy = GapPolicy.RESET


@dataclass(frozen=True, slots=True)
class InputRule:
    """How a picture or a window becomes the model's tensor."""

    options: Mapping[str, str]
    """Of pictures, as in `mesh stream --source images:`: resize, scale, mean, std, layout."""
    features: str = "none"
    frame_s: float = 0.03
    step_s: float = 0.02
    bands: int = 40
    coefficients: int = 10


@dataclass(frozen=True, slots=True)
class OutputRule:
    kind: str = "raw"
    tensor: str = ""
    """Which output is judged; empty for the only one."""
    labels: tuple[str, ...] = ()
    top: int = 1
    threshold: float | None = None
    softmax: bool = False
    boxes: str = "xyxy"
    overlap: float = 0.5
    """Boxes of one label that overlap more (intersection over union) are one."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    name: str
    model: str
    source: SourceRule
    window: WindowSettings | None
    """None for pictures: each is a frame."""
    input: InputRule
    output: OutputRule
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class MqttSettings:
    host: str = "127.0.0.1"
    port: int = 1883
    version: str = "3.1.1"
    prefix: str = "mesh"
    client_id: str = ""
    username: str = ""
    password_file: str = ""
    home_assistant: str = ""
    """Home Assistant's discovery prefix, commonly "homeassistant"; empty for no discovery."""


@dataclass(frozen=True, slots=True)
class PipelineFile:
    pipelines: tuple[Pipeline, ...]
    mqtt: MqttSettings | None


def parse_pipelines(text: str) -> PipelineFile:
    """What `text` (TOML) describes; raises `UsageError`."""
    if len(text) > MAX_FILE_CHARACTERS:
        raise UsageError(f"a pipeline file has at most {MAX_FILE_CHARACTERS} characters, this one has {len(text)}")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the pipeline file is not TOML: {str(error)[:200]}") from None
    _Table(document, "the pipeline file").refuse_unknown("pipeline", "mqtt")
    tables = document.get("pipeline")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError("the file describes no pipelines", hint="write a [[pipeline]] table for each")
    if len(tables) > MAX_PIPELINES:
        raise UsageError(f"a file has at most {MAX_PIPELINES} pipelines, this one has {len(tables)}")
    pipelines = tuple(_parse_pipeline(table, number) for number, table in enumerate(tables, start=1))
    names = [pipeline.name for pipeline in pipelines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two pipelines are called {twice[0]!r}")
    mqtt = document.get("mqtt")
    return PipelineFile(pipelines, None if mqtt is None else _parse_mqtt(mqtt))


class _Table:
    """A TOML table whose errors say where they are."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise UsageError(f"{where} must be a table")
        self._values: dict[str, Any] = values
        self.where = where

    def refuse_unknown(self, *known: str) -> None:
        for key in self._values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise UsageError(f"{self.where}: unknown key {key[:80]!r}", hint=hint)

    def get(self, key: str, read: Callable[[object], Value], default: Value) -> Value:
        return self._read(key, read) if key in self._values else default

    def _read(self, key: str, read: Callable[[object], Value]) -> Value:
        try:
            return read(self._values[key])
        except ValueError as error:
            raise UsageError(f"{self.where}: {key!r} {error}") from None

    def need(self, key: str, read: Callable[[object], Value]) -> Value:
        if key not in self._values:
            raise UsageError(f"{self.where}: {key!r} is missing")
        return self._read(key, read)

    def table(self, key: str) -> _Table:
        return _Table(self._values.get(key, {}), f"{self.where}, [{key}]")

    def has(self, key: str) -> bool:
        return key in self._values


def _parse_pipeline(values: Mapping[str, Any], number: int) -> Pipeline:
    name = values.get("name")
    top = _Table(values, f"pipeline {name[:80]!r}" if isinstance(name, str) else f"pipeline number {number}")
    top.refuse_unknown("name", "model", "source", "window", "input", "output", "timeout_s")
    chosen = check_name(top.need("name", _text), "pipeline")
    source = _parse_source(top.table("source"))
    is_picture = source.kind == "image"
    if is_picture and top.has("window"):
        raise UsageError(f"pipeline {chosen!r}: pictures have no [window]: each is a frame")
    return Pipeline(
        chosen,
        check_name(top.get("model", _text, chosen), "deployment"),
        source,
        None if is_picture else _parse_window(top.table("window"), source),
        _parse_input(top.table("input"), source),
        _parse_output(top.table("output")),
        top.get("timeout_s", _above_zero(3600.0), 10.0),
    )


def _parse_source(table: _Table) -> SourceRule:
    table.refuse_unknown("kind", "channels", "rate_hz", "values", "time")
    kind = table.need("kind", _one_of(SOURCE_KINDS))
    rate_hz: float | None = table.get("rate_hz", _above_zero(MAX_RATE_HZ), 0.0) or None
    if kind == "audio" and rate_hz is None:
        rate_hz = 16000.0
    return SourceRule(
        kind,
        table.get("channels", _whole(1, MAX_CHANNELS), 1),
        rate_hz,
        table.get("values", _pointer, ""),
        table.get("time", _pointer, ""),
    )


def _parse_window(table: _Table, source: SourceRule) -> WindowSettings:
    table.refuse_unknown("kind", "size_s", "hop_s", "size", "hop", "gap")
    kind = WindowKind(table.get("kind", _one_of([each.value for each in WindowKind]), WindowKind.TUMBLING.value))
    settings = WindowSettings(
        kind,
        table.get("size_s", _above_zero(MAX_WINDOW_SAMPLES), 0.0) or None,
        table.get("hop_s", _above_zero(MAX_WINDOW_SAMPLES), 0.0) or None,
        table.get("size", _whole(1, MAX_WINDOW_SAMPLES), 0) or None,
        table.get("hop", _whole(1, MAX_WINDOW_SAMPLES), 0) or None,
        GapPolicy(table.get("gap", _one_of([each.value for each in GapPolicy]), GapPolicy.RESET.value)),
    )
    where = table.where
    if (settings.size_s or settings.hop_s) and source.rate_hz is None:
        raise UsageError(f"{where}: seconds need a rate", hint="give rate_hz in [source], or size and hop in samples")
    if (settings.size_s and settings.size) or (settings.hop_s and settings.hop):
        raise UsageError(f"{where}: give seconds or samples, not both")
    has_hop = settings.hop_s is not None or settings.hop is not None
    if has_hop != (kind is WindowKind.HOPPING):
        raise UsageError(f"{where}: a hopping window has a hop, and no other does")
    return settings


def _parse_input(table: _Table, source: SourceRule) -> InputRule:
    pictures = ("resize", "scale", "mean", "std", "layout")
    sounds = ("features", "frame_s", "step_s", "bands", "coefficients")
    table.refuse_unknown(*(pictures if source.kind == "image" else sounds))
    options = {key: table.get(key, _option, "") for key in pictures if table.has(key)}
    features = table.get("features", _one_of(FEATURES), "none")
    if features != "none" and source.rate_hz is None:
        raise UsageError(f"{table.where}: {features} needs a rate", hint="give rate_hz in [source]")
    rule = InputRule(
        options,
        features,
        table.get("frame_s", _above_zero(10.0), 0.03),
        table.get("step_s", _above_zero(10.0), 0.02),
        table.get("bands", _whole(1, 512), 40),
        table.get("coefficients", _whole(1, 512), 10),
    )
    if rule.coefficients > rule.bands:
        raise UsageError(f"{table.where}: {rule.coefficients} coefficients of {rule.bands} bands")
    return rule


def _parse_output(table: _Table) -> OutputRule:
    table.refuse_unknown("kind", "tensor", "labels", "top", "threshold", "softmax", "boxes", "overlap")
    return OutputRule(
        table.get("kind", _one_of(OUTPUT_KINDS), "raw"),
        table.get("tensor", _text, ""),
        table.get("labels", _labels, ()),
        table.get("top", _whole(1, 1000), 1),
        table.get("threshold", _finite, None),
        table.get("softmax", _flag, False),
        table.get("boxes", _one_of(BOX_FORMATS), "xyxy"),
        table.get("overlap", _share, 0.5),
    )


def _parse_mqtt(values: object) -> MqttSettings:
    table = _Table(values, "[mqtt]")
    keys = ("host", "port", "version", "prefix", "client_id", "username", "password_file", "home_assistant")
    table.refuse_unknown(*keys)
    return MqttSettings(
        table.get("host", _host, "127.0.0.1"),
        table.get("port", _whole(1, 65535), 1883),
        table.get("version", _one_of(("3.1.1", "5")), "3.1.1"),
        table.get("prefix", _topic, "mesh"),
        table.get("client_id", _text, ""),
        table.get("username", _text, ""),
        table.get("password_file", _text, ""),
        table.get("home_assistant", _topic, ""),
    )


# Values: each reader raises `ValueError` saying what was wanted --------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096 or "\0" in value:
        raise ValueError("must be a text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def _finite(value: object) -> float | None:
    return _number(value)


def _share(value: object) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError("must be from 0 to 1")
    return number


def _above_zero(most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        number = _number(value)
        if not 0 < number <= most:
            raise ValueError(f"must be above 0 and at most {most:g}")
        return number

    return read


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return read


def _one_of(allowed: Sequence[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return read


def _labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_LABELS or not all(isinstance(label, str) for label in value):
        raise ValueError(f"must be a list of at most {MAX_LABELS} texts")
    return tuple(value)


def _pointer(value: object) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")):
        raise ValueError('must be a JSON pointer such as "/values"')
    return value


def _host(value: object) -> str:
    text = _text(value)
    try:
        text.encode("idna")
    except UnicodeError:
        raise ValueError("must be a host name or an address") from None
    return text


def _topic(value: object) -> str:
    text = _text(value)
    if any(character in text for character in "#+\0") or text[0] in "/$" or text.endswith("/"):
        raise ValueError('must be the beginning of a topic, such as "mesh"')
    return text


def _option(value: object) -> str:
    """A picture option as it is written in a source's URL."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list):
        return ",".join(repr(_number(each)) for each in value)
    return value if isinstance(value, str) else repr(_number(value))
