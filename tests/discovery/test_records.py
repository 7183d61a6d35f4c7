from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fleet import Peer
from mesh.core.ids import NAME_PATTERN, NodeId
from mesh.discovery.contract import Advertisement
from mesh.discovery.records import (
    MAX_LABEL_BYTES,
    MAX_OWN_TXT_BYTES,
    MAX_READ_TXT_BYTES,
    SERVICE_TYPE,
    host_name,
    instance_name,
    read_record,
    txt_properties,
)
from mesh.errors import UsageError

NODE = NodeId("8f3a1c02" * 4)
ADVERT = Advertisement(NODE, "pi4-kitchen", "node", 50071, (), {"api": "1", "arch": "aarch64"})
GOOD = {b"txtvers": b"1", b"id": NODE.encode(), b"role": b"node", b"name": b"pi4-kitchen", b"arch": b"aarch64"}


def read(
    text: dict[bytes, bytes | None], port: int = 50071, address: str = "192.168.1.9", text_bytes: int = 99
) -> Peer | str:
    return read_record(text, text_bytes, port, [address], [], on_loopback=False)


def test_what_is_announced_is_read_back() -> None:
    text = {key.encode(): value.encode() for key, value in txt_properties(ADVERT).items()}
    assert next(iter(text)) == b"txtvers"
    assert read(dict(text)) == Peer(
        NODE, "pi4-kitchen", "node", ("192.168.1.9:50071",), "mdns", {"api": "1", "arch": "aarch64"}
    )


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_instance_names_fit_one_label_and_begin_with_the_name(name: str) -> None:
    instance = instance_name(dataclasses.replace(ADVERT, name=name))
    label = instance.removesuffix(f".{SERVICE_TYPE}")
    assert len(label.encode()) <= MAX_LABEL_BYTES
    assert label.endswith(" (8f3a)")
    assert name.startswith(label.removesuffix(" (8f3a)"))


def test_a_node_and_a_coordinator_of_one_identity_never_compete_for_a_name() -> None:
    coordinator = dataclasses.replace(ADVERT, role="coordinator")
    assert instance_name(coordinator) == f"pi4-kitchen coordinator (8f3a).{SERVICE_TYPE}"
    assert instance_name(ADVERT) == f"pi4-kitchen (8f3a).{SERVICE_TYPE}"


def test_host_names_carry_the_id() -> None:
    assert host_name(NODE) == "mesh-8f3a1c02.local."


@pytest.mark.parametrize(
    "change",
    [
        {"role": "king"},
        {"node_id": NodeId("8F" * 16)},
        {"properties": {"id": "x"}},
        {"properties": {"much-too-long": "x"}},
        {"properties": {"a=b": "x"}},
        {"properties": {"Arch": "x"}},
        {"properties": {"": "x"}},
        {"properties": {"a": "x" * 254}},
        {"properties": {"a": "x" * 180, "b": "x" * 180}},
    ],
)
def test_what_no_reader_would_accept_is_not_announced(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        txt_properties(dataclasses.replace(ADVERT, **change))  # type: ignore[arg-type]


def test_the_largest_announcement_is_just_below_the_limit() -> None:
    bare = sum(len(f"{key}={value}") + 1 for key, value in txt_properties(ADVERT).items())
    room = MAX_OWN_TXT_BYTES - 1 - bare
    parts = {"x": "v" * 100, "y": "v" * (room - 103 - 3)}
    txt_properties(dataclasses.replace(ADVERT, properties={**ADVERT.properties, **parts}))
    parts["y"] += "v"
    with pytest.raises(UsageError, match="400"):
        txt_properties(dataclasses.replace(ADVERT, properties={**ADVERT.properties, **parts}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"txtvers": b"2"}, "version"),
        ({b"txtvers": None}, "version"),
        ({b"id": b"8f3a"}, "id"),
        ({b"id": NODE.upper().encode()}, "id"),
        ({b"id": None}, "id"),
        ({b"role": b"king"}, "role"),
        ({b"name": b"a b"}, "name"),
        ({b"name": b""}, "name"),
        ({b"name": "küche".encode()}, "name"),
        ({b"x": b"\xff\xfe"}, "text"),
        ({b"\xff": b"x"}, "text"),
    ],
)
def test_records_that_are_not_ours_are_rejected_with_a_reason(change: dict[bytes, bytes | None], reason: str) -> None:
    answer = read({**GOOD, **change})
    assert isinstance(answer, str)
    assert reason in answer


def test_ports_sizes_and_addresses_are_checked() -> None:
    assert isinstance(read(dict(GOOD)), Peer)
    for port in (0, -1, 65536):
        assert read(dict(GOOD), port=port) == f"port {port}"
    for address in ("0.0.0.0", "127.0.0.1", "224.0.0.251", "", "fe80::1"):
        assert read(dict(GOOD), address=address) == "no usable address"
    assert isinstance(read(dict(GOOD), text_bytes=MAX_READ_TXT_BYTES), Peer)
    assert isinstance(read(dict(GOOD), text_bytes=MAX_READ_TXT_BYTES + 1), str)
    assert read({}) == "another or no TXT version"


def test_keys_are_read_in_any_case() -> None:
    assert isinstance(read({key.upper(): value for key, value in GOOD.items()}), Peer)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(GOOD)), st.binary(max_size=9)),
        st.one_of(st.none(), st.sampled_from(sorted(GOOD.values())), st.binary(max_size=40)),
        max_size=8,
    ),
    st.integers(-1, 70000),
    st.text(max_size=20),
)
def test_nothing_that_can_be_sent_raises(text: dict[bytes, bytes | None], port: int, address: str) -> None:
    assert isinstance(read(text, port, address), Peer | str)
