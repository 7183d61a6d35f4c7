from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.discovery.addresses import MAX_ADDRESSES, format_address, parse_address, rank_addresses
from mesh.errors import UsageError

LAN = [ipaddress.ip_network("192.168.1.0/24")]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.168.1.20:50071", "192.168.1.20", 50071),
        ("  pi4-kitchen.local:1 ", "pi4-kitchen.local", 1),
        ("compose_service:65535", "compose_service", 65535),
        ("[fd00::20]:50071", "fd00::20", 50071),
        ("[fe80::1%eth0]:50071", "fe80::1%eth0", 50071),
        ("localhost.:80", "localhost.", 80),
    ],
)
def test_addresses_that_people_write(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":50071", "host", "host:", "host:0", "host:65536", "host:-1", "host:5_0", "host:٣", "host:port",
        "fd00::20:50071", "[fd00::20]", "[fd00::20]50071", "[192.168.1.20]:50071", "[fd00::zz]:1", "[]:1",
        "0.0.0.0:50071", "[::]:50071", "224.0.0.251:5353", "[ff02::fb]:5353", "256.1.1.1:50071", "1.2.3:50071",
        "http://host:50071", "a b:50071", "-host:50071", "host/x:1", "a..b:1", "x" * 300 + ":1", "host:" + "9" * 9999,
    ],
)  # fmt: skip
def test_addresses_that_make_no_sense_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text)
    assert "host:port" in refused.value.hint
    assert len(refused.value.message) < 300


@given(host=st.ip_addresses(), port=st.integers(1, 65535))
def test_formatting_and_parsing_are_inverse(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = format_address(str(host), port)
    if host.is_unspecified or host.is_multicast:
        with pytest.raises(UsageError):
            parse_address(text)
    else:
        assert parse_address(text) == (str(host), port)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except UsageError:
        return
    assert host
    assert 0 < port < 65536


def test_the_nearest_address_comes_first_and_useless_ones_are_dropped() -> None:
    heard = [
        "169.254.3.4", "fd00::9", "10.0.0.9", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "127.0.0.1", "::1",
        "fe80::9", "255.255.255.255", "nonsense", "192.168.1.9", "192.168.1.9", "fe80::9%2",
    ]  # fmt: skip
    assert rank_addresses(heard, LAN, on_loopback=False) == [
        "192.168.1.9", "10.0.0.9", "fd00::9", "169.254.3.4", "fe80::9%2",
    ]  # fmt: skip


def test_loopback_addresses_count_only_on_loopback() -> None:
    assert rank_addresses(["127.0.0.1"], LAN, on_loopback=False) == []
    assert rank_addresses(["127.0.0.1"], LAN, on_loopback=True) == ["127.0.0.1"]


def test_a_hundred_addresses_are_cut() -> None:
    heard = [f"10.0.0.{number}" for number in range(1, 101)]
    assert rank_addresses(heard, LAN, on_loopback=False) == heard[:MAX_ADDRESSES]
