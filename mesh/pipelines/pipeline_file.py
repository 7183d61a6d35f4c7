"""Pipeline files: what sensors publish, which model judges it, and what is told, written down as TOML.

`parse_pipelines` is pure: text in, frozen values out. Whatever is wrong ends in a `UsageError` that names the pipeline,
the table and the key. See docs/pipelines.md for what each key means.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.core.ids import check_name
from mesh.errors import UsageError
from mesh.pipelines.features import find_problem
from mesh.pipelines.toml_table import (
    Table,
    above_zero,
    one_of,
    read_finite,
    read_flag,
    read_host,
    read_labels,
    read_option,
    read_pointer,
    read_share,
    read_text,
    read_topic,
    whole,
)
from mesh.pipelines.windows import GapPolicy, WindowKind

MAX_FILE_CHARACTERS = 256 * 1024
MAX_PIPELINES = 64
MAX_WINDOW_SAMPLES = 10_000_000
"""Of all channels: ten minutes of sound; a window is held in memory for each source."""
MAX_CHANNELS = 64
MAX_RATE_HZ = 1_000_000.0

SOURCE_KINDS = ("image", "audio", "float32", "json")
OUTPUT_KINDS = ("labels", "boxes", "score", "raw")
FEATURES = ("none", "log-mel", "mfcc")
BOX_FORMATS = ("xyxy", "yolo")


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

    def size_in_samples(self, rate_hz: float | None) -> int | None:
        return _in_samples(self.size, self.size_s, rate_hz)

    def hop_in_samples(self, rate_hz: float | None) -> int | None:
        return _in_samples(self.hop, self.hop_s, rate_hz)


def _in_samples(samples: int | None, seconds: float | None, rate_hz: float | None) -> int | None:
    """May be 0, for seconds that are less than a sample."""
    if samples is not None or seconds is None or rate_hz is None:
        return samples
    return round(seconds * rate_hz)


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
    top: int | None = None
    """None for the best label, or for all boxes."""
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
    Table(document, "the pipeline file").refuse_unknown("pipeline", "mqtt")
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


def _parse_pipeline(values: Mapping[str, Any], number: int) -> Pipeline:
    name = values.get("name")
    top = Table(values, f"pipeline {name[:80]!r}" if isinstance(name, str) else f"pipeline number {number}")
    top.refuse_unknown("name", "model", "source", "window", "input", "output", "timeout_s")
    chosen = check_name(top.need("name", read_text), "pipeline")
    source = _parse_source(top.table("source"))
    is_picture = source.kind == "image"
    if is_picture and top.has("window"):
        raise UsageError(f"pipeline {chosen!r}: pictures have no [window]: each is a frame")
    window = None if is_picture else _parse_window(top.table("window"), source)
    return Pipeline(
        chosen,
        check_name(top.get("model", read_text, chosen), "deployment"),
        source,
        window,
        _parse_input(top.table("input"), source, window),
        _parse_output(top.table("output")),
        top.get("timeout_s", above_zero(3600.0), 10.0),
    )


def _parse_source(table: Table) -> SourceRule:
    table.refuse_unknown("kind", "channels", "rate_hz", "values", "time")
    kind = table.need("kind", one_of(SOURCE_KINDS))
    rate_hz: float | None = table.get("rate_hz", above_zero(MAX_RATE_HZ), 0.0) or None
    if kind == "audio" and rate_hz is None:
        rate_hz = 16000.0
    return SourceRule(
        kind,
        table.get("channels", whole(1, MAX_CHANNELS), 1),
        rate_hz,
        table.get("values", read_pointer, ""),
        table.get("time", read_pointer, ""),
    )


def _parse_window(table: Table, source: SourceRule) -> WindowSettings:
    table.refuse_unknown("kind", "size_s", "hop_s", "size", "hop", "gap")
    kind = WindowKind(table.get("kind", one_of([each.value for each in WindowKind]), WindowKind.TUMBLING.value))
    settings = WindowSettings(
        kind,
        table.get("size_s", above_zero(MAX_WINDOW_SAMPLES), 0.0) or None,
        table.get("hop_s", above_zero(MAX_WINDOW_SAMPLES), 0.0) or None,
        table.get("size", whole(1, MAX_WINDOW_SAMPLES), 0) or None,
        table.get("hop", whole(1, MAX_WINDOW_SAMPLES), 0) or None,
        GapPolicy(table.get("gap", one_of([each.value for each in GapPolicy]), GapPolicy.RESET.value)),
    )
    where = table.where
    if (settings.size_s or settings.hop_s) and source.rate_hz is None:
        raise UsageError(f"{where}: seconds need a rate", hint="give rate_hz in [source], or size and hop in samples")
    if (settings.size_s and settings.size) or (settings.hop_s and settings.hop):
        raise UsageError(f"{where}: give seconds or samples, not both")
    has_hop = settings.hop_s is not None or settings.hop is not None
    if has_hop != (kind is WindowKind.HOPPING):
        raise UsageError(f"{where}: a hopping window has a hop, and no other does")
    channels = 1 if source.kind == "audio" else source.channels  # of sound, the mean of them is held
    for what, samples in (
        ("size", settings.size_in_samples(source.rate_hz)),
        ("hop", settings.hop_in_samples(source.rate_hz)),
    ):
        if samples is not None and not 1 <= samples <= MAX_WINDOW_SAMPLES // channels:
            told = f"{samples} samples of {channels} channels" if channels > 1 else f"{samples} samples"
            raise UsageError(f"{where}: the {what} is {told}; from 1 to {MAX_WINDOW_SAMPLES // channels} can be")
    return settings


def _parse_input(table: Table, source: SourceRule, window: WindowSettings | None) -> InputRule:
    pictures = ("resize", "scale", "mean", "std", "layout")
    sounds = ("features", "frame_s", "step_s", "bands", "coefficients")
    table.refuse_unknown(*(pictures if source.kind == "image" else sounds))
    options = {key: table.get(key, read_option, "") for key in pictures if table.has(key)}
    features = table.get("features", one_of(FEATURES), "none")
    if features != "none" and source.rate_hz is None:
        raise UsageError(f"{table.where}: {features} needs a rate", hint="give rate_hz in [source]")
    if features != "none" and source.kind != "audio" and source.channels > 1:
        raise UsageError(f"{table.where}: {features} is of one channel, and the source has {source.channels}")
    rule = InputRule(
        options,
        features,
        table.get("frame_s", above_zero(10.0), 0.03),
        table.get("step_s", above_zero(10.0), 0.02),
        table.get("bands", whole(1, 512), 40),
        table.get("coefficients", whole(1, 512), 10),
    )
    if rule.coefficients > rule.bands:
        raise UsageError(f"{table.where}: {rule.coefficients} coefficients of {rule.bands} bands")
    size = None if window is None else window.size_in_samples(source.rate_hz)
    if features != "none" and source.rate_hz is not None and size is not None:
        problem = find_problem(size, source.rate_hz, rule.frame_s, rule.step_s, rule.bands)
        if problem:
            raise UsageError(f"{table.where}: {problem}")
    return rule


def _parse_output(table: Table) -> OutputRule:
    table.refuse_unknown("kind", "tensor", "labels", "top", "threshold", "softmax", "boxes", "overlap")
    return OutputRule(
        table.get("kind", one_of(OUTPUT_KINDS), "raw"),
        table.get("tensor", read_text, ""),
        table.get("labels", read_labels, ()),
        table.get("top", _read_top, None),
        table.get("threshold", read_finite, None),
        table.get("softmax", read_flag, False),
        table.get("boxes", one_of(BOX_FORMATS), "xyxy"),
        table.get("overlap", read_share, 0.5),
    )


def _read_top(value: object) -> int | None:
    return whole(1, 1000)(value)


def _parse_mqtt(values: object) -> MqttSettings:
    table = Table(values, "[mqtt]")
    keys = ("host", "port", "version", "prefix", "client_id", "username", "password_file", "home_assistant")
    table.refuse_unknown(*keys)
    return MqttSettings(
        table.get("host", read_host, "127.0.0.1"),
        table.get("port", whole(1, 65535), 1883),
        table.get("version", one_of(("3.1.1", "5")), "3.1.1"),
        table.get("prefix", read_topic, "mesh"),
        table.get("client_id", read_text, ""),
        table.get("username", read_text, ""),
        table.get("password_file", read_text, ""),
        table.get("home_assistant", read_topic, ""),
    )
