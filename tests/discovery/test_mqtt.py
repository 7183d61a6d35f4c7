"""Presences on a broker: what is written is read again, nothing else is believed. With a broker: scripts/check_mqtt."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.ids import NodeId
from mesh.discovery import mqtt
from mesh.discovery.contract import Advertisement, PeerGone, PeerSeen
from mesh.discovery.interfaces import Interface
from mesh.discovery.mqtt import MqttDiscovery, presence_topic, read_presence, write_presence
from mesh.errors import UsageError
from tests.runtime.fake_models import until

OWN, OTHER = NodeId("a" * 32), NodeId("b" * 32)
LAN = [Interface("eth0", "10.0.0.5", 24)]


def advertisement(node_id: NodeId = OTHER, **more: Any) -> Advertisement:
    fields: dict[str, Any] = {"role": "node", "port": 50071, "addresses": ("10.0.0.7",), "properties": {"api": "1"}}
    return Advertisement(node_id, "attic", **{**fields, **more})


def test_what_is_written_is_read() -> None:
    told = advertisement()
    peer = read_presence(presence_topic(told), write_presence(told, LAN), LAN)
    assert not isinstance(peer, str)
    assert (peer.node_id, peer.name, peer.role, peer.source) == (OTHER, "attic", "node", "mqtt")
    assert peer.addresses == ("10.0.0.7:50071",)
    assert peer.properties["api"] == "1"


def test_daemons_of_one_machine_are_known_by_its_own_broker_only() -> None:
    told = advertisement(addresses=("127.0.0.1",))
    topic, payload = presence_topic(told), write_presence(told, LAN)
    assert read_presence(topic, payload, LAN) == "no usable address"
    found = read_presence(topic, payload, LAN, is_local=True)
    assert not isinstance(found, str)
    assert found.addresses == ("127.0.0.1:50071",)


def test_a_daemon_that_listens_everywhere_tells_its_interfaces() -> None:
    told = json.loads(write_presence(advertisement(addresses=()), LAN))
    assert told["addresses"] == ["10.0.0.5"]


@pytest.mark.parametrize(
    ("topic", "change", "said"),
    [
        ("mesh/presence/x/node", {}, "another one's place"),
        (None, {"port": 0}, "port 0"),
        (None, {"port": True}, "not a presence"),
        (None, {"port": "1"}, "not a presence"),
        (None, {"addresses": "10.0.0.7"}, "not a presence"),
        (None, {"addresses": []}, "no usable address"),
        (None, {"addresses": ["0.0.0.0", 3, "x"]}, "no usable address"),
        (None, {"txt": []}, "not a presence"),
        (None, {"txt": {}}, "TXT version"),
        (None, {"txt": {"txtvers": "1", "id": "x", "role": "node", "name": "a"}}, "no valid id"),
    ],
)
def test_what_is_no_presence_is_rejected(topic: str | None, change: dict[str, Any], said: str) -> None:
    told = advertisement()
    document = {**json.loads(write_presence(told, LAN)), **change}
    found = read_presence(topic or presence_topic(told), json.dumps(document).encode(), LAN)
    assert isinstance(found, str)
    assert said in found


@given(st.binary(max_size=300))
def test_no_bytes_are_believed_or_raise(payload: bytes) -> None:
    assert isinstance(read_presence("mesh/presence/x/node", payload, LAN), str)


def test_a_large_presence_is_not_read() -> None:
    assert "bytes" in str(read_presence("mesh/presence/x/node", b" " * 3000, LAN))


async def test_peers_come_and_go_and_oneself_is_not_told() -> None:
    discovery = MqttDiscovery("127.0.0.1:1", lambda: LAN)
    await discovery.advertise(advertisement(OWN))
    watch = discovery.watch()
    for node_id in (OWN, OTHER):
        told = advertisement(node_id)
        discovery._take(presence_topic(told), write_presence(told, LAN), LAN)
    seen = await anext(watch)
    assert isinstance(seen, PeerSeen)
    assert seen.peer.node_id == OTHER
    discovery._take("mesh/presence/x/node", b"junk", LAN)
    assert discovery.rejected == 1
    discovery._take(presence_topic(advertisement()), b"", LAN)
    gone = await anext(watch)
    assert isinstance(gone, PeerGone)
    assert gone.peer.node_id == OTHER


def test_a_broker_is_host_and_port() -> None:
    with pytest.raises(UsageError, match="the broker: 'broker' is not an address"):
        MqttDiscovery("broker")


async def test_a_broker_that_does_not_answer_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    calls: list[float] = []
    discovery = MqttDiscovery(f"127.0.0.1:{port}", lambda: LAN)
    connect = discovery._connect

    def count(advertisement: Advertisement | None) -> Any:
        calls.append(0.0)
        return connect(advertisement)

    monkeypatch.setattr(discovery, "_connect", count)
    async with discovery:
        await until(lambda: len(calls) > 3)
    (told,) = caplog.records
    assert f"no connection to the MQTT broker at 127.0.0.1:{port}" in told.getMessage()
