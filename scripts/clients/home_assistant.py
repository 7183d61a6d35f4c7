"""What the MQTT gateway tells Home Assistant, held against Home Assistant's own schemas, component by component.

usage: home_assistant.py   in an environment with the package homeassistant (2024.3, the last for Python 3.11) and this
clone on PYTHONPATH. Its schemas are of single components, from before devices had messages of their own; the words
of those are held against its list of abbreviations.
"""

from __future__ import annotations

import json
from typing import Any

import voluptuous
from homeassistant.components.mqtt import binary_sensor, sensor
from homeassistant.components.mqtt.abbreviations import (
    ABBREVIATIONS,
    DEVICE_ABBREVIATIONS,
    ORIGIN_ABBREVIATIONS,
)

from mesh.gateways.mqtt_topics import Topics, home_assistant_device

SCHEMAS = {"sensor": sensor.PLATFORM_SCHEMA_MODERN, "binary_sensor": binary_sensor.PLATFORM_SCHEMA_MODERN}
AVAILABILITY = {"t": "topic", "pl_avail": "payload_available", "pl_not_avail": "payload_not_available"}


def expand(told: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in told.items()}


def main() -> None:
    checked = 0
    for kind in ("labels", "score", "boxes", "raw"):
        _, message = home_assistant_device(Topics("mesh"), "homeassistant", "digits", "kitchen-cam", kind)
        told = json.loads(message)
        shared = {key: value for key, value in told.items() if key != "cmps"}
        shared = expand(shared, ABBREVIATIONS)
        shared["device"] = expand(shared.pop("device"), DEVICE_ABBREVIATIONS)
        shared["origin"] = expand(shared.pop("origin", None) or shared.pop("o"), ORIGIN_ABBREVIATIONS)
        shared["availability"] = [expand(each, AVAILABILITY) for each in shared["availability"]]
        for name, component in told["cmps"].items():
            component = expand(component, ABBREVIATIONS)
            platform = component.pop("p")
            try:
                SCHEMAS[platform]({**shared, **component})
            except voluptuous.Invalid as error:
                raise SystemExit(f"error: {kind}, {name}: {error}") from None
            checked += 1
    print(f"ok: {checked} components pass Home Assistant's schemas")


main()
