"""What is particular to mDNS, on loopback with the real library: strangers' records, conflicts, interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
from zeroconf import IPVersion, ServiceStateChange
from zeroconf._dns import DNSPointer
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import _CLASS_IN, _FLAGS_AA, _FLAGS_QR_RESPONSE, _TYPE_PTR

from mesh.core.fleet import Peer
from mesh.core.ids import NodeId
from mesh.discovery.candidates import MAX_CANDIDATES
from mesh.discovery.contract import Advertisement, DiscoveryEvent, PeerSeen
from mesh.discovery.interfaces import Interface
from mesh.discovery.mdns import MdnsDiscovery
from mesh.discovery.records import SERVICE_TYPE
from mesh.errors import ListenError, UsageError

pytestmark = pytest.mark.network

LOOPBACK = ("127.0.0.1",)
LO = Interface("lo", "127.0.0.1", 8)
RUN = f"{os.getpid():08x}"
"""Begins the ids of this run: daemons of other processes on this machine's loopback are not ours to judge."""
NODE = NodeId(f"{RUN}{RUN[::-1]}" * 2)
NAME = f"board-{os.getpid()}"
INSTANCE = f"{NAME} ({RUN[:4]}).{SERVICE_TYPE}"
ADVERT = Advertisement(NODE, NAME, "node", 50071, (), {"cpu": "4"})
GOOD_TXT = {"txtvers": "1", "id": RUN + "ab" * 12, "role": "node", "name": "stranger"}


def found(browser: MdnsDiscovery) -> dict[NodeId | None, Peer]:
    """The peers of this run that are known to the browser."""
    peers = browser._records.values()
    return {peer.node_id: peer for peer in peers if str(peer.node_id).startswith(RUN)}


async def next_event(events: AsyncIterator[DiscoveryEvent]) -> DiscoveryEvent:
    """The next one about a peer of this run."""
    async with asyncio.timeout(8):
        while not str((event := await anext(events)).peer.node_id).startswith(RUN):
            pass
    return event


