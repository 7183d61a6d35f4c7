"""The MQTT gateway by its real connection, before a played broker: what a broker does wrong costs no message."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiomqtt
import pytest

from mesh.gateways import mqtt_connection
from mesh.gateways.mqtt_connection import Broker, ManualAcknowledgement
from mesh.gateways.mqtt_gateway import MqttGateway, Served
from mesh.gateways.mqtt_topics import Topics
from mesh.runtime.supervise import Supervisor
from tests.gateways.played_broker import REFUSAL, PlayedBroker
from tests.runtime.fake_models import until

STATE, RESULT = "mesh/bridge/state", "mesh/out/p/cam"
CONFIG = "homeassistant/device/infermesh_p_cam/config"


@dataclass
class Running:
    broker: PlayedBroker
    gateway: MqttGateway
    task: asyncio.Task[None]
    said: list[str] = field(default_factory=list)
    processed: list[bytes] = field(default_factory=list)


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(mqtt_connection, "RECONNECT_S", 0.01)
    broker = PlayedBroker()
    await broker.start()
    said: list[str] = []
    processed: list[bytes] = []

    async def process(source: str, payload: bytes, identifier: str, traceparent: str) -> list[bytes]:
        processed.append(payload)
        return [json.dumps({"told": payload.decode()}).encode()]

    async with Supervisor() as tasks:
        described = Broker("127.0.0.1", broker.port, False, "gateway")
        served = {"p": Served(process, "labels")}
        gateway = MqttGateway(described, Topics("mesh"), served, tasks, said.append, "homeassistant")
        task = tasks.spawn(gateway.run(), "gateway")
        yield Running(broker, gateway, task, said, processed)
        task.cancel()
        await asyncio.wait({task})
        await broker.stop()


async def test_a_message_is_acknowledged_after_its_answer(running: Running) -> None:
    broker = running.broker
    broker.deaf_to = RESULT
    await until(lambda: STATE in broker.topics(), "the gateway is online")
    broker.send(7, "mesh/in/p/cam", b"one")
    await until(lambda: RESULT in broker.topics(), "the answer is published")
    assert 7 in broker.unacknowledged, "the broker has not taken the answer yet"
    broker.send(8, "mesh/in/p/mic", b"two")
    await until(lambda: 8 not in broker.unacknowledged, "the answer was taken, the message is acknowledged")


async def test_a_broker_that_takes_nothing_is_called_anew_and_sends_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = running.broker
    await until(lambda: STATE in broker.topics(), "the gateway is online")
    broker.deaf_to = RESULT
    monkeypatch.setattr(mqtt_connection, "CALL_LIMIT_S", 0.1)
    broker.send(7, "mesh/in/p/cam", b"one")
    await until(lambda: RESULT in broker.topics(), "the answer is published")
    broker.deaf_to = ""
    monkeypatch.setattr(mqtt_connection, "CALL_LIMIT_S", 10.0)
    await until(lambda: not broker.unacknowledged, "it came again, was told and acknowledged")
    assert broker.connections >= 2
    assert running.processed == [b"one"], "its samples are in the window already"
    assert any("took nothing" in line for line in running.said)


async def test_a_message_whose_acknowledgement_was_lost_does_not_enter_its_window_twice(running: Running) -> None:
    broker = running.broker
    await until(lambda: STATE in broker.topics(), "the gateway is online")
    broker.is_losing_acknowledgements = True
    broker.send(7, "mesh/in/p/cam", b"one")
    await until(lambda: RESULT in broker.topics(), "it is answered")
    await until(lambda: broker.connections >= 2, "the acknowledgement was lost")
    broker.is_losing_acknowledgements = False
    await until(lambda: not broker.unacknowledged, "it came again and was acknowledged")
    assert running.processed == [b"one"]
    assert broker.topics().count(RESULT) >= 2, "told again: a broker that was killed has lost it as well"
    broker.send(7, "mesh/in/p/cam", b"one")
    await until(lambda: len(running.processed) == 2, "packet ids are used again, and sensors repeat themselves")


async def test_a_broker_that_is_lost_while_it_is_told_of_devices_is_called_again(running: Running) -> None:
    broker = running.broker
    await until(lambda: STATE in broker.topics(), "the gateway is online")
    broker.send(7, "mesh/in/p/cam", b"one")
    await until(lambda: CONFIG in broker.topics() and not broker.unacknowledged, "Home Assistant knows the device")
    broker.hang_up_at = CONFIG
    broker.send(8, "homeassistant/status", b"online")
    await until(lambda: broker.connections >= 4, "each connection ends while the device is told again")
    broker.hang_up_at = ""
    await until(lambda: broker.topics().count(CONFIG) == 2, "it is told at last")
    assert not running.task.done()
    assert any("client id 'gateway'" in line for line in running.said)


async def test_many_sources_at_once_are_nothing_to_write_down(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    broker = running.broker
    await until(lambda: STATE in broker.topics(), "the gateway is online")
    broker.is_slow = True
    for number in range(15):
        broker.send(number + 1, f"mesh/in/p/s{number}", b"x")
    await until(lambda: len(broker.published) == 16, "all are told at once")
    broker.is_slow = False
    broker.answer()
    await until(lambda: not broker.unacknowledged, "all are answered")
    assert not caplog.records


async def test_a_refused_subscription_is_told(running: Running) -> None:
    running.broker.granted = REFUSAL
    assert running.broker.connections == 0
    await until(lambda: any("refuses the subscription to mesh/in/+/+" in line for line in running.said))
    running.broker.granted = 1
    await until(lambda: STATE in running.broker.topics(), "it is tried again")


async def test_a_socket_that_is_closed_before_its_turn_is_not_watched() -> None:
    """As of a broker that is killed while acknowledgements wait: asyncio would log that there is no such file."""
    wrong: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: wrong.append(context))
    acknowledgement = ManualAcknowledgement(aiomqtt.Client("127.0.0.1", 1))
    ours, theirs = socket.socketpair()
    acknowledgement._paho.on_socket_register_write(None, None, ours)
    ours.close()
    theirs.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not wrong
