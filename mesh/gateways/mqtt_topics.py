"""Topics of the MQTT gateway, and what Home Assistant is told of them. Pure.

PREFIX/in/PIPELINE/SOURCE        a sensor's messages
PREFIX/out/PIPELINE/SOURCE       one JSON document per result
PREFIX/error/PIPELINE/SOURCE     one JSON document per message that got none: why
PREFIX/bridge/state              "online" or "offline", retained; the broker says "offline" for a gateway that died
PREFIX/bridge/info               counters, retained
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from mesh import __version__

ONLINE, OFFLINE = "online", "offline"

NAME_PATTERN = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Of pipelines and sources in topics: what goes through every broker, and into Home Assistant's ids."""

MAX_TOPIC_BYTES = 65535
"""MQTT's own limit."""


@dataclass(frozen=True, slots=True)
class Topics:
    prefix: str

    @property
    def samples(self) -> str:
        """What to subscribe to."""
        return f"{self.prefix}/in/+/+"

    @property
    def state(self) -> str:
        return f"{self.prefix}/bridge/state"

    @property
    def info(self) -> str:
        return f"{self.prefix}/bridge/info"

    def result(self, pipeline: str, source: str) -> str:
        return f"{self.prefix}/out/{pipeline}/{source}"

    def error(self, pipeline: str, source: str) -> str:
        return f"{self.prefix}/error/{pipeline}/{source}"

    def read_sample(self, topic: str) -> tuple[str, str] | None:
        """Pipeline and source of a topic; None where it is no sample's, or has names that cannot be."""
        start = f"{self.prefix}/in/"
        parts = topic[len(start) :].split("/") if topic.startswith(start) else []
        if len(parts) != 2 or not all(NAME_PATTERN.fullmatch(part) for part in parts):
            return None
        return parts[0], parts[1]

    def may_answer_at(self, topic: str) -> bool:
        """Whether an answer may go to a message's response topic.

        A topic with wildcards is none, and who may publish samples may not thereby speak as a sensor or as the gateway.
        """
        is_topic = not any(character in topic for character in "#+\0") and len(topic.encode()) <= MAX_TOPIC_BYTES
        return is_topic and not topic.startswith(("$", f"{self.prefix}/in/", f"{self.prefix}/bridge/"))


def home_assistant_device(topics: Topics, discovery: str, pipeline: str, source: str, kind: str) -> tuple[str, bytes]:
    """Topic and retained message that make a device of a source, with a sensor for what the pipeline tells.

    Form: Home Assistant's MQTT device discovery (2024.11 and later). `kind` is that of the pipeline's output.
    """
    identifier = f"infermesh_{pipeline}_{source}"
    value = {"labels": "label", "score": "score", "boxes": "detections | count"}.get(kind, "id")
    components: dict[str, dict[str, object]] = {
        "result": {
            "p": "sensor",
            "unique_id": f"{identifier}_result",
            "name": "Result",
            "value_template": f"{{{{ value_json.{value} }}}}",
            "json_attributes_topic": topics.result(pipeline, source),
        },
        "latency": {
            "p": "sensor",
            "unique_id": f"{identifier}_latency",
            "name": "Latency",
            "value_template": "{{ value_json.latency_ms.total }}",
            "unit_of_measurement": "ms",
            "device_class": "duration",
            "state_class": "measurement",
            "entity_category": "diagnostic",
        },
    }
    if kind == "score":
        components["anomaly"] = {
            "p": "binary_sensor",
            "unique_id": f"{identifier}_anomaly",
            "name": "Anomaly",
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.anomaly else 'OFF' }}",
        }
    message = {
        "dev": {"ids": [identifier], "name": f"{pipeline} {source}", "mf": "infermesh", "sw": __version__},
        "o": {"name": "infermesh", "sw": __version__},
        "cmps": components,
        "state_topic": topics.result(pipeline, source),
        "avty": [{"t": topics.state, "pl_avail": ONLINE, "pl_not_avail": OFFLINE}],
        "qos": 1,
    }
    return f"{discovery}/device/{identifier}/config", json.dumps(message).encode()