async def until(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def stranger() -> AsyncIterator[AsyncZeroconf]:
    """A plain responder on the same network that is not ours."""
    zeroconf = AsyncZeroconf(interfaces=list(LOOPBACK), ip_version=IPVersion.V4Only)
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        yield zeroconf
    finally:
        await zeroconf.async_close()


async def announce(
    zeroconf: AsyncZeroconf, name: str, text: dict[str, str] | bytes, port: int = 50071, address: str = "127.0.0.1"
) -> None:
    info = AsyncServiceInfo(
        SERVICE_TYPE, f"{name}.{SERVICE_TYPE}", port=port, properties=text, server=f"{name}.local.",
        parsed_addresses=[address],
    )  # fmt: skip
    await (await zeroconf.async_register_service(info, cooperating_responders=True))


async def test_records_that_are_not_ours_are_counted_and_not_reported() -> None:
    bad: list[tuple[dict[str, str] | bytes, int, str]] = [
        ({**GOOD_TXT, "txtvers": "2"}, 50071, "127.0.0.1"),
        ({**GOOD_TXT, "id": "short"}, 50071, "127.0.0.1"),
        (GOOD_TXT, 0, "127.0.0.1"),
        (GOOD_TXT, 50071, "224.0.0.1"),
        (GOOD_TXT, 50071, "0.0.0.0"),
        (b"\x05a=\xff\xfeb", 50071, "127.0.0.1"),
        (b"\xffcut off", 50071, "127.0.0.1"),
        (b"", 50071, "127.0.0.1"),
    ]
    async with MdnsDiscovery(LOOPBACK) as browser, stranger() as network:
        for number, (text, port, address) in enumerate(bad):
            await announce(network, f"bad-{number}", text, port, address)
        await announce(network, "good", GOOD_TXT)
        event = await next_event(browser.watch())
        assert isinstance(event, PeerSeen)
        assert event.peer.name == "stranger"
        await until(lambda: browser.counters.bad_records >= len(bad))
        assert [peer.name for peer in found(browser).values()] == ["stranger"]
        assert browser.counters.last_reason


async def test_others_see_the_service_as_the_convention_has_it() -> None:
    seen: list[str] = []

    def note(zeroconf: object, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        seen.append(name)

    async with MdnsDiscovery(LOOPBACK) as daemon, stranger() as network:
        await daemon.advertise(ADVERT)
        async with AsyncServiceBrowser(network.zeroconf, SERVICE_TYPE, handlers=[note]):
            await until(lambda: INSTANCE in seen)
        info = AsyncServiceInfo(SERVICE_TYPE, INSTANCE)
        assert await info.async_request(network.zeroconf, 3000)
        assert info.server == f"mesh-{RUN}.local."
        assert info.port == 50071
        assert info.text.startswith(b"\x09txtvers=1")
        assert len(info.text) < 400


async def test_a_name_that_is_taken_gets_a_number_and_both_are_found() -> None:
    other = Advertisement(NodeId(RUN + "77" * 12), NAME, "node", 50072, (), {})
    async with contextlib.AsyncExitStack() as stack:
        first, second, browser = [await stack.enter_async_context(MdnsDiscovery(LOOPBACK)) for _ in range(3)]
        await first.advertise(ADVERT)
        await until(lambda: bool(first.instance))
        await second.advertise(other)
        await until(lambda: bool(second.instance))
        assert second.instance == f"{NAME} ({RUN[:4]})-2.{SERVICE_TYPE}"
        await until(lambda: len(found(browser)) == 2)
        peers = found(browser)
        assert peers[NODE].addresses == ("127.0.0.1:50071",)
        assert peers[other.node_id].addresses == ("127.0.0.1:50072",)


async def test_a_flood_of_forged_pointers_keeps_nobody_out() -> None:
    """3000 invented instances; a genuine one is found all the same, soon, and nothing grows beyond its cap."""

    def forge(start: int) -> None:
        out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        for number in range(start, start + 20):
            alias = f"forged-{number}.{SERVICE_TYPE}"
            out.add_answer_at_time(DNSPointer(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN, 4500, alias), 0)
        for packet in out.packets():
            sender.sendto(packet, ("224.0.0.251", 5353))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        async with MdnsDiscovery(LOOPBACK) as browser, MdnsDiscovery(LOOPBACK) as daemon:
            for start in range(0, 3000, 20):
                forge(start)
                await asyncio.sleep(0.002)
            await until(lambda: browser.counters.refused > 0)
            start_time = time.monotonic()
            await daemon.advertise(ADVERT)
            event = await next_event(browser.watch())
            assert event.peer.node_id == NODE
            assert time.monotonic() - start_time < 5.0
            assert len(browser._candidates) <= 2 * MAX_CANDIDATES
            assert browser._to_resolve.qsize() <= MAX_CANDIDATES


async def test_random_packets_stop_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        pointer_to_itself = b"\0\0\x84\0\0\0\0\1\0\0\0\0\xc0\x0c\0\x0c\0\1\0\0\0\x78\0\2\xc0\x0c"
        async with MdnsDiscovery(LOOPBACK) as browser, MdnsDiscovery(LOOPBACK) as daemon:
            for packet in (
                b"",
                b"\0",
                b"\xff" * 1400,
                bytes(range(256)) * 5,
                pointer_to_itself,
                pointer_to_itself[:-3],
            ):
                sender.sendto(packet, ("224.0.0.251", 5353))
            await daemon.advertise(ADVERT)
            assert (await next_event(browser.watch())).peer.node_id == NODE


async def test_an_interface_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="eth99"):
        async with MdnsDiscovery(["eth99"]):
            pytest.fail("entered")
    with pytest.raises(ListenError, match="IPv4"):
        async with MdnsDiscovery(list_present=list):
            pytest.fail("entered")


async def test_a_denied_port_is_a_listen_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*arguments: object, **options: object) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("mesh.discovery.mdns.AsyncZeroconf", deny)
    with pytest.raises(ListenError, match="Address already in use") as refused:
        async with MdnsDiscovery(LOOPBACK):
            pytest.fail("entered")
    assert "avahi" in refused.value.hint


async def test_what_cannot_be_announced_is_refused_at_once() -> None:
    async with MdnsDiscovery(LOOPBACK) as discovery:
        with pytest.raises(UsageError):
            await discovery.advertise(Advertisement(NODE, "board", "node", 50071, (), {"x": "v" * 400}))


async def test_leaving_while_the_announcement_is_on_its_way_leaves_nothing() -> None:
    async with MdnsDiscovery(LOOPBACK) as daemon:
        await daemon.advertise(ADVERT)
        await asyncio.sleep(0)
    assert daemon.instance == ""


async def test_a_new_address_is_used_and_announced() -> None:
    present = [LO]
    second = Interface("lo", "127.0.0.2", 8)
    async with (
        MdnsDiscovery(LOOPBACK) as browser,
        MdnsDiscovery(["lo"], list_present=lambda: list(present), poll_seconds=0.05) as daemon,
    ):
        await daemon.advertise(ADVERT)
        events = browser.watch()
        assert (await next_event(events)).peer.addresses == ("127.0.0.1:50071",)
        present.append(second)
        while "127.0.0.2:50071" not in (event := await next_event(events)).peer.addresses:
            pass
        assert set(event.peer.addresses) == {"127.0.0.1:50071", "127.0.0.2:50071"}
        assert daemon.interfaces == (LO, second)
        present.clear()  # the interface is away: what was used stays
        await asyncio.sleep(0.2)
        assert daemon.interfaces == (LO, second)
