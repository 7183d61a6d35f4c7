"""The MQTT gateway before a played broker: a message is answered, refused or dropped aloud, and then acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mesh.errors import NodeLost, SourceUnreadable
from mesh.gateways import mqtt_gateway
from mesh.gateways.inference import MAX_REQUESTS_AT_ONCE
from mesh.gateways.mqtt_connection import Broker, Sample
from mesh.gateways.mqtt_gateway import MAX_HELD, MAX_JUDGED_AT_ONCE, MAX_WAITING, MqttGateway, Served
from mesh.gateways.mqtt_topics import Topics, home_assistant_device
from mesh.runtime.supervise import Supervisor
from tests.runtime.fake_models import until

TOPICS = Topics("mesh")


@dataclass
class PlayedConnection:
    """Takes what is published; `is_up` False loses the broker."""

    on_sample: Callable[[Sample], None]
    on_connected: Callable[[], Awaitable[None]]
    is_up: bool = True
    connection: int = 0
    published: list[tuple[str, Any, bool, bytes]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def publish(
        self, topic: str, payload: bytes, *, is_retained: bool = False, correlation: bytes = b"", qos: int = 1
    ) -> None:
        if not self.is_up:
            raise NodeLost("no broker")
        self.published.append((topic, json.loads(payload), is_retained, correlation))

    def send(self, topic: str, payload: bytes, **more: Any) -> None:
        told = {"qos": 1, "is_retained": False, "response_topic": "", "correlation": b"", "traceparent": "", **more}
        connection = self.connection

        def acknowledge() -> bool:
            if connection == self.connection and self.is_up:
                self.acknowledged.append(payload.decode())
                return True
            return False

        self.on_sample(Sample(topic, payload, acknowledge=acknowledge, **told))

    async def reconnect(self) -> None:
        """What came by the connection before this one can no longer be acknowledged."""
        self.is_up = True
        self.connection += 1
        await self.on_connected()

    def topics(self) -> list[str]:
        return [topic for topic, _, _, _ in self.published]


@dataclass
class Running:
    gateway: MqttGateway
    connection: PlayedConnection
    gate: asyncio.Event
    processed: list[bytes]
    held: set[str] = field(default_factory=set)
    """Ids of messages whose samples wait for their window."""
    begun: int = 0


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    made: list[PlayedConnection] = []

    def make(broker: Any, topics: Any, subscriptions: Any, on_sample: Any, on_connected: Any, say: Any) -> Any:
        made.append(PlayedConnection(on_sample, on_connected))
        return made[-1]

    monkeypatch.setattr(mqtt_gateway, "MqttConnection", make)
    gate = asyncio.Event()
    gate.set()
    processed: list[bytes] = []

    async def process(source: str, payload: bytes, identifier: str, traceparent: str) -> list[bytes]:
        running.begun += 1
        await gate.wait()
        processed.append(payload)
        if payload.startswith(b"held"):
            running.held.add(identifier)
            return []
        if payload == b"broken":
            raise SourceUnreadable("the message is broken")
        if payload == b"bug":
            raise ZeroDivisionError("secret")
        return [json.dumps({"id": identifier, "told": payload.decode()}).encode()] * (payload != b"part")

    async with Supervisor() as tasks:
        broker = Broker("x", 1, False, "id")
        gateway = MqttGateway(
            broker,
            TOPICS,
            {"p": Served(process, "labels", lambda source, identifier: identifier in running.held)},
            tasks,
            print,
            "homeassistant",
        )
        task = tasks.spawn(gateway.run(), "gateway")
        running = Running(gateway, made[0], gate, processed)
        yield running
        task.cancel()


async def test_a_message_is_answered_and_then_acknowledged(running: Running) -> None:
    running.gate.clear()
    running.connection.send("mesh/in/p/cam", b"one")
    await asyncio.sleep(0)
    assert running.connection.acknowledged == []
    running.gate.set()
    await until(lambda: running.connection.acknowledged == ["one"])
    assert running.connection.published[-1][:2] == (
        "mesh/out/p/cam",
        {"id": running.connection.published[-1][1]["id"], "told": "one"},
    )
    assert running.gateway.counted["results"] == 1


async def test_who_asks_gets_the_answer_too(running: Running) -> None:
    running.connection.send("mesh/in/p/cam", b"one", response_topic="my/answers", correlation=b"\1")
    await until(lambda: bool(running.connection.acknowledged))
    topic, told, _, correlation = running.connection.published[-1]
    assert (topic, told["told"], correlation) == ("my/answers", "one", b"\1")
    running.connection.send("mesh/in/p/cam", b"broken", response_topic="my/answers", correlation=b"\2")
    await until(lambda: len(running.connection.acknowledged) == 2)
    assert running.connection.published[-1][1]["error"]["code"] == "source-unreadable"


@pytest.mark.parametrize(
    "topic", ["my/#", "my/+/x", "a\0b", "$SYS/x", "mesh/in/p/cam", "mesh/bridge/state", "x" * 65536]
)
async def test_an_answer_goes_to_no_topic_that_is_none_or_the_gateways_own(running: Running, topic: str) -> None:
    running.connection.send("mesh/in/p/cam", b"one", response_topic=topic)
    await until(lambda: running.connection.acknowledged == ["one"])
    assert topic not in running.connection.topics()
    assert "mesh/out/p/cam" in running.connection.topics()
    assert running.gateway.counted["refused response topics"] == 1


@pytest.mark.parametrize(
    ("topic", "payload", "more", "error_topic", "code"),
    [
        ("mesh/in/p/cam", b"broken", {}, "mesh/error/p/cam", "source-unreadable"),
        ("mesh/in/p/cam", b"bug", {}, "mesh/error/p/cam", "engine"),
        ("mesh/in/q/cam", b"x", {}, "mesh/error/q/cam", "not-found"),
        ("mesh/in/p/cam", b"x", {"is_retained": True}, "mesh/error/p/cam", "refused"),
    ],
)
async def test_what_has_no_answer_is_told_why_and_others_go_on(
    running: Running, topic: str, payload: bytes, more: dict[str, Any], error_topic: str, code: str
) -> None:
    running.connection.send(topic, payload, **more)
    running.connection.send("mesh/in/p/other", b"good")
    await until(lambda: len(running.connection.acknowledged) == 2)
    told = {name: document for name, document, _, _ in running.connection.published}
    assert told[error_topic]["error"]["code"] == code
    assert "secret" not in json.dumps(told)
    assert told["mesh/out/p/other"]["told"] == "good"
    assert running.gateway.counted[f"error: {code}"] == 1


@pytest.mark.parametrize(
    "topic", ["mesh/in/p", "mesh/in/p/a/b", "mesh/in/p/", "mesh/in/p/a b", "x", "mesh/in/p/" + "a" * 65]
)
async def test_topics_that_name_no_source_are_counted(running: Running, topic: str) -> None:
    running.connection.send(topic, b"x")
    assert running.connection.acknowledged == ["x"]
    assert running.gateway.counted == {"refused topics": 1}


async def test_a_source_that_is_too_fast_loses_its_oldest_aloud(running: Running) -> None:
    running.gate.clear()
    for number in range(MAX_WAITING + 4):
        running.connection.send("mesh/in/p/cam", str(number).encode(), qos=0)
        await asyncio.sleep(0)
    running.connection.send("mesh/in/p/other", b"other")
    await until(lambda: len(running.connection.acknowledged) == 3)
    assert running.connection.acknowledged == ["1", "2", "3"], (
        "the first is worked on, the oldest that wait are dropped"
    )
    drops = [document for topic, document, _, _ in running.connection.published if topic == "mesh/error/p/cam"]
    assert [drop["error"]["code"] for drop in drops] == ["overloaded"] * 3
    running.gate.set()
    await until(lambda: len(running.connection.acknowledged) == MAX_WAITING + 5)
    answered = [document["told"] for topic, document, _, _ in running.connection.published if topic == "mesh/out/p/cam"]
    assert answered == ["0", *(str(number) for number in range(4, MAX_WAITING + 4))], "in their order"


async def test_messages_of_qos_1_wait(running: Running) -> None:
    running.gate.clear()
    for number in range(4 * MAX_WAITING):
        running.connection.send("mesh/in/p/cam", str(number).encode())
        running.connection.send("mesh/in/p/cam", b"live", qos=0)
        await asyncio.sleep(0)
    running.gate.set()
    await until(lambda: len(running.connection.acknowledged) == 8 * MAX_WAITING)
    answered = [document["told"] for topic, document, _, _ in running.connection.published if topic == "mesh/out/p/cam"]
    assert [told for told in answered if told != "live"] == [str(number) for number in range(4 * MAX_WAITING)]
    assert MAX_WAITING <= answered.count("live") <= MAX_WAITING + 1


async def test_more_sources_than_are_judged_at_once_wait(running: Running) -> None:
    running.gate.clear()
    count = 3 * MAX_JUDGED_AT_ONCE
    for number in range(count):
        running.connection.send(f"mesh/in/p/s{number}", b"%d" % number)
    await until(lambda: running.begun == MAX_JUDGED_AT_ONCE)
    running.connection.send("mesh/in/p/s0", b"broken")
    for _ in range(10):
        await asyncio.sleep(0)
    assert running.begun == MAX_JUDGED_AT_ONCE < MAX_REQUESTS_AT_ONCE
    running.gate.set()
    await until(lambda: len(running.connection.acknowledged) == count + 1)
    assert running.gateway.counted["results"] == count


async def test_what_is_dropped_while_it_waits_to_be_judged_ends_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.gate.clear()
    for number in range(MAX_JUDGED_AT_ONCE):
        running.connection.send(f"mesh/in/p/s{number}", b"%d" % number)
    await until(lambda: running.begun == MAX_JUDGED_AT_ONCE)
    monkeypatch.setattr(mqtt_gateway, "MAX_WAITING_BYTES", 5)
    running.connection.send("mesh/in/p/late", b"123456", qos=0)
    await until(lambda: "mesh/error/p/late" in running.connection.topics(), "the drop is told")
    running.gate.set()
    running.connection.send("mesh/in/p/late", b"1", qos=0)
    await until(lambda: "mesh/out/p/late" in running.connection.topics(), "the source goes on")


async def test_nothing_is_acknowledged_that_the_broker_did_not_take(running: Running) -> None:
    running.connection.is_up = False
    running.connection.send("mesh/in/p/cam", b"one")
    running.connection.send("mesh/in/p/cam", b"broken")
    await until(lambda: running.gateway.counted["unpublished"] == 2)
    assert running.connection.acknowledged == []
    running.connection.is_up = True
    running.connection.send("mesh/in/p/cam", b"one")  # as the broker does
    await until(lambda: running.connection.acknowledged == ["one"])


@pytest.mark.parametrize(("payload", "topic"), [(b"one", "mesh/out/p/mic"), (b"broken", "mesh/error/p/mic")])
async def test_what_could_not_be_told_is_told_when_the_message_comes_again(
    running: Running, payload: bytes, topic: str
) -> None:
    running.connection.is_up = False
    running.connection.send("mesh/in/p/mic", payload, packet_id=5)
    await until(lambda: running.gateway.counted["unpublished"] == 1)
    await running.connection.reconnect()
    running.connection.send("mesh/in/p/mic", payload, packet_id=5)
    await until(lambda: running.connection.acknowledged == [payload.decode()])
    assert running.processed == [payload], "its samples are in the window already"
    assert running.connection.topics().count(topic) == 1
    running.connection.send("mesh/in/p/mic", payload, packet_id=6)
    await until(lambda: len(running.connection.acknowledged) == 2)
    assert running.processed == [payload, payload], "the same bytes in another message"


async def test_what_a_broker_has_forgotten_is_told_all_the_same(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_gateway, "RETELL_S", 0.01)
    running.connection.is_up = False
    for number in range(2):
        running.connection.send("mesh/in/p/mic", b"%d" % number, packet_id=number)
    await until(lambda: running.gateway.counted["unpublished"] == 2)
    await running.connection.reconnect()
    running.connection.send("mesh/in/p/mic", b"0", packet_id=0)  # the other one never comes again
    await until(lambda: running.connection.topics().count("mesh/out/p/mic") == 2)
    told = [document["told"] for topic, document, _, _ in running.connection.published if topic == "mesh/out/p/mic"]
    assert told == ["0", "1"]
    assert running.processed == [b"0", b"1"]
    assert running.gateway.counted["told late"] == 1


async def test_what_could_not_be_told_is_bounded_and_put_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_gateway, "RETELL_S", 0.01)
    monkeypatch.setattr(mqtt_gateway, "MAX_UNTOLD", 2)
    running.connection.is_up = False
    for number in range(3):
        running.connection.send("mesh/in/p/mic", b"%d" % number, packet_id=number)
    await until(lambda: running.gateway.counted["unpublished"] == 3)
    await running.connection.on_connected()
    await until(lambda: running.gateway.counted["unpublished"] == 5)  # it went away again at once
    await running.connection.reconnect()
    await until(lambda: running.connection.topics().count("mesh/out/p/mic") == 2)
    told = [document["told"] for topic, document, _, _ in running.connection.published if topic == "mesh/out/p/mic"]
    assert told == ["1", "2"], "the oldest is left to the broker"


async def test_what_was_told_by_the_next_connection_is_told_again_with_the_same_ids(running: Running) -> None:
    running.gate.clear()
    for number in range(3):
        running.connection.send("mesh/in/p/mic", b"%d" % number, packet_id=number)
    await running.connection.reconnect()
    for number in range(3):
        running.connection.send("mesh/in/p/mic", b"%d" % number, packet_id=number)
    running.gate.set()
    await until(lambda: running.connection.acknowledged == ["0", "1", "2"])
    assert running.processed == [b"0", b"1", b"2"]
    told = [document["id"] for topic, document, _, _ in running.connection.published if topic == "mesh/out/p/mic"]
    assert len(set(told)) == 3
    assert len(told) == 6, "the broker may have lost the first ones with the acknowledgements"


async def test_a_message_that_completes_no_window_and_is_in_none_is_acknowledged(running: Running) -> None:
    running.connection.send("mesh/in/p/mic", b"part")
    await until(lambda: running.connection.acknowledged == ["part"])
    assert "mesh/out/p/mic" not in running.connection.topics()


async def test_a_message_whose_samples_wait_is_acknowledged_with_their_window(running: Running) -> None:
    for number in range(2):
        running.connection.send("mesh/in/p/mic", b"held%d" % number, packet_id=number)
    running.connection.send("mesh/in/p/other", b"one")
    await until(lambda: running.connection.acknowledged == ["one"])
    await until(lambda: len(running.processed) == 3)
    running.held.clear()
    running.connection.send("mesh/in/p/mic", b"last", packet_id=2)
    await until(lambda: running.connection.acknowledged == ["one", "last", "held0", "held1"])


async def test_held_messages_that_come_again_stay_held(running: Running) -> None:
    running.connection.send("mesh/in/p/mic", b"held0", packet_id=1)
    await until(lambda: len(running.processed) == 1)
    await running.connection.reconnect()
    running.connection.send("mesh/in/p/mic", b"held0", packet_id=1)
    await until(lambda: running.gateway.counted["came again"] == 1)
    assert running.connection.acknowledged == []
    running.held.clear()
    running.connection.send("mesh/in/p/mic", b"last", packet_id=2)
    await until(lambda: running.connection.acknowledged == ["last", "held0"])
    assert running.processed == [b"held0", b"last"]


async def test_the_oldest_of_too_many_are_acknowledged_before_their_window(running: Running) -> None:
    for number in range(MAX_HELD + 2):
        running.connection.send(f"mesh/in/p/s{number % 3}", b"held%d" % number, packet_id=number)
    await until(lambda: len(running.processed) == MAX_HELD + 2)
    await until(lambda: len(running.connection.acknowledged) == 2)
    assert running.gateway.counted["acknowledged before their window"] == 2
    assert len(running.gateway._held) == MAX_HELD


async def test_home_assistant_is_told_of_a_source_once_and_when_it_starts(running: Running) -> None:
    config = "homeassistant/device/infermesh_p_cam/config"
    for _ in range(2):
        running.connection.send("mesh/in/p/cam", b"one")
    await until(lambda: len(running.connection.acknowledged) == 2)
    assert running.connection.topics().count(config) == 1
    running.connection.send("homeassistant/status", b"online")
    await until(lambda: running.connection.topics().count(config) == 2)
    await running.connection.on_connected()
    await until(lambda: running.connection.topics().count(config) == 3)
    assert [retained for topic, _, retained, _ in running.connection.published if topic == config] == [True] * 3


@pytest.mark.parametrize("kind", ["labels", "score", "boxes", "raw"])
def test_a_device_names_what_it_reads(kind: str) -> None:
    topic, message = home_assistant_device(TOPICS, "homeassistant", "p", "cam", kind)
    told = json.loads(message)
    assert topic == "homeassistant/device/infermesh_p_cam/config"
    assert told["state_topic"] == "mesh/out/p/cam"
    assert told["o"]["name"] and told["avty"][0]["t"] == "mesh/bridge/state"
    identifiers = [component["unique_id"] for component in told["cmps"].values()]
    assert len(set(identifiers)) == len(identifiers)
    assert all(component["p"] in ("sensor", "binary_sensor") for component in told["cmps"].values())
